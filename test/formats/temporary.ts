import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A fresh folder for a test, removed with everything in it when its block ends: `await using folder = await temporaryFolder()`. */
export async function temporaryFolder(): Promise<
  AsyncDisposable & { path: string; file: (name: string) => string; names(): Promise<string[]> }
> {
  const path = await mkdtemp(join(tmpdir(), 'attention-bias-test-'));
  return {
    path,
    file: (name) => join(path, name),
    names: async () => (await readdir(path)).sort(),
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  };
}
