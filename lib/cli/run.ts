import type { CommandModule } from 'yargs';

import type { Device, OpenOptions, Precision } from '../device.js';
import { AttentionBiasError } from '../errors.js';
import { checkTarget } from '../formats/atomic.js';
import { writeSafetensors } from '../formats/safetensors.js';
import { open } from '../index.js';
import { readJob, runJob } from '../job.js';

export interface RunOptions {
  /** path of the job file */
  job: string;
  /** path of the safetensors file to write */
  out: string;
  /** as in `OpenOptions`, whose checks these meet in `open` */
  device: string | undefined;
  precision: Precision | undefined;
  threads: number | undefined;
}

/** What a run did, as --json prints it. */
export interface RunSummary {
  op: string;
  out: string;
  /** the shape of each output */
  outputs: Record<string, readonly number[]>;
  device: Device['info'];
  /** milliseconds: reading and computing, writing */
  ms: { run: number; write: number };
}

/** Runs a job file and writes its outputs, whole or not at all. Errors are those of `runJob`, `open` and the writer. */
export async function run(options: RunOptions, signal?: AbortSignal): Promise<RunSummary> {
  const { job: path, out, precision, threads } = options;
  const job = await readJob(path, { signal });
  await checkTarget(out); // before the work, not after it
  using device = await open({
    ...(options.device === undefined ? {} : { device: options.device as NonNullable<OpenOptions['device']> }),
    ...(precision === undefined ? {} : { precision }),
    ...(threads === undefined ? {} : { threads }),
  });
  const start = performance.now();
  const outputs = await runJob(path, { device, signal }, job);
  const computed = performance.now();
  await writeSafetensors(out, outputs, { signal });
  const written = performance.now();
  const shapes = Object.entries(outputs).map(([output, { shape }]) => [output, [...shape]] as const);
  for (const tensor of Object.values(outputs)) tensor.dispose();
  return {
    op: job.op,
    out,
    outputs: Object.fromEntries(shapes),
    device: device.info,
    ms: { run: computed - start, write: written - computed },
  };
}

/**
 * Calls `work` with a signal that Ctrl-C (SIGINT) and SIGTERM abort, so that it can take back what it has half done; then
 * the process ends by that same signal, as its parent expects. A second Ctrl-C ends it at once.
 */
export async function abortable<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let received: NodeJS.Signals | undefined;
  const abort = (signal: NodeJS.Signals): void => {
    received = signal;
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
    controller.abort(new Error(signal));
  };
  process.on('SIGINT', abort);
  process.on('SIGTERM', abort);
  try {
    return await work(controller.signal);
  } catch (error) {
    if (received && error instanceof AttentionBiasError && error.code === 'ERR_ABORTED') {
      process.kill(process.pid, received);
      await new Promise((resolve) => setTimeout(resolve, 1000)); // the signal ends the process meanwhile
    }
    throw error;
  } finally {
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
  }
}

function describe({ op, out, outputs, device, ms }: RunSummary): string {
  const shapes = Object.entries(outputs).map(([name, shape]) => `${name} [${shape.join(', ')}]`);
  const where = `${device.backend} ${device.isa}, ${device.threads} thread${device.threads === 1 ? '' : 's'}`;
  return `${op} on ${where}: ${ms.run.toFixed(1)} ms; wrote ${shapes.join(', ')} to ${out} in ${ms.write.toFixed(1)} ms`;
}

type RunArguments = RunOptions & { json: boolean };

export const runCommand: CommandModule<object, RunArguments> = {
  command: 'run <job>',
  describe: 'run a job file: one operation on the tensors of a safetensors file',
  builder: (yargs) =>
    yargs
      .positional('job', { type: 'string', demandOption: true, describe: 'the job, a JSON file' })
      .options({
        out: { type: 'string', demandOption: true, requiresArg: true, describe: 'safetensors file to write the outputs to' },
        device: { type: 'string', requiresArg: true, describe: 'auto, cpu, cuda or cuda:N' },
        precision: { choices: ['f32', 'tf32', 'bf16'] as const, requiresArg: true, describe: 'of the arithmetic' },
        threads: { type: 'number', requiresArg: true, describe: 'CPU threads' },
        json: { type: 'boolean', default: false, describe: 'print a summary as JSON on stdout' },
      })
      .example('$0 run job.json --out out.safetensors', '')
      .epilogue(
        'A job names its operation (attention, bias, router, project), its tensors file, and for each tensor of the ' +
          'operation a name in that file; the file path is relative to the job. Exit codes: 2 for a wrong job, 3 for a ' +
          'device that is not there, 4 for a file that cannot be opened, read or written.',
      ),
  handler: async ({ json, ...options }) => {
    const summary = await abortable((signal) => run(options, signal));
    process.stderr.write(`${describe(summary)}\n`);
    if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  },
};
