import { arch, availableParallelism, release, totalmem } from 'node:os';
import type { CommandModule } from 'yargs';
import type { CudaStatus, NativeBinding } from '../binding.js';
import { AttentionBiasError } from '../errors.js';
import { native, nativeOrigin } from '../native.js';
import { open } from '../open.js';
import { selfTest } from '../self-test.js';
import { packageVersion } from '../version.js';

export interface Diagnosis {
  package: string;
  node: string;
  system: string;
  cores: number;
  memoryBytes: number;
  /** the addon: `local build`, the name of a prebuilt package, or the file that ATTENTION_BIAS_BINARY names */
  addon?: string;
  /** why the addon does not load, and what mends it; with it, nothing of what follows */
  problem?: string;
  processor?: string;
  compiler?: string;
  isas?: string[];
  isa?: string;
  threads?: number;
  cuda?: CudaStatus;
  /** the numeric self-test of the CPU backend: what failed */
  failures?: string[];
}

interface ReportHeader {
  header: { glibcVersionRuntime?: string };
}

function system(): string {
  const { glibcVersionRuntime } = (process.report.getReport() as ReportHeader).header;
  const libc = glibcVersionRuntime ? `, glibc ${glibcVersionRuntime}` : '';
  return `${process.platform} ${release()} ${arch()}${libc}`;
}

/** What this machine, this binary and its backends are. */
export async function diagnose(): Promise<Diagnosis> {
  const machine = {
    package: packageVersion(),
    node: process.version,
    system: system(),
    cores: availableParallelism(),
    memoryBytes: totalmem(),
  };
  let binding: NativeBinding;
  try {
    binding = native();
  } catch (error) {
    if (error instanceof AttentionBiasError) return { ...machine, problem: error.message };
    throw error;
  }
  const { processor, compiler, isas } = binding.info();
  using device = await open({ device: 'cpu' });
  const results = await selfTest(device);
  return {
    ...machine,
    addon: nativeOrigin(),
    processor,
    compiler,
    isas,
    ...(device.info.backend === 'cpu' && { isa: device.info.isa, threads: device.info.threads }),
    cuda: binding.cuda(true),
    failures: results
      .filter((result) => !result.passed)
      .map(({ name, error, tolerance }) => `${name}: error ${error}, at most ${tolerance}`),
  };
}

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function describeCuda(cuda: CudaStatus): string[] {
  const lines = [
    cuda.built
      ? `CUDA        toolkit ${cuda.toolkit} built in, for ${cuda.architectures}`
      : `CUDA        not built in: ${cuda.reason}`,
  ];
  if (!cuda.built) return lines;
  lines.push(
    `driver      ${cuda.driver === 0 ? 'none' : `CUDA ${Math.floor(cuda.driver / 1000)}.${(cuda.driver % 1000) / 10}`}`,
  );
  if (cuda.reason) lines.push(`devices     none usable: ${cuda.reason}`);
  cuda.devices.forEach((d, i) => {
    const what = `${d.name}, compute capability ${d.computeCapability}, ${d.multiprocessors} SMs, ${gib(d.memoryBytes)}`;
    lines.push(`device ${i}    ${what}; self-test ${d.selfTest === '' ? 'passed' : `FAILED: ${d.selfTest}`}`);
  });
  return lines;
}

function describe(d: Diagnosis): string {
  const machine = [
    `package     attention-bias ${d.package}, Node.js ${d.node}`,
    `system      ${d.system}, ${d.cores} cores, ${gib(d.memoryBytes)}`,
  ];
  const { isas = [], failures = [], cuda } = d;
  const addon =
    d.problem !== undefined || !cuda
      ? [`addon       FAILED: ${d.problem ?? 'unknown'}`]
      : [
          `addon       ${d.addon ?? ''}, built by ${d.compiler ?? ''}`,
          `processor   ${d.processor ?? ''}`,
          `CPU         ${d.isa ?? ''} of ${isas.join(', ')}; ${d.threads ?? 0} threads`,
          ...describeCuda(cuda),
          `self-test   ${failures.length === 0 ? 'passed' : `FAILED: ${failures.join('; ')}`}`,
        ];
  return [...machine, ...addon, ''].join('\n');
}

export const doctorCommand: CommandModule<object, { json: boolean }> = {
  command: 'doctor',
  describe:
    'what this machine offers and whether it computes right; exit code 1 if a self-test fails, 3 without the addon',
  builder: (yargs) =>
    yargs.option('json', { type: 'boolean', default: false, describe: 'the same as JSON on stdout' }),
  handler: async ({ json }) => {
    const diagnosis = await diagnose();
    process.stdout.write(json ? `${JSON.stringify(diagnosis)}\n` : describe(diagnosis));
    const { problem, failures = [], cuda } = diagnosis;
    if (problem !== undefined) process.exitCode = 3;
    else if (failures.length > 0 || cuda?.devices.some(({ selfTest }) => selfTest !== ''))
      process.exitCode = 1;
  },
};
