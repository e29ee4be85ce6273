import { realpath } from 'node:fs/promises';
import type { CommandModule } from 'yargs';

import type { DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import { checkTarget } from '../formats/atomic.js';
import { writeSafetensors } from '../formats/safetensors.js';
import { filesOfTensors, resolveTensors } from '../formats/tensors-file.js';
import { readJob, runJob } from '../job.js';
import { abortable } from './abortable.js';
import { describeDevice, deviceOptions, openDevice, type DeviceOptions } from './device-options.js';

export interface RunOptions extends DeviceOptions {
  /** path of the job file */
  job: string;
  /** path of the safetensors file to write */
  out: string;
}

/** What a run did, as --json prints it. */
export interface RunSummary {
  op: string;
  out: string;
  /** the shape of each output */
  outputs: Record<string, readonly number[]>;
  device: DeviceInfo;
  /** milliseconds: reading and computing, writing */
  ms: { run: number; write: number };
}

/** Checks the output's path before the work, not after it: it may not be one of the inputs. */
async function requireApart(out: string, inputs: readonly string[]): Promise<void> {
  if (out === '') throw expected('ERR_VALUE', 'the path of a file', '--out', 'an empty one');
  const target = await checkTarget(out);
  for (const input of inputs) {
    const path = await realpath(input).catch(() => undefined); // reading it will say what is wrong
    if (path === target.path) throw expected('ERR_VALUE', 'a file other than the inputs', '--out', out);
  }
}

/** Runs a job file and writes its outputs, whole or not at all. Errors are those of `runJob`, `open` and the writer. */
export async function run(options: RunOptions, signal?: AbortSignal): Promise<RunSummary> {
  const { job: path, out } = options;
  const job = await readJob(path, { signal });
  await requireApart(out, [
    path,
    ...(job.tensors === undefined ? [] : filesOfTensors(resolveTensors(path, job.tensors))),
  ]);
  using device = await openDevice(options);
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

function describe({ op, out, outputs, device, ms }: RunSummary): string {
  const shapes = Object.entries(outputs).map(([name, shape]) => `${name} [${shape.join(', ')}]`);
  const where = describeDevice({ info: device });
  return `${op} on ${where}: ${ms.run.toFixed(1)} ms; wrote ${shapes.join(', ')} to ${out} in ${ms.write.toFixed(1)} ms`;
}

type RunArguments = RunOptions & { json: boolean };

export const runCommand: CommandModule<object, RunArguments> = {
  command: 'run <job>',
  describe: 'run a job file: one operation on the tensors of a safetensors, .npz or .npy file',
  builder: (yargs) =>
    yargs
      .positional('job', { type: 'string', demandOption: true, describe: 'the job, a JSON file' })
      .options({
        out: {
          type: 'string',
          demandOption: true,
          requiresArg: true,
          describe: 'safetensors file to write the outputs to',
        },
        ...deviceOptions,
        json: { type: 'boolean', default: false, describe: 'print a summary as JSON on stdout' },
      })
      .example('$0 run job.json --out out.safetensors', '')
      .epilogue(
        'A job names its operation (attention, attention-backward, bias, multihead, router, deformable, ' +
          'deformable-backward, project), its tensors (a .safetensors or .npz file, or an object of .npy files), and for ' +
          'each tensor of the operation a name there; paths are relative to the job. Exit codes: 2 for a wrong job, 3 for a ' +
          'device that is not there, 4 for a file that cannot be opened, read or written.',
      ),
  handler: async ({ json, ...options }) => {
    const summary = await abortable((signal) => run(options, signal));
    process.stderr.write(`${describe(summary)}\n`);
    if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  },
};
