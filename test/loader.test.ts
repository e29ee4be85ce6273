/** What the loader takes, and what it says of an addon that does not load. Each case in a process of its own, in an app of its own. */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = join(__dirname, '..');
const built = readFileSync(join(root, 'build/Release/attention_bias.node'));
const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string };
const platform = `${process.platform}-${process.arch}`;
let app: string;
let installed: string; // attention-bias, without an addon

beforeAll(() => {
  app = mkdtempSync(join(tmpdir(), 'attention-bias-loader-'));
  const modules = join(app, 'node_modules');
  installed = join(modules, 'attention-bias');
  mkdirSync(installed, { recursive: true });
  for (const name of ['dist', 'index.mjs', 'package.json', 'scripts'])
    cpSync(join(root, name), join(installed, name), { recursive: true });
  for (const name of readdirSync(join(root, 'node_modules')))
    if (!name.startsWith('@attention-bias'))
      symlinkSync(join(root, 'node_modules', name), join(modules, name));
});
afterAll(() => {
  rmSync(app, { recursive: true });
});
afterEach(() => {
  rmSync(join(app, 'node_modules/@attention-bias'), { recursive: true, force: true });
  rmSync(join(installed, 'build'), { recursive: true, force: true });
});

/** A prebuilt package as scripts/prebuild.js makes them, whose file is `bytes` by now. */
function install(name: string, bytes: Uint8Array, { packed = bytes, as = version } = {}): void {
  const folder = join(app, 'node_modules', name);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'attention_bias.node'), bytes);
  const sha256 = createHash('sha256').update(packed).digest('hex');
  const attentionBias = { bytes: packed.length, sha256, glibc: '2.34', nodeApi: 8 };
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, version: as, attentionBias }));
}

/** The addon's bytes after a change. */
function changed(change: (bytes: Buffer) => void): Buffer {
  const bytes = Buffer.from(built);
  change(bytes);
  return bytes;
}
const replaceAll = (bytes: Buffer, from: string, to: string): void => {
  for (let at = bytes.indexOf(from); at >= 0; at = bytes.indexOf(from, at + 1)) bytes.write(to, at, 'latin1');
};

/** What `open` says in the app: where the addon came from, or the error. */
function opened(env: NodeJS.ProcessEnv = {}, before = ''): string {
  const script = `${before};
    const { open } = require('attention-bias');
    open({ device: 'cpu' }).then(
      (device) => { device.close(); console.log(require('./node_modules/attention-bias/dist/native.js').nativeOrigin()); },
      (error) => console.log(error.code, error.message));`;
  const options = {
    cwd: app,
    encoding: 'utf8',
    env: { ...process.env, ATTENTION_BIAS_BINARY: '', ...env },
  } as const;
  const { stdout, stderr, signal } = spawnSync(process.execPath, ['-e', script], options);
  return `${stdout}${stderr}${signal ?? ''}`.trim();
}

const command = /Run: node ".*scripts\/install\.js"$/;

describe('what is taken', () => {
  test('the package with CUDA, then the one without, then the local build', () => {
    mkdirSync(join(installed, 'build/Release'), { recursive: true });
    writeFileSync(join(installed, 'build/Release/attention_bias.node'), built);
    expect(opened()).toBe('local build');
    install(`@attention-bias/${platform}`, built);
    expect(opened()).toBe(`@attention-bias/${platform}`);
    install(`@attention-bias/${platform}-cuda`, built);
    expect(opened()).toBe(`@attention-bias/${platform}-cuda`);
    const path = join(root, 'build/Release/attention_bias.node');
    expect(opened({ ATTENTION_BIAS_BINARY: path })).toBe(path);
  });

  test('the local build where the package does not load', () => {
    mkdirSync(join(installed, 'build/Release'), { recursive: true });
    writeFileSync(join(installed, 'build/Release/attention_bias.node'), built);
    install(`@attention-bias/${platform}`, built.subarray(0, 5000), { packed: built });
    expect(opened()).toBe('local build');
  });

  test('nothing is built where npm installs beside a package that loads', () => {
    install(`@attention-bias/${platform}`, built);
    const env = {
      ...process.env,
      npm_lifecycle_event: 'install',
      PATH: '',
      ATTENTION_BIAS_CUDA: '',
      ATTENTION_BIAS_BUILD: '',
    };
    const run = () =>
      spawnSync(process.execPath, [join(installed, 'scripts/install.js')], { env, encoding: 'utf8' });
    const { status, stderr } = run();
    expect([status, stderr]).toEqual([
      0,
      `attention-bias: @attention-bias/${platform} is installed and loads: nothing is built\n`,
    ]);
    // One that does not load is no reason.
    install(`@attention-bias/${platform}`, built.subarray(0, 5000), { packed: built });
    expect(run().stderr).toMatch(/no C\+\+ compiler was found/);
  });
});

describe('what is said', () => {
  test('without a prebuilt package and a build: that npm may not have run the script, and the command', () => {
    expect(opened()).toMatch(/^ERR_DEVICE the native addon was not built \(npm runs the install scripts/);
    expect(opened()).toMatch(command);
  });

  test('on a platform without prebuilt packages', () => {
    const said = opened({}, "Object.defineProperty(process, 'arch', { value: 'riscv64' })");
    expect(said).toMatch(
      /^ERR_DEVICE .*no prebuilt package @attention-bias\/linux-riscv64 .* on linux-riscv64, Node\.js v/,
    );
    expect(said).toMatch(command);
  });

  test.each([
    [
      'a truncated file',
      () => built.subarray(0, built.length / 2),
      /its file is damaged: \d+ bytes in place of \d+/,
    ],
    ['an empty file', () => new Uint8Array(0), /it is no addon for Linux \(no ELF file\)/],
    ['a file of zeros', () => new Uint8Array(built.length), /it is no addon for Linux \(no ELF file\)/],
    [
      'a file with other bytes in it',
      () => changed((bytes) => bytes.writeUInt16LE(7, 54)), // the size of a program header
      /its file is damaged \(SHA-256 differs\): .*phentsize/,
    ],
    [
      'another architecture',
      () => changed((bytes) => bytes.writeUInt16LE(process.arch === 'x64' ? 0xb7 : 0x3e, 18)),
      /it is for another processor \((arm64|x64)\), and this Node\.js runs on (x64|arm64)/,
    ],
  ] as const)('of a package with %s', (_, bytes, words) => {
    install(`@attention-bias/${platform}`, bytes(), { packed: built });
    const said = opened();
    expect(said).toMatch(
      new RegExp(`^ERR_DEVICE the prebuilt package @attention-bias/${platform} does not load: `),
    );
    expect(said).toMatch(words);
    expect(said).toMatch(command);
  });

  test('of a package that needs a newer glibc', () => {
    const newer = changed((bytes) => replaceAll(bytes, 'GLIBC_2.34\0', 'GLIBC_2.94\0'));
    install(`@attention-bias/${platform}`, newer);
    const said = opened();
    expect(said).toMatch(/it needs glibc 2\.94 or later, and this system has 2\.\d+: build it here on linux/);
    expect(said).toMatch(command);
  });

  test('of a package of another version', () => {
    install(`@attention-bias/${platform}`, built, { as: '0.0.9' });
    expect(opened()).toMatch(`it is version 0.0.9, and attention-bias is version ${version}`);
  });

  test('of the file that ATTENTION_BIAS_BINARY names', () => {
    const path = join(app, 'other.node');
    expect(opened({ ATTENTION_BIAS_BINARY: path })).toMatch(
      /ATTENTION_BIAS_BINARY=.*other\.node does not load on .*ENOENT.*Run: unset ATTENTION_BIAS_BINARY$/,
    );
    writeFileSync(path, 'nothing of the kind');
    expect(opened({ ATTENTION_BIAS_BINARY: path })).toMatch(/it is no addon for Linux/);
  });
});
