import { mkdir, utimes, writeFile } from 'node:fs/promises';

import type { ManifestItem } from '../lib/pipeline/manifest.js';
import {
  indexManifest,
  parseManifestLine,
  readManifest,
  readShardLines,
} from '../lib/pipeline/read-manifest.js';
import { computeItems, type ItemOutcome } from '../lib/pipeline/items.js';
import { fakeDevice } from './fake-device.js';
import { temporaryFolder } from './formats/temporary.js';
import { errorOf } from './support.js';

const parse = (line: unknown, index = 0): ManifestItem =>
  parseManifestLine(typeof line === 'string' ? line : JSON.stringify(line), '/data/m.jsonl', index, '/');

describe('a line of a manifest', () => {
  test('is a frame with what it says of itself; paths are resolved from the manifest', () => {
    expect(parse({ frame: 'scene/frame.json' }, 41)).toEqual({
      kind: 'frame',
      index: 41,
      key: '00000041',
      root: '/',
      frame: '/data/scene/frame.json',
      options: {},
    });
    const options = { queries: 300, seed: 4294967295, strength: -2.5, window: true };
    expect(
      parse({ frame: '../f.json', key: 'n0-x_Y', ...options, features: 'm.safetensors', router: '/r' }),
    ).toEqual({
      kind: 'frame',
      index: 0,
      key: 'n0-x_Y',
      root: '/',
      frame: '/f.json',
      options: { ...options, features: '/data/m.safetensors', router: '/r' },
    });
  });

  test('is a job, whose tensors may be elsewhere', () => {
    expect(parse({ job: 'job.json' })).toEqual({
      kind: 'job',
      index: 0,
      key: '00000000',
      root: '/',
      job: '/data/job.json',
    });
    expect(parse({ job: 'job.json', tensors: 't/1.npz' })).toMatchObject({ tensors: '/data/t/1.npz' });
    expect(parse({ job: 'job.json', tensors: { q: 'q.npy', k: '/k.npy' } })).toMatchObject({
      tensors: { q: '/data/q.npy', k: '/k.npy' },
    });
  });

  const keyWords = 'expected a key of 1 to 100 letters, digits, _ and - for key but received';
  test.each<[unknown, string]>([
    ['{"frame": f}', '/data/m.jsonl:7: expected JSON but received "f" at column 11'],
    [[], 'expected an object for the item but received []'],
    ['3', 'expected an object for the item but received 3'],
    [{ key: 'a' }, 'expected an item with "frame" or "job" for /data/m.jsonl:7 but received {"key":"a"}'],
    [{ frame: 1 }, 'expected the path of a file for frame but received 1'],
    [{ frame: '' }, 'expected the path of a file for frame but received ""'],
    [{ frame: 'f', key: 'a.b' }, `${keyWords} "a.b"`],
    [{ frame: 'f', key: '' }, `${keyWords} ""`],
    [{ frame: 'f', key: 'x'.repeat(101) }, keyWords],
    [{ frame: 'f', queries: 0 }, 'expected an integer from 1 to 1000000 for queries but received 0'],
    [{ frame: 'f', seed: 0.5 }, 'expected an integer from 0 to 4294967295 for seed but received 0.5'],
    [{ frame: 'f', strength: '5' }, 'expected a number for strength but received "5"'],
    [{ frame: 'f', window: 1 }, 'expected true or false for window but received 1'],
    [{ frame: 'f', dense: true }, 'window, features, router) for dense but received true'],
    [{ frame: 'f', job: 'j' }, 'expected a known field (job, key, tensors) for frame but received "f"'],
    [{ job: 'j', tensors: { q: 1 } }, 'or an object of .npy files by their tensors, for tensors'],
    [{ frame: 'f', 'a\nb\u2028': 1 }, 'window, features, router) for a\\u000ab\\u2028 but received 1'],
    ['{"job": "j", "job": "k"}', 'received "job" a second time at column 14'],
  ])('%j is refused with the file, the line and the field', async (line, words) => {
    const error = await errorOf(() => parse(line, 6));
    expect(error.code).toBe('ERR_FORMAT');
    expect(error.message).toContain('/data/m.jsonl:7');
    expect(error.message).toContain(
      words.replace('/data/m.jsonl:7: expected JSON but', 'expected JSON for /data/m.jsonl:7 but'),
    );
    expect(error.message).not.toContain('\n');
  });
});

describe('a path that leads out of the folder', () => {
  test.each([
    [{ frame: '../f.json' }, '"../f.json"'],
    [{ frame: 'a/../../f.json' }, '"a/../../f.json"'],
    [{ frame: '/etc/f.json' }, '"/etc/f.json"'],
    [{ frame: '/database/f.json' }, '"/database/f.json"'],
    [{ frame: 'f.json', features: '../m.safetensors' }, '"../m.safetensors"'],
    [{ frame: 'f.json', router: '/r' }, '"/r"'],
    [{ job: '..' }, '".."'],
    [{ job: 'j', tensors: '../t.npz' }, '"../t.npz"'],
    [{ job: 'j', tensors: { q: 'q.npy', k: '/k.npy' } }, '"/k.npy"'],
  ])('%j is refused', async (line, path) => {
    const refused = await errorOf(() => parseManifestLine(JSON.stringify(line), '/data/m.jsonl', 6));
    expect(refused).toMatchObject({
      code: 'ERR_FORMAT',
      message: `expected paths within /data (--root) for /data/m.jsonl:7 but received ${path}`,
    });
  });

  test('names that begin with dots lead nowhere', () => {
    const line = JSON.stringify({ job: '..j/...', tensors: './a/../..t' });
    expect(parseManifestLine(line, '/data/m.jsonl', 0)).toMatchObject({
      job: '/data/..j/...',
      tensors: '/data/..t',
      root: '/data',
    });
    expect(parseManifestLine('{"job": "../b/j"}', '/data/a/m.jsonl', 0, '/data')).toMatchObject({
      job: '/data/b/j',
    });
  });

  test('is refused in the job and the frame that a line names, too', async () => {
    await using folder = await temporaryFolder();
    const job = { op: 'attention', tensors: '../t.npz', query: 'q', key: 'k', value: 'v' };
    await writeFile(folder.file('job.json'), JSON.stringify(job));
    const identity = [1, 0, 0, 0].map((_, i) => [0, 1, 2, 3].map((j) => Number(i === j)));
    const frame = {
      lidar: { file: 'sweep.bin', columns: 4 },
      imageShape: [900, 1600],
      cameras: [{ name: 'FRONT', file: '/etc/hostname', lidar2img: identity }],
      boxes: [],
    };
    await writeFile(folder.file('frame.json'), JSON.stringify(frame));
    await writeFile(folder.file('m'), '{"job": "job.json"}\n{"frame": "frame.json"}\n');
    const { device } = fakeDevice();
    const found: ItemOutcome[] = [];
    for await (const outcome of computeItems(readManifest(folder.file('m')), { device })) found.push(outcome);
    expect(found.map((outcome) => !outcome.ok && outcome.error.message)).toEqual([
      expect.stringMatching(
        /expected paths within .* \(--root\) for .*job\.json but received "\.\.\/t\.npz"$/,
      ),
      expect.stringMatching(
        /expected paths within .* \(--root\) for .*frame\.json but received "\/etc\/hostname"$/,
      ),
    ]);
  });
});

describe('a manifest', () => {
  const frames = (count: number): string[] =>
    Array.from({ length: count }, (_, i) => JSON.stringify({ frame: `f${'é'.repeat(i % 5)}${i}.json` }));

  test.each(['\n', '\r\n'])('gives each shard its lines, whatever line ends are (%j)', async (end) => {
    await using folder = await temporaryFolder();
    const lines = frames(10);
    for (const last of ['', end]) {
      await writeFile(folder.file('m'), lines.join(end) + last);
      const index = await indexManifest(folder.file('m'), 4);
      expect(index.items).toBe(10);
      const shards = [];
      for (const shard of [0, 1, 2]) shards.push(await readShardLines(index, 4, shard));
      expect(shards.map(({ length }) => length)).toEqual([4, 4, 2]);
      expect(shards.flat().map(({ text }) => text)).toEqual(lines);
      expect(shards.flat().map(({ item }) => item.index)).toEqual([...lines.keys()]);
      const items: ManifestItem[] = [];
      for await (const item of readManifest(folder.file('m'))) items.push(item);
      expect(items).toEqual(shards.flat().map(({ item }) => item));
    }
  });

  test('of 50,000 lines knows where each of its shards begins', async () => {
    await using folder = await temporaryFolder();
    const line = (i: number): string => JSON.stringify({ frame: `scenes/${i % 7}/${i}.json` });
    await writeFile(folder.file('m'), Array.from({ length: 50_000 }, (_, i) => line(i)).join('\n'));
    const index = await indexManifest(folder.file('m'), 64);
    expect(index.items).toBe(50_000);
    expect(index.offsets).toHaveLength(782 + 1);
    for (const shard of [0, 500, 781]) {
      const lines = await readShardLines(index, 64, shard);
      expect(lines.map(({ text }) => text)).toEqual(lines.map((_, i) => line(shard * 64 + i)));
      expect(lines).toHaveLength(shard === 781 ? 50_000 % 64 : 64);
    }
  });

  test.each<[string, string, string]>([
    ['', 'm', 'at least one item'],
    ['{"frame":"a"}\n\n{"frame":"b"}\n', 'm:2', 'an empty line'],
    ['{"frame":"a"}\n{"frame":"b"}\n\n', 'm:3', 'an empty line'],
    ['{"frame":"a"}\n{"frame":"b"', 'm:2', 'received its end at column 13'],
    ['{"frame":"a","key":"A-1"}\n{"job":"b","key":"a-1"}\n', 'm:2', '"a-1", the key of line 1'],
    ['{"frame":"a","key":"00000001"}\n{"job":"b"}\n', 'm:2', '"00000001", the key of line 1'],
    [`{"frame":"a"}\n{"frame":"${'x'.repeat(2 ** 21)}"}`, 'm:2', 'at most 1048576 bytes'],
    ['{"frame":"a"}\n{"frame":"\xff"}\n', 'm:2', 'bytes that are not UTF-8'],
  ])('that is wrong is refused (%#)', async (text, where, words) => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('m'), text, 'latin1');
    const error = await errorOf(() => indexManifest(folder.file('m'), 64));
    expect(error.code).toBe('ERR_FORMAT');
    expect(error.message).toContain(folder.file(where));
    expect(error.message).toContain(words);
  });

  test('is not read further when it has changed', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('m'), '{"frame":"a"}\n');
    const index = await indexManifest(folder.file('m'), 64);
    await utimes(folder.file('m'), 1, 1);
    expect(await errorOf(() => readShardLines(index, 64, 0))).toMatchObject({ code: 'ERR_IO' });
  });

  test('has to be a file', async () => {
    await using folder = await temporaryFolder();
    await mkdir(folder.file('m'));
    expect(await errorOf(() => indexManifest(folder.file('m'), 64))).toMatchObject({ code: 'ERR_IO' });
    expect(await errorOf(() => indexManifest(folder.file('n'), 64))).toMatchObject({ code: 'ERR_IO' });
    const controller = new AbortController();
    controller.abort();
    await writeFile(folder.file('o'), '{"frame":"a"}\n');
    expect(await errorOf(() => indexManifest(folder.file('o'), 64, controller.signal))).toMatchObject({
      code: 'ERR_ABORTED',
    });
  });
});
