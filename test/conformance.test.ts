/**
 * The conformance vectors (vectors/README.md): every case of the operations that are built, on every instruction set level
 * of this machine, on 1, 2 and 3 threads; and every job that must be refused, also by the command line.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import type { Device, Precision } from '../lib/device.js';
import { AttentionBiasError } from '../lib/errors.js';
import type { HostTensor } from '../lib/formats/host.js';
import { openSafetensors } from '../lib/formats/safetensors.js';
import { open } from '../lib/index.js';
import { runJob, type JobOutputs } from '../lib/job.js';
import { native } from '../lib/native.js';
import { openCuda } from '../lib/open.js';
import type { NativeBinding } from '../lib/binding.js';
import { compareOutputs, operations } from '../lib/conformance.js';
import { temporaryFolder } from './formats/temporary.js';

const vectors = join(__dirname, 'vectors');
const command = join(__dirname, '../dist/cli/main.js');

interface Case {
  name: string;
  op: string;
}

const folders = readdirSync(vectors, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name);
const bad = folders.filter((name) => existsSync(join(vectors, name, 'expect-error.json')));
const cases: Case[] = folders
  .filter((name) => !bad.includes(name))
  .map((name) => ({ name, op: (JSON.parse(readFileSync(jobOf(name), 'utf8')) as { op: string }).op }));
const built = cases.filter(({ op }) => operations.includes(op));

function jobOf(name: string): string {
  return join(vectors, name, 'job.json');
}

function count(names: readonly string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) counts[name] = (counts[name] ?? 0) + 1;
  return counts;
}

test('no case is left out', () => {
  expect(count(built.map(({ op }) => op))).toEqual({
    attention: 75,
    'attention-backward': 43,
    bias: 52,
    multihead: 9,
    router: 4,
    project: 3,
    deformable: 3,
    'deformable-backward': 2,
  });
  expect(built).toEqual(cases);
  expect(bad).toHaveLength(12);
});

const bits = (outputs: JobOutputs): Record<string, Buffer> =>
  Object.fromEntries(
    Object.entries(outputs).map(([name, { data }]) => {
      return [name, Buffer.from(data.buffer, data.byteOffset, data.byteLength)];
    }),
  );

async function openWith(isa: string, threads: number, precision: Precision = 'f32'): Promise<Device> {
  process.env.ATTENTION_BIAS_ISA = isa;
  try {
    const device = await open({ device: 'cpu', threads, precision });
    expect(device.info).toMatchObject({ backend: 'cpu', isa, threads });
    return device;
  } finally {
    delete process.env.ATTENTION_BIAS_ISA;
  }
}

const levels = native().info().isas;
const machines = levels.flatMap((isa) => [1, 2, 3].map((threads) => ({ isa, threads })));

describe.each(machines)('$isa on $threads threads', ({ isa, threads }) => {
  let device: Device;
  let twin: Device;
  beforeAll(async () => {
    device = await openWith(isa, threads);
    twin = await openWith(isa, threads);
  });
  afterAll(() => {
    device.close();
    twin.close();
  });

  test.each(built)('$name', async ({ name, op }) => {
    const outputs = await runJob(jobOf(name), { device });
    await using expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
    const problems = await compareOutputs(op, outputs, expected, 'f32');
    expect({ name, problems }).toEqual({ name, problems: [] });

    const again = await runJob(jobOf(name), { device: twin });
    expect({ name, bits: bits(again) }).toEqual({ name, bits: bits(outputs) });
  });

  test.each(bad)('%s is refused', async (name) => {
    const { stderrContains: words } = expectedError(name);
    const error = await runJob(jobOf(name), { device }).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(AttentionBiasError);
    expect(missingWords((error as Error).message, words)).toEqual([]);
  });
});

describe.each(levels)('%s, bf16', (isa) => {
  let device: Device;
  beforeAll(async () => {
    device = await openWith(isa, 2, 'bf16');
  });
  afterAll(() => {
    device.close();
  });

  test.each(built.filter(({ op }) => op === 'attention' || op === 'multihead'))(
    '$name',
    async ({ name, op }) => {
      const outputs = await runJob(jobOf(name), { device });
      await using expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
      const problems = await compareOutputs(op, outputs, expected, 'bf16');
      expect({ name, problems }).toEqual({ name, problems: [] });
    },
  );
});

/** The CUDA backend upon the emulator (test/native/emulator.h), built by scripts/build-emulated.js where CMake is there. */
const emulated =
  process.env.ATTENTION_BIAS_EMULATED_BINARY ??
  join(__dirname, '../build-emulated/Release/attention_bias.node');
const canEmulate = spawnSync('cmake', ['--version']).status === 0;
const precisions = ['f32', 'tf32', 'bf16'] as const;

(canEmulate ? describe : describe.skip).each(precisions)('CUDA, emulated, %s', (precision) => {
  let device: Device;
  beforeAll(async () => {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
    device = await openCuda(require(emulated) as NativeBinding, 0, 'device', { precision });
    expect(device.info).toMatchObject({ backend: 'cuda', name: 'emulated on the CPU' });
  });
  afterAll(() => {
    device.close();
  });

  test.each(built)('$name', async ({ name, op }) => {
    const outputs = await runJob(jobOf(name), { device });
    await using expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
    const problems = await compareOutputs(op, outputs, expected, precision);
    expect({ name, problems }).toEqual({ name, problems: [] });
    expect({ name, bits: bits(await runJob(jobOf(name), { device })) }).toEqual({
      name,
      bits: bits(outputs),
    });
  });
});

interface ExpectedError {
  exit: number;
  stderrContains: string[];
}

function expectedError(name: string): ExpectedError {
  return JSON.parse(readFileSync(join(vectors, name, 'expect-error.json'), 'utf8')) as ExpectedError;
}

/** Upper and lower case alike. The case's paths are left out: they hold some of the words. */
function missingWords(line: string, words: readonly string[]): string[] {
  const said = line.replaceAll(vectors, '').replaceAll('tensors.safetensors', '').toLowerCase();
  return words.filter((word) => !said.includes(word.toLowerCase()));
}

describe('attention-bias run', () => {
  function run(job: string, out: string) {
    return spawnSync(process.execPath, [command, 'run', job, '--out', out], {
      encoding: 'utf8',
      timeout: 60_000,
    });
  }

  beforeAll(() => {
    if (!existsSync(command)) throw new Error(`${command} is missing: npm run build`);
  });

  test.each(bad)('%s is refused in one line, and leaves nothing behind', async (name) => {
    await using folder = await temporaryFolder();
    const { status, stderr, stdout } = run(jobOf(name), folder.file('out.safetensors'));
    const { exit, stderrContains: words } = expectedError(name);
    expect({ status, stdout, lines: stderr.split('\n').length }).toEqual({
      status: exit,
      stdout: '',
      lines: 2,
    });
    expect(stderr).toMatch(/^attention-bias: .*\n$/);
    expect(missingWords(stderr, words)).toEqual([]);
    expect(await folder.names()).toEqual([]);
  });

  test.each([
    'aqr-6-cameras.attention',
    'aqr-6-cameras.bias',
    'multihead-full',
    'router-0',
    'project-6-cameras',
    'deformable-0.backward',
  ])('writes %s', async (name) => {
    await using folder = await temporaryFolder();
    const { status, stderr, stdout } = run(jobOf(name), folder.file('out.safetensors'));
    expect({ status, stdout, lines: stderr.split('\n').length }).toEqual({
      status: 0,
      stdout: '',
      lines: 2,
    });
    await using expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
    await using written = await openSafetensors(folder.file('out.safetensors'));
    const outputs: Record<string, HostTensor> = {};
    for (const output of written.tensors.keys()) outputs[output] = await written.read(output);
    const { op } = built.find((item) => item.name === name) ?? { op: '' };
    expect(await compareOutputs(op, outputs as unknown as JobOutputs, expected, 'f32')).toEqual([]);
  });
});
