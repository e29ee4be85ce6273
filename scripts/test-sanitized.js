// Runs jest's tests, one file after another, on the addon built under sanitizers, with its CPU backend and its emulated CUDA
// kernels. Arguments: address (AddressSanitizer, its leak check, UndefinedBehaviorSanitizer) or thread (ThreadSanitizer), then
// names of test files; without any, all that are about the addon.
//
//   node scripts/test-sanitized.js address memory.test tensor.test
//
// Node and V8 are not built so. What is reported of them alone does not count (docs/sanitizers.md).
'use strict';

const { spawnSync } = require('node:child_process');
const { mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs');
const { availableParallelism, tmpdir } = require('node:os');
const { join } = require('node:path');

const root = join(__dirname, '..');
const addon = 'attention_bias.node';

/** The tests about the addon. Those left out are about TypeScript alone, files, pages or speed. */
const aboutTheAddon = [
  'arguments',
  'auto',
  'backward',
  'conformance',
  'cuda',
  'deformable',
  'device',
  'memory',
  'multihead',
  'numerics',
  'operations',
  'process',
  'tensor',
  'terms',
];

/** Tests that are left out. */
const leftOut = [
  // Of time and of the process's size, which sanitizers change.
  'leave memory flat',
  'leaves the event loop free',
  'process.exit in the middle of an operation',
  'stops a running operation between tiles',
  'worker threads terminated in the middle of an operation',
  // Of what is taken where no device is named: here the emulated one.
  'by default takes all cores',
  'takes options before the environment',
];

// Too much memory is refused, as without a sanitizer; frames name their module.
const common = 'allocator_may_return_null=1:stack_trace_format="    #%n %f %S %M"';

const sanitizers = {
  address: {
    folder: 'build-sanitize',
    libraries: ['libasan.so', 'libubsan.so'],
    environment: (reports) => ({
      // A leak ends no process: it may be Node's. Errors do.
      ASAN_OPTIONS: `${common}:detect_leaks=1:log_path=${reports}`,
      LSAN_OPTIONS: 'exitcode=0',
      UBSAN_OPTIONS: `${common}:print_stacktrace=1:log_path=${reports}`,
    }),
  },
  thread: {
    folder: 'build-tsan',
    libraries: ['libtsan.so'],
    environment: (reports) => ({
      TSAN_OPTIONS: `${common}:log_path=${reports}:exitcode=0:report_signal_unsafe=0:history_size=5`,
    }),
  },
};

function run(command, args, options) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', ...options });
  if (error) throw error;
  return status ?? signal;
}

function build(sanitizer, folder) {
  const { include_dir: headers } = require('node-api-headers');
  const configure = [
    ['-S', root, '-B', join(root, folder)],
    ['-DATTENTION_BIAS_TESTS=ON', '-DATTENTION_BIAS_CUDA=off', '-DATTENTION_BIAS_EMULATED=ON'],
    [`-DATTENTION_BIAS_SANITIZE=${sanitizer}`, `-DCMAKE_JS_INC=${headers}`],
  ];
  const compile = [
    '--build',
    folder,
    '--target',
    'attention_bias',
    '--parallel',
    String(availableParallelism()),
  ];
  for (const args of [configure.flat(), compile]) {
    const status = run('cmake', args);
    if (status !== 0) process.exit(1);
  }
}

/** Whether the addon is the first in a stack but for the runtime's, the standard library's and the sanitizer's functions. */
function isOfTheAddon(stack) {
  const frames = stack.split('\n').filter((line) => /^\s+#\d+ /.test(line));
  return (
    frames.find((frame) => !/\(lib(asan|tsan|ubsan|stdc\+\+|c)\.so/.test(frame))?.includes(addon) ?? false
  );
}

/**
 * The reports of one file that count, as texts. All errors of AddressSanitizer and UndefinedBehaviorSanitizer do, which end the
 * process. A leak does where the addon took the memory, and a race where one of the two accesses is the addon's: of Node's and
 * V8's own, ThreadSanitizer does not see what orders them.
 */
function reportsIn(text) {
  const reports = text.split(/^(?==+$|(?:Direct|Indirect) leak of )/m);
  return reports.filter((report) => {
    if (/ERROR: AddressSanitizer|runtime error: /.test(report)) return true;
    const stacks = report.split('\n\n');
    return stacks.some((stack) => !/^\s+(Location|Mutex|Thread) /.test(stack) && isOfTheAddon(stack));
  });
}

function main([name, ...wanted]) {
  const sanitizer = sanitizers[name];
  if (!sanitizer) {
    console.error(`expected address or thread for the first argument but received ${name ?? 'none'}`);
    return 2;
  }
  build(name, sanitizer.folder);
  const reports = mkdtempSync(join(tmpdir(), 'attention-bias-reports-'));
  const libraries = sanitizer.libraries.map((library) =>
    spawnSync('gcc', [`-print-file-name=${library}`], { encoding: 'utf8' }).stdout.trim(),
  );
  const env = {
    ...process.env,
    ...sanitizer.environment(join(reports, 'report')),
    LD_PRELOAD: libraries.join(':'),
    ATTENTION_BIAS_BINARY: join(root, sanitizer.folder, addon),
    ATTENTION_BIAS_EMULATED_BINARY: join(root, sanitizer.folder, addon),
    // The emulated devices would be taken for real ones.
    ATTENTION_BIAS_DEVICE: 'cpu',
  };
  const names = wanted.length > 0 ? wanted : [...aboutTheAddon, 'soak'];
  const files = names
    .filter((each) => each !== 'soak')
    .map((each) => `/${each.replace(/\.test$/, '')}\\.test\\.ts$`);
  const pattern = `^(?!.*(${leftOut.join('|')}))`;
  let failed = false;
  if (files.length > 0) {
    const jest = [require.resolve('jest/bin/jest'), '--runInBand', '--testTimeout=900000'];
    failed = run(process.execPath, [...jest, `--testNamePattern=${pattern}`, ...files], { env }) !== 0;
  }
  if (names.includes('soak')) {
    const soak = ['test/process/soak.cjs', '--seconds', '60', '--allowance', 'Infinity'];
    failed = run(process.execPath, soak, { env }) !== 0 || failed;
  }
  const all = readdirSync(reports).map((file) => readFileSync(join(reports, file), 'utf8'));
  rmSync(reports, { recursive: true });
  const ours = [...new Set(all.flatMap(reportsIn))];
  for (const report of ours) console.error(report);
  console.log(
    `${name}: ${all.length} processes reported something, ${ours.length} reports are about the addon`,
  );
  return failed || ours.length > 0 ? 1 : 0;
}

process.exitCode = main(process.argv.slice(2));
