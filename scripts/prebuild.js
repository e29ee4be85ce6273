// Makes the prebuilt packages, stripped, and the main package that has them as optional dependencies:
//
//   node scripts/prebuild.js [--out build-packages] [--from ADDON] PACKAGE…
//
// PACKAGE is linux-x64, linux-x64-cuda, linux-arm64, or main. Each is built by CMake in a folder of its own
// (build-PACKAGE); --from takes an addon that is there already, such as build/Release/attention_bias.node. The tarballs lie in
// the output folder, and manifest.json beside them says of each: its bytes, its SHA-256, and of its addon the bytes, the SHA-256,
// the oldest glibc and, with CUDA, the architectures.
'use strict';

const { execFileSync } = require('node:child_process');
const { createHash } = require('node:crypto');
const {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} = require('node:fs');
const { availableParallelism, tmpdir } = require('node:os');
const { join, resolve } = require('node:path');
const { parseArgs } = require('node:util');

const root = join(__dirname, '..');
const { version, license, engines, binary } = require('../package.json');

/** Of the CUDA package: each with code of its own, and the newest for those to come. */
const CUDA_ARCHITECTURES = '80-real;86-real;89-real;90-real;100-real;120-real;120-virtual';

/** Greatest size of a tarball with CUDA: what npm's users bear. */
const MOST_CUDA_BYTES = 60e6;

const packages = {
  'linux-x64': { cpu: 'x64', cuda: false, strip: 'strip', objdump: 'objdump', cmake: [] },
  'linux-x64-cuda': { cpu: 'x64', cuda: true, strip: 'strip', objdump: 'objdump', cmake: [] },
  'linux-arm64': {
    cpu: 'arm64',
    cuda: false,
    strip: 'aarch64-linux-gnu-strip',
    objdump: 'aarch64-linux-gnu-objdump',
    cmake: [
      '-DCMAKE_SYSTEM_NAME=Linux',
      '-DCMAKE_SYSTEM_PROCESSOR=aarch64',
      '-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++',
    ],
  },
};

/** Where the packages come from, which provenance holds against what builds them: known where GitHub does. */
const origin = process.env.GITHUB_REPOSITORY
  ? {
      repository: {
        type: 'git',
        url: `git+${process.env.GITHUB_SERVER_URL ?? 'https://github.com'}/${process.env.GITHUB_REPOSITORY}.git`,
      },
    }
  : {};

const run = (command, ...args) => execFileSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
const read = (command, ...args) =>
  execFileSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 2 ** 28 });
const sha256 = (path) => createHash('sha256').update(readFileSync(path)).digest('hex');
const writeJson = (path, value) => writeFileSync(path, `${JSON.stringify(value, null, 2)}\n`);

/** The addon of a package, built. */
function build(name, { cuda, cmake }) {
  const folder = join(root, `build-${name}`);
  const architectures = process.env.ATTENTION_BIAS_CUDA_ARCHITECTURES ?? CUDA_ARCHITECTURES;
  run(
    'cmake',
    ...['-S', root, '-B', folder, ...cmake],
    `-DCMAKE_JS_INC=${require('node-api-headers').include_dir}`,
    `-DATTENTION_BIAS_CUDA=${cuda ? 'on' : 'off'}`,
    ...(cuda ? [`-DATTENTION_BIAS_CUDA_ARCHITECTURES=${architectures}`] : []),
  );
  run('cmake', '--build', folder, '--target', 'attention_bias', '--parallel', String(availableParallelism()));
  return join(folder, 'attention_bias.node');
}

/** The oldest glibc that an addon loads with. It may need no other library that a system could lack. */
function oldestGlibc(objdump, path) {
  const needed = [...read(objdump, '-p', path).matchAll(/NEEDED\s+(\S+)/g)].map(([, library]) => library);
  const foreign = needed.filter(
    (name) => !/^(libc|libm|libdl|libpthread|librt|libgcc_s|ld-linux.*)\.so/.test(name),
  );
  if (foreign.length > 0) throw new Error(`${path} needs ${foreign.join(', ')}`);
  const versions = [...read(objdump, '-T', path).matchAll(/GLIBC_(\d+)\.(\d+)/g)];
  const [major, minor] = versions
    .map(([, a, b]) => [Number(a), Number(b)])
    .reduce((most, v) => (v[0] > most[0] || (v[0] === most[0] && v[1] > most[1]) ? v : most));
  return `${major}.${minor}`;
}

/** The architectures that the CUDA kernels in an addon are compiled for, as it says itself. */
function cudaOf(path) {
  const script = 'process.stdout.write(JSON.stringify(require(process.argv[1]).cuda(false)))';
  const { built, toolkit, architectures, reason } = JSON.parse(read(process.execPath, '-e', script, path));
  if (!built) throw new Error(`${path} has no CUDA: ${reason}`);
  return { toolkit, architectures };
}

/** Packs a folder. */
function pack(folder, out) {
  const [packed] = JSON.parse(
    execFileSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', out], {
      cwd: folder,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 2],
    }),
  );
  return packed.filename;
}

function platformPackage(short, out, from) {
  const target = packages[short];
  const name = `@attention-bias/${short}`;
  const folder = join(out, short);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const addon = join(folder, 'attention_bias.node');
  cpSync(from ?? build(short, target), addon);
  run(target.strip, '--strip-unneeded', addon);
  const attentionBias = {
    bytes: statSync(addon).size,
    sha256: sha256(addon),
    glibc: oldestGlibc(target.objdump, addon),
    nodeApi: binary.napi_versions[0],
    ...(target.cuda && cudaOf(addon)),
  };
  const what = `${target.cuda ? 'CUDA and CPU backends' : 'CPU backend'} of attention-bias, prebuilt for Linux ${target.cpu}`;
  writeJson(join(folder, 'package.json'), {
    name,
    version,
    description: `The ${what}`,
    license,
    ...origin,
    main: 'attention_bias.node',
    files: ['attention_bias.node'],
    engines,
    os: ['linux'],
    cpu: [target.cpu],
    libc: ['glibc'],
    preferUnplugged: true,
    attentionBias,
  });
  cpSync(join(root, 'LICENSE'), join(folder, 'LICENSE'));
  writeFileSync(
    join(folder, 'README.md'),
    `# ${name}\n\nThe ${what} (glibc ${attentionBias.glibc} or later). attention-bias loads it; there is no need to install it by name.\n`,
  );
  const tarball = pack(folder, out);
  const { size } = statSync(join(out, tarball));
  if (target.cuda && size >= MOST_CUDA_BYTES)
    throw new Error(`${tarball} has ${size} bytes, ${MOST_CUDA_BYTES} at most`);
  return { package: name, version, tarball, addon: attentionBias };
}

/** The main package as it is published: its optional dependencies are published at the same time, of the same version. */
function mainPackage(out) {
  const work = mkdtempSync(join(tmpdir(), 'attention-bias-pack-'));
  try {
    const [plain] = JSON.parse(
      execFileSync('npm', ['pack', '--json', '--silent', '--pack-destination', work], {
        cwd: root,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 2],
      }).replace(/^[^[]*/, ''),
    );
    run('tar', '-xzf', join(work, plain.filename), '-C', work);
    const folder = join(work, 'package');
    const path = join(folder, 'package.json');
    const optionalDependencies = Object.fromEntries(
      Object.keys(packages).map((short) => [`@attention-bias/${short}`, version]),
    );
    writeJson(path, { ...JSON.parse(readFileSync(path, 'utf8')), ...origin, optionalDependencies });
    return { package: 'attention-bias', version, tarball: pack(folder, out) };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { out: { type: 'string', default: join(root, 'build-packages') }, from: { type: 'string' } },
  });
  const known = [...Object.keys(packages), 'main'];
  const unknown = positionals.find((name) => !known.includes(name));
  if (unknown !== undefined || positionals.length === 0) {
    throw new Error(`expected names among ${known.join(', ')} but received ${unknown ?? 'none'}`);
  }
  if (values.from !== undefined && (positionals.length !== 1 || positionals[0] === 'main')) {
    throw new Error('expected one platform with --from');
  }
  const out = resolve(values.out);
  mkdirSync(out, { recursive: true });
  const path = join(out, 'manifest.json');
  const manifest = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : {};
  for (const name of positionals) {
    const made =
      name === 'main' ? mainPackage(out) : platformPackage(name, out, values.from && resolve(values.from));
    const tarball = join(out, made.tarball);
    manifest[made.package] = { ...made, bytes: statSync(tarball).size, sha256: sha256(tarball) };
  }
  writeJson(path, manifest);
  process.stdout.write(`${JSON.stringify(manifest, null, 2)}\n`);
}

main();
