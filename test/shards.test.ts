import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { appendFile, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import type { Device } from '../lib/device.js';
import { AttentionBiasError } from '../lib/errors.js';
import {
  bfloat16ToFloat32,
  float32ToBfloat16,
  float32ToHalf,
  halfToFloat32,
  type HostTensor,
} from '../lib/formats/host.js';
import { readNpy, readNpz, writeNpy } from '../lib/formats/npy.js';
import { openSafetensors } from '../lib/formats/safetensors.js';
import { planRun, runShard, type Run, type RunOptions } from '../lib/pipeline/run.js';
import { openZip } from '../lib/pipeline/shard-npz.js';
import { readItemLines } from '../lib/pipeline/sidecar.js';
import { digests, writeJobs } from './pipeline-run.js';
import { fakeDevice } from './fake-device.js';
import { temporaryFolder } from './formats/temporary.js';
import { errorOf, expectError, random as randomSource } from './support.js';

// The version is part of what shards are named by.
jest.mock('../lib/version.js', () => ({ packageVersion: () => '0.0.0-test' }));

/** A device whose results hold what they are computed from. */
function countingDevice(): Device {
  const { device } = fakeDevice();
  let calls = 0;
  return {
    ...device,
    attention: async (args) => {
      const results = await device.attention(args);
      const query = args.query as HostTensor<'float32'>;
      results.out.data.set(query.data.subarray(0, results.out.data.length));
      results.lse.data.fill(1 / 3);
      calls += 1;
      return results;
    },
    get info() {
      return { backend: 'cpu', name: String(calls), isa: 'none', threads: 1 } as const;
    },
  };
}
const callsOf = (device: Device): number => Number(device.info.name);

async function runAll(options: RunOptions, device = countingDevice()): Promise<Run> {
  const run = await planRun(options);
  for (let shard = 0; shard < run.shards; ++shard) await runShard(run, shard, { device });
  return run;
}

describe('float32 to two bytes', () => {
  const float = (bits: number): number => new Float32Array(Uint32Array.of(bits).buffer)[0]!;
  const bitsOf = (value: number): number => new Uint32Array(Float32Array.of(value).buffer)[0]!;

  test.each([
    ['half', float32ToHalf, halfToFloat32, 0x7c00],
    ['bfloat16', float32ToBfloat16, bfloat16ToFloat32, 0x7f80],
  ] as const)(
    '%s: to the nearest, ties to even, for every number and between every two',
    (_, narrow, widen, infinity) => {
      const all = Uint16Array.from({ length: 65536 }, (_, i) => i);
      const wide = widen(all);
      const back = narrow(wide);
      const quiet = infinity === 0x7c00 ? 0 : 0x40; // bfloat16 sets NaN's first bit
      for (let i = 0; i < 65536; ++i) {
        const isNaN = (i & 0x7fff) > infinity;
        if (back[i] !== (isNaN ? i | quiet : i)) throw new Error(`${i} became ${back[i]}`);
      }
      // Between i and the next number away from zero: the middle goes to the even one, its neighbours to the nearer.
      const [below, middle, above] = [-1, 0, 1].map((step) => {
        const between = Float32Array.from({ length: infinity }, (_, i) => {
          const next = i + 1 === infinity ? 2 * wide[i]! - wide[i - 1]! : wide[i + 1]!;
          return float(bitsOf((wide[i]! + next) / 2) + step);
        });
        return [narrow(between), narrow(between.map((x) => -x))];
      }) as [Uint16Array[], Uint16Array[], Uint16Array[]];
      for (let i = 1; i < infinity; ++i) {
        for (const [sign, bit] of [0, 0x8000].entries()) {
          const found = [below, middle, above].map((side) => side[sign]![i]);
          const expected = [i, i % 2 === 0 ? i : i + 1, i + 1].map((h) => h | bit);
          if (String(found) !== String(expected))
            throw new Error(`around ${i}: ${found.join()} for ${expected.join()}`);
        }
      }
      const nan = narrow(Float32Array.of(float(0x7f800001), float(0xffc00000)));
      expect([...nan].map((bits) => (bits & 0x7fff) > infinity)).toEqual([true, true]);
      expect([...narrow(Float32Array.of(Infinity, -Infinity, 3.4e38))]).toEqual([
        infinity,
        infinity | 0x8000,
        infinity,
      ]);
    },
  );
});

describe('a run', () => {
  test('has these files, whatever the machine', async () => {
    const stored = join(__dirname, 'shards.json');
    const listing = JSON.parse(await readFile(stored, 'utf8')) as object;
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 5);
    await appendFile(manifest, '{"job":"missing.json","key":"bad"}\n');
    const found: Record<string, Record<string, string>> = {};
    for (const [format, dtype] of [
      ['tar', 'f32'],
      ['tar', 'bf16'],
      ['safetensors', 'f32'],
      ['safetensors', 'bf16'],
      ['npz', 'f32'],
      ['npz', 'f16'],
    ] as const) {
      const out = folder.file(`${format}-${dtype}`);
      await runAll({ manifest, out, format, dtype, shardSize: 4 });
      found[`${format} ${dtype}`] = await digests(out);
    }
    // ATTENTION_BIAS_UPDATE=1 writes the listing anew, for a look at what has changed.
    if (process.env.ATTENTION_BIAS_UPDATE) await writeFile(stored, `${JSON.stringify(found, null, 2)}\n`);
    expect(found).toEqual(listing);
  });

  const small = async (folder: { path: string; file: (name: string) => string }, count = 5) => {
    const manifest = await writeJobs(folder.path, count);
    return { manifest, out: folder.file('out'), shardSize: 2 };
  };
  const shardFiles = async (out: string): Promise<string[]> => (await readdir(join(out, 'shards'))).sort();

  test.each([
    ['f32', 'float32'],
    ['bf16', 'bfloat16'],
  ] as const)('as safetensors of %s is read by this package', async (dtype, name) => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 3);
    await runAll({ ...options, format: 'safetensors', dtype, tensors: ['out'] });
    const [, file] = await shardFiles(options.out);
    await using shard = await openSafetensors(join(options.out, 'shards', file!));
    expect([...shard.tensors.keys()]).toEqual(['00000000/out', 'item-1/out']);
    const { data, shape, dtype: read } = await shard.read('item-1/out');
    expect({ read, shape }).toEqual({ read: name, shape: [1, 1, 2, 3] });
    const query = await readNpy(folder.file('q1.npy'));
    const expected = query.data.subarray(0, 6) as Float32Array;
    expect(data).toEqual(dtype === 'f32' ? expected : float32ToBfloat16(expected));
  });

  test('as npz is read by this package', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 3);
    await runAll({ ...options, format: 'npz', dtype: 'f16' });
    const [, file] = await shardFiles(options.out);
    const arrays = await readNpz(join(options.out, 'shards', file!));
    expect([...arrays.keys()]).toEqual(['00000000/out', '00000000/lse', 'item-1/out', 'item-1/lse']);
    expect(arrays.get('item-1/lse')).toEqual({
      data: halfToFloat32(Uint16Array.of(0x3555, 0x3555)),
      shape: [1, 1, 2],
      dtype: 'float32',
    });
  });

  test('that is finished is not computed again; one whose inputs changed is, and the old shard goes', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder);
    await runAll(options);
    const before = await digests(options.out);
    const device = countingDevice();
    await runAll(options, device);
    expect(callsOf(device)).toBe(0);
    expect(await digests(options.out)).toEqual(before);

    // Of another size, so that its content key is another.
    await writeNpy(folder.file('q3.npy'), { data: new Float32Array(24), shape: [1, 2, 1, 12] });
    await runAll(options, device);
    expect(callsOf(device)).toBe(2); // the two items of that shard
    const after = await digests(options.out);
    const same = Object.keys(before).filter((name) => after[name] === before[name]);
    expect(same.map((name) => name.slice(0, 13))).toEqual([
      'run.json',
      'shards/000000',
      'shards/000000',
      'shards/000002',
      'shards/000002',
    ]);
    expect(Object.keys(after)).toHaveLength(Object.keys(before).length);
  });

  test('of another kind does not touch the folder', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder);
    await runAll(options);
    const before = await digests(options.out);
    const words =
      /expected a folder of this run, or a new one, for the output \S+ but received run.json with /;
    for (const [other, difference] of [
      [{ shardSize: 3 }, 'shardSize 2 in place of 3'],
      [{ dtype: 'f16' }, 'dtype "f32" in place of "f16"'],
      [{ tensors: ['out'] }, 'tensors null in place of ["out"]'],
      [{ frame: { strength: 2 } }, 'frame.strength 5 in place of 2'],
      [{ precision: 'bf16' }, 'precision "f32" in place of "bf16"'],
    ] as [Partial<RunOptions>, string][]) {
      const error = await errorOf(() => runAll({ ...options, ...other }));
      expect(error.code).toBe('ERR_VALUE');
      expect(error.message).toMatch(words);
      expect(error.message).toContain(difference);
    }
    await appendFile(options.manifest, '{"job":"job.json","key":"one-more"}\n');
    await expectError(() => runAll(options), 'ERR_VALUE', 'manifest.sha256');
    expect(await digests(options.out)).toEqual(before);
    await writeFile(join(options.out, 'run.json'), 'notes');
    await expectError(() => runAll(options), 'ERR_VALUE', 'run.json with something else than a run');
  });

  test.each<[Partial<RunOptions>, string]>([
    [{ shardSize: 0 }, 'expected an integer from 1 to 1000000 for shardSize but received 0'],
    [{ format: 'npz', dtype: 'bf16' }, 'for the dtype of npz shards but received bf16'],
    [{ tensors: [] }, 'expected at least one name for tensors but received none'],
  ])('%j is refused', async (options, words) => {
    await expectError(() => planRun({ manifest: 'm', out: 'o', ...options }), 'ERR_VALUE', words);
  });

  test('notes failed items, and tries them again when asked', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 4);
    const kept = await readFile(folder.file('q2.npy'));
    // Of the same size, so that the shard keeps its key when the item is mended.
    await writeFile(folder.file('q2.npy'), new Uint8Array(kept.length));
    const run = await runAll(options);
    const device = countingDevice();
    const lines = async () => {
      const found = [];
      for (const name of await shardFiles(options.out))
        if (name.endsWith('.jsonl'))
          for await (const line of readItemLines(join(options.out, 'shards', name))) found.push(line);
      return found;
    };
    expect(await lines()).toEqual([
      {
        key: '00000000',
        index: 0,
        kind: 'job',
        source: 'job.json',
        ok: true,
        summary: expect.anything() as unknown,
      },
      expect.objectContaining({ key: 'item-1', ok: true }),
      {
        ...{ key: '00000002', index: 2, kind: 'job', source: 'job.json', ok: false, stage: 'read' },
        error: {
          code: 'ERR_FORMAT',
          message: expect.stringContaining('"q": expected a .npy file') as string,
        },
      },
      expect.objectContaining({ key: 'item-3', ok: true }),
    ]);
    expect(JSON.stringify(await lines())).not.toContain(folder.path);
    expect(await runShard(run, 1, { device })).toMatchObject({ skipped: true, items: 2, failed: 1 });
    expect(callsOf(device)).toBe(0);
    const before = await digests(options.out);
    expect(await runShard(run, 1, { device, retryFailed: true })).toMatchObject({ failed: 1 });
    expect(await digests(options.out)).toEqual(before);

    await writeFile(folder.file('q2.npy'), kept);
    expect(await runShard(run, 1, { device, retryFailed: true })).toMatchObject({
      skipped: false,
      failed: 0,
    });
    expect(await runShard(run, 1, { device, retryFailed: true })).toMatchObject({ skipped: true, failed: 0 });
    await rm(options.out, { recursive: true });
    await runAll(options);
    const undisturbed = await digests(options.out);
    await rm(options.out, { recursive: true });
    await writeFile(folder.file('q2.npy'), new Uint8Array(kept.length));
    await runAll(options);
    await writeFile(folder.file('q2.npy'), kept);
    await runShard(run, 1, { device, retryFailed: true });
    expect(await digests(options.out)).toEqual(undisturbed);
  });

  test('an item without any of the wanted tensors fails', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 2);
    const run = await planRun({ ...options, tensors: ['grad_query', 'bias'] });
    const errors: string[] = [];
    const onItem: Parameters<typeof runShard>[2]['onItem'] = (outcome) => {
      if (!outcome.ok) errors.push(`${outcome.item.key} ${outcome.error.message}`);
    };
    expect(await runShard(run, 0, { device: countingDevice(), onItem })).toMatchObject({
      items: 2,
      failed: 2,
    });
    const words =
      'expected an item with bias or grad_query for tensors but received an item with none of them';
    expect(errors).toEqual([`00000000 ${words}`, `item-1 ${words}`]);
  });

  test('a device that is lost, or an abort, is no failure of the item: nothing is written', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 2);
    const run = await planRun(options);
    const { device } = fakeDevice(new AttentionBiasError('ERR_DEVICE', 'the GPU is gone'));
    await expectError(() => runShard(run, 0, { device }), 'ERR_DEVICE', 'the GPU is gone');
    const controller = new AbortController();
    const onItem = (): void => controller.abort();
    await expectError(
      () => runShard(run, 0, { device: countingDevice(), signal: controller.signal, onItem }),
      'ERR_ABORTED',
    );
    expect(await shardFiles(options.out)).toEqual([]);
    for (const index of [-1, 1, 0.5])
      await expectError(() => runShard(run, index, { device }), 'ERR_VALUE', 'the shard', String(index));
  });

  test('leaves no temporary files of killed processes, and those of living ones only until the shard stands', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 2);
    const run = await planRun(options);
    const shards = join(options.out, 'shards');
    const stop = new Error('stop');
    const names: string[] = [];
    const onItem = (): void => {
      if (names.length > 0) return;
      names.push(...readdirSync(shards));
      throw stop;
    };
    await expect(runShard(run, 0, { device: countingDevice(), onItem })).rejects.toBe(stop);
    expect(await shardFiles(options.out)).toEqual([]);
    // What a process of ours leaves when it is killed: the same names, with the id of a process that has ended.
    const { pid } = spawnSync(process.execPath, ['--version']);
    const dead = names.map((name) => name.replace(`-${process.pid}-`, `-${pid}-`));
    const elsewhere = names.map((name) => name.replace(/\.[0-9a-f]{12}-\d+-/, '.0123456789ab-1-'));
    expect(new Set([...names, ...dead, ...elsewhere]).size).toBe(6);
    for (const name of [...names, ...dead, ...elsewhere, 'notes.txt'])
      await writeFile(join(shards, name), 'x');
    const again = await planRun(options);
    let left: string[] = [];
    const look = (): void => {
      left = readdirSync(shards);
    };
    await runShard(again, 0, { device: countingDevice(), onItem: look });
    expect(left).toEqual(expect.arrayContaining([...names, ...elsewhere]));
    expect(left).not.toEqual(expect.arrayContaining([dead[0]]));
    expect(await shardFiles(options.out)).toEqual([
      expect.stringMatching(/^000000-[0-9a-f]{16}\.jsonl$/),
      expect.stringMatching(/^000000-[0-9a-f]{16}\.tar$/),
      'notes.txt',
    ]);
  });

  test('a process that finds the shard finished by another when it is through leaves it', async () => {
    await using folder = await temporaryFolder();
    const options = await small(folder, 2);
    const [one, two] = [await planRun(options), await planRun(options)];
    let other: Promise<unknown> | undefined;
    const onItem = (): void => {
      other ??= runShard(two, 0, { device: countingDevice() });
    };
    const device = countingDevice();
    const attention = device.attention.bind(device);
    // The second item, begun only after the first, waits for the other process.
    device.attention = async (args) => {
      await other;
      return attention(args);
    };
    expect(await runShard(one, 0, { device, onItem, concurrency: 1 })).toMatchObject({
      skipped: true,
      items: 2,
      failed: 0,
    });
    const found = await digests(options.out);
    await rm(options.out, { recursive: true });
    await runAll(options);
    expect(found).toEqual(await digests(options.out));
  });
});

describe('a zip archive beyond 4 GiB', () => {
  test('has the fields of zip64', async () => {
    const chunks: Uint8Array[] = [];
    let size = 2 ** 32 + 3;
    const zip = openZip({
      size: () => size,
      write: (bytes) => {
        size += bytes.length;
        chunks.push(bytes.slice());
        return Promise.resolve();
      },
    });
    await zip.add('a.npy', [Uint8Array.of(1, 2), Uint8Array.of(3)]);
    await zip.finish();
    const bytes = Buffer.concat(chunks);
    const central = bytes.indexOf(Buffer.from('PK\x01\x02'));
    expect(bytes.readUInt32LE(central + 42)).toBe(0xffffffff);
    expect(bytes.readUInt16LE(central + 30)).toBe(12); // the extra field, behind a name of 5 bytes
    expect(bytes.readUInt16LE(central + 51)).toBe(1);
    expect(bytes.readBigUInt64LE(central + 55)).toBe(2n ** 32n + 3n);
    const end = bytes.indexOf(Buffer.from('PK\x06\x06'));
    expect([24, 32, 40, 48].map((at) => bytes.readBigUInt64LE(end + at))).toEqual([
      1n,
      1n,
      BigInt(end - central),
      2n ** 32n + 3n + BigInt(central),
    ]);
    const locator = bytes.indexOf(Buffer.from('PK\x06\x07'));
    expect(bytes.readBigUInt64LE(locator + 8)).toBe(2n ** 32n + 3n + BigInt(end));
    expect(bytes.readUInt32LE(bytes.length - 6)).toBe(0xffffffff);
  });
});

describe('processes', () => {
  const script = join(__dirname, 'process/run-shards.cjs');
  const start = (options: RunOptions, first = 0, step = 1) =>
    spawn(process.execPath, [script, JSON.stringify(options), String(first), String(step)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
  const finish = async (child: ReturnType<typeof start>): Promise<number | null> =>
    ((await once(child, 'exit')) as [number | null])[0];

  test.each(['tar', 'safetensors'] as const)(
    'killed at any moment, and started again: the same bytes (%s)',
    async (format) => {
      await using folder = await temporaryFolder();
      const manifest = await writeJobs(folder.path, 60);
      const options = { manifest, shardSize: 3, format };
      const undisturbed = start({ ...options, out: folder.file('undisturbed') });
      await once(undisturbed.stdout, 'data');
      const begun = performance.now();
      expect(await finish(undisturbed)).toBe(0);
      const ms = performance.now() - begun;
      const seed = Math.floor(Math.random() * 2 ** 31);
      const next = randomSource(seed);
      const out = folder.file('killed');
      let killed = 0;
      for (let round = 0; round < 5; ++round) {
        const child = start({ ...options, out });
        await once(child.stdout, 'data');
        const timer = setTimeout(() => child.kill('SIGKILL'), next() * Math.min(ms / 3, 400));
        if ((await finish(child)) === null) killed += 1;
        clearTimeout(timer);
      }
      const { killed: enough, seed: of } = { killed: killed >= 2, seed };
      expect({ enough, of }).toEqual({ enough: true, of });
      expect(await finish(start({ ...options, out }))).toBe(0);
      expect({ seed, files: await digests(out) }).toEqual({
        seed,
        files: await digests(folder.file('undisturbed')),
      });
    },
  );

  test('on the same shards at once, and each on its own: the same bytes', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 24);
    const options = { manifest, shardSize: 2 };
    const [alone, together, apart] = ['alone', 'together', 'apart'].map((name) => folder.file(name)) as [
      string,
      string,
      string,
    ];
    const codes = await Promise.all([
      finish(start({ ...options, out: alone })),
      finish(start({ ...options, out: together })),
      finish(start({ ...options, out: together })),
      finish(start({ ...options, out: apart }, 0, 2)),
      finish(start({ ...options, out: apart }, 1, 2)),
    ]);
    expect(codes).toEqual([0, 0, 0, 0, 0]);
    const expected = await digests(alone);
    expect(Object.keys(expected)).toHaveLength(1 + 2 * 12);
    expect(await digests(together)).toEqual(expected);
    expect(await digests(apart)).toEqual(expected);
  });
});

const python = process.env.PYTHON ?? 'python3';
const numpy = spawnSync(python, ['-c', 'import numpy, tarfile'], { stdio: 'ignore' }).status === 0;
(numpy ? describe : describe.skip)('Python', () => {
  const read = `
import io, json, sys, tarfile
import numpy as np
shown = {}
for path in sys.argv[1:]:
    items = {}
    if path.endswith('.npz'):
        with np.load(path) as archive:
            items = {name: archive[name] for name in archive.files}
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member).read()
                # WebDataset: the key is what comes before the first dot.
                key, kind = member.name.split('.', 1)
                if kind.endswith('npy'):
                    items[f'{key}/{kind[:-4]}'] = np.load(io.BytesIO(data))
                else:
                    assert kind == 'json', member.name
                    assert json.loads(data)['op'] == 'attention'
    shown[path] = {n: [str(a.dtype), list(a.shape), a.astype('f8').ravel().tolist()] for n, a in items.items()}
print(json.dumps(shown))
`;

  test('reads tar and npz shards of both dtypes as they are', async () => {
    await using folder = await temporaryFolder();
    const manifest = await writeJobs(folder.path, 3);
    const expected: Record<string, Record<string, unknown>> = {};
    for (const format of ['tar', 'npz'] as const) {
      for (const dtype of ['f32', 'f16'] as const) {
        const out = folder.file(`${format}-${dtype}`);
        await runAll({ manifest, out, format, dtype, shardSize: 3, tensors: ['out'] });
        const names = await readdir(join(out, 'shards'));
        const items: Record<string, unknown> = {};
        for (const [i, key] of ['00000000', 'item-1', '00000002'].entries()) {
          const { data } = await readNpy(folder.file(`q${i}.npy`));
          const first = data.subarray(0, 6) as Float32Array;
          const values = dtype === 'f32' ? first : halfToFloat32(float32ToHalf(first));
          items[`${key}/out`] = [dtype === 'f32' ? 'float32' : 'float16', [1, 1, 2, 3], [...values]];
        }
        expected[
          join(
            out,
            'shards',
            names.find((name) => name.endsWith(format))!,
          )
        ] = items;
      }
    }
    const { stdout, stderr } = spawnSync(python, ['-c', read, ...Object.keys(expected)], {
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
    expect(JSON.parse(stdout)).toEqual(expected);
  });
});
