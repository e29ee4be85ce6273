/** The code of the page, one script of the modules in client/ as they are compiled. */
import { readFile } from 'node:fs/promises';
import { dirname, posix } from 'node:path';

import { ioError } from '../../formats/io.js';

const ENTRY = 'client/main.js';
const REQUIRED = /\brequire\("(\.{1,2}\/[\w./-]+)"\)/g;

/** A module's own code, and what it requires, by paths from this folder. */
interface Module {
  readonly code: string;
  readonly required: readonly string[];
}

async function readModule(path: string): Promise<Module> {
  const file = `${__dirname}/${path}`;
  const code = await readFile(file, 'utf8').catch((cause: unknown) => {
    throw ioError('a file of this package (npm run build:ts makes it)', file, cause);
  });
  const folder = dirname(path);
  const resolved = code.replace(REQUIRED, (_, name: string) => `require("${posix.join(folder, name)}")`);
  return {
    code: resolved,
    required: [...resolved.matchAll(/\brequire\("([\w./-]+)"\)/g)].map(([, name]) => name!),
  };
}

/** CommonJS modules in one function, which knows each by its path. */
export async function pageScript(): Promise<string> {
  const modules = new Map<string, string>();
  const waiting = [ENTRY];
  for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
    if (modules.has(path)) continue;
    const { code, required } = await readModule(path);
    modules.set(path, code);
    waiting.push(...required);
  }
  const entries = [...modules].map(
    ([path, code]) => `${JSON.stringify(path)}: (exports, require) => {\n${code}\n}`,
  );
  return `(() => {
const modules = {
${entries.join(',\n')}
};
const loaded = {};
const require = (path) => {
  if (!loaded[path]) modules[path]((loaded[path] = {}), require);
  return loaded[path];
};
require(${JSON.stringify(ENTRY)});
})();`;
}
