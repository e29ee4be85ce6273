import { mkdir, readFile, writeFile } from 'node:fs/promises';

import type { AttentionArgs } from '../lib/device.js';
import { AttentionBiasError } from '../lib/errors.js';
import { parseJob } from '../lib/formats/job.js';
import { writeNpy, writeNpz } from '../lib/formats/npy.js';
import { openSafetensors, writeSafetensors } from '../lib/formats/safetensors.js';
import { abortable } from '../lib/cli/abortable.js';
import { run } from '../lib/cli/run.js';
import { runJob } from '../lib/job.js';
import type { ModalityTerm } from '../lib/terms.js';
import { fakeDevice } from './fake-device.js';
import { temporaryFolder } from './formats/temporary.js';

const deformable = {
  op: 'deformable',
  tensors: 't.safetensors',
  value: 'v',
  spatialShapes: [[2, 3]],
  samplingLocations: 'l',
  attentionWeights: 'w',
};
const attention = { op: 'attention', tensors: 't.safetensors', query: 'q', key: 'k', value: 'v' };

function refusal(job: unknown): string {
  try {
    parseJob(typeof job === 'string' ? job : JSON.stringify(job), 'job.json');
  } catch (error) {
    expect(error).toMatchObject({ name: 'AttentionBiasError', code: 'ERR_FORMAT' });
    expect((error as Error).message).not.toContain('\n');
    return (error as Error).message;
  }
  throw new Error(`accepted: ${JSON.stringify(job)}`);
}

describe('parseJob refuses in one line that names the field, what it holds and what it should hold', () => {
  const known = 'op, tensors, query, key, value, scale, bias';
  test.each<[unknown, string]>([
    ['{"op": "attention", "query": q}', 'expected JSON for job.json but received "q" at line 1, column 30'],
    [
      '{"op": "bias", "op": "bias"}',
      'expected JSON with each field once for job.json but received "op" a second time at line 1, column 16',
    ],
    [[], 'job.json: expected an object for the job but received []'],
    [null, 'job.json: expected an object for the job but received null'],
    [
      {},
      'job.json: expected one of attention, attention-backward, bias, multihead, router, deformable, deformable-backward, project for op but received nothing',
    ],
    [
      { op: 'atention' },
      'job.json: expected one of attention, attention-backward, bias, multihead, router, deformable, deformable-backward, project for op but received "atention"',
    ],
    [
      { op: 1 },
      'job.json: expected one of attention, attention-backward, bias, multihead, router, deformable, deformable-backward, project for op but received 1',
    ],
    [
      { ...attention, tensors: undefined },
      'job.json: expected the path of a .safetensors or .npz file, or an object of .npy files by their tensors, for tensors but received nothing',
    ],
    [{ ...attention, value: undefined }, "job.json: expected a tensor's name for value but received nothing"],
    [{ ...attention, value: 7 }, "job.json: expected a tensor's name for value but received 7"],
    [{ ...attention, valeu: 'v' }, `job.json: expected a known field (${known}) for valeu but received "v"`],
    [{ ...attention, scale: '1' }, 'job.json: expected a number for scale but received "1"'],
    [{ ...attention, scale: null }, 'job.json: expected a number for scale but received null'],
    [{ ...attention, bias: {} }, 'job.json: expected a list of terms for bias but received {}'],
    [{ ...attention, bias: [[]] }, 'job.json: expected an object for bias[0] but received []'],
    [
      { ...attention, bias: [{}] },
      'job.json: expected one of dense, mask, padding, causal, slidingWindow, blockDiagonal, modality, spatial, window, denoising, shiftedWindow, relativePosition, lowRank, alibi for bias[0].type but received nothing',
    ],
    [
      { ...attention, bias: [{ type: 'causal' }, { type: 'casual' }] },
      'job.json: expected one of dense, mask, padding, causal, slidingWindow, blockDiagonal, modality, spatial, window, denoising, shiftedWindow, relativePosition, lowRank, alibi for bias[1].type but received "casual"',
    ],
    [
      { ...attention, bias: [{ type: 'causal', align: 'left' }] },
      'job.json: expected "top-left" or "bottom-right" for bias[0].align but received "left"',
    ],
    [
      { ...attention, bias: [{ type: 'causal', allign: 'top-left' }] },
      'job.json: expected a known field (type, align) for bias[0].allign but received "top-left"',
    ],
    [
      { ...attention, bias: [{ type: 'slidingWindow', left: 1.5, right: 0 }] },
      'job.json: expected an integer for bias[0].left but received 1.5',
    ],
    [
      { ...attention, bias: [{ type: 'modality', segments: {} }] },
      'job.json: expected a list of segments for bias[0].segments but received {}',
    ],
    [
      {
        ...attention,
        bias: [
          {
            type: 'modality',
            segments: [
              { start: 0, length: 3, weights: 'w' },
              { start: 0, length: 1e300, weights: 'w' },
            ],
          },
        ],
      },
      'job.json: expected an integer for bias[0].segments[1].length but received 1e+300',
    ],
    [
      { ...attention, bias: [{ type: 'modality', segments: [{ start: 0, length: 3 }] }] },
      "job.json: expected a tensor's name for bias[0].segments[0].weights but received nothing",
    ],
    [
      { ...attention, bias: [{ type: 'modality', segments: [{ start: 0, length: 3, weight: 'w' }] }] },
      'job.json: expected a tensor\'s name for bias[0].segments[0].weights but received nothing; expected a known field (start, length, weights) for bias[0].segments[0].weight but received "w"',
    ],
    [
      {
        ...attention,
        bias: [{ type: 'window', segments: [{ start: 0, grid: [3], centers: 'c', size: 3 }] }],
      },
      'job.json: expected [V, Hg, Wg] or [Hg, Wg], integers for bias[0].segments[0].grid but received [3]',
    ],
    [
      {
        ...attention,
        bias: [{ type: 'window', segments: [{ start: 0, grid: [1, 2, 3, 4], centers: 'c', size: 3 }] }],
      },
      'job.json: expected [V, Hg, Wg] or [Hg, Wg], integers for bias[0].segments[0].grid but received [1,2,3,4]',
    ],
    [
      {
        ...attention,
        bias: [{ type: 'window', segments: [{ start: 0, grid: [1, 0.5], centers: 'c', size: 3 }] }],
      },
      'job.json: expected [V, Hg, Wg] or [Hg, Wg], integers for bias[0].segments[0].grid but received [1,0.5]',
    ],
    [
      { ...attention, bias: [{ type: 'relativePosition', window: [2, 2], table: 't', clsToken: 1 }] },
      'job.json: expected true or false for bias[0].clsToken but received 1',
    ],
    [
      { ...attention, bias: [{ type: 'relativePosition', window: [2], table: 't' }] },
      'job.json: expected a list of two integers for bias[0].window but received [2]',
    ],
    [
      { ...attention, bias: [{ type: 'relativePosition', window: [2, '2'], table: 't' }] },
      'job.json: expected an integer for bias[0].window[1] but received "2"',
    ],
    [
      { op: 'bias', shape: [1, 1, 1], bias: [] },
      'job.json: expected [B, H, Q, K], integers for shape but received [1,1,1]',
    ],
    [
      { op: 'bias', shape: [1, 1, 1, 1, 1], bias: [] },
      'job.json: expected [B, H, Q, K], integers for shape but received [1,1,1,1,1]',
    ],
    [{ op: 'bias', shape: [1, 1, 1, 1] }, 'job.json: expected a list of terms for bias but received nothing'],
    [
      { op: 'router', tensors: 't', features: 'f', weight: 'w', bias: [] },
      "job.json: expected a tensor's name for bias but received []",
    ],
    [
      { ...deformable, spatialShapes: [[2, 3], [4]] },
      'job.json: expected a list of two integers for spatialShapes[1] but received [4]',
    ],
    [
      { ...deformable, spatialShapes: 6 },
      'job.json: expected a list of [h, w] for spatialShapes but received 6',
    ],
    [
      { ...deformable, gradOut: 'g' },
      'job.json: expected a known field (op, tensors, value, spatialShapes, samplingLocations, attentionWeights) for gradOut but received "g"',
    ],
    [
      { ...deformable, op: 'deformable-backward' },
      "job.json: expected a tensor's name for gradOut but received nothing",
    ],
    [
      '{"op": "bias", "shape": [1, 1, 1, 1], "bias": [], "__proto__": {"x": 1}}',
      'job.json: expected a known field (op, tensors, shape, bias) for __proto__ but received {"x":1}',
    ],
    [
      '{"op": "constructor"}',
      'job.json: expected one of attention, attention-backward, bias, multihead, router, deformable, deformable-backward, project for op but received "constructor"',
    ],
  ])('%j', (job, sentence) => {
    expect(refusal(job)).toBe(sentence);
  });

  test('many wrong fields are a few sentences', () => {
    const line = refusal({ ...attention, bias: Array.from({ length: 1000 }, () => ({ type: 'x' })) });
    expect(line).toMatch(/bias\[0\].*bias\[1\].*bias\[2\].*; and 997 more$/);
    expect(line.length).toBeLessThan(1000);
  });

  test('long values are cut', () => {
    expect(refusal({ op: 'x'.repeat(1000) }).length).toBeLessThan(refusal({ op: 'x' }).length + 100);
  });
});

describe('runJob', () => {
  const f = (shape: number[]) => ({
    data: new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5),
    shape,
  });
  const tensors = {
    q: f([1, 1, 2, 4]),
    k: f([1, 1, 5, 4]),
    v: f([1, 1, 5, 3]),
    w: f([1, 2]),
    m: { data: new Uint8Array(5), shape: [1, 1, 1, 5] },
    ids: { data: new Int32Array(5), shape: [1, 5] },
    none: f([1, 0]),
  };

  async function withJob<T>(job: object, work: (path: string) => Promise<T>): Promise<T> {
    await using folder = await temporaryFolder();
    await mkdir(folder.file('sub'));
    await writeSafetensors(folder.file('t.safetensors'), tensors);
    await writeFile(folder.file('sub/job.json'), JSON.stringify({ ...job, tensors: '../t.safetensors' }));
    return await work(folder.file('sub/job.json'));
  }

  test('gives the device the tensors that the job names, in their places, each loaded once', async () => {
    const { device, calls } = fakeDevice();
    const modality = {
      type: 'modality',
      strength: 2,
      segments: [
        { start: 0, length: 2, weights: 'w' },
        { start: 2, length: 3, weights: 'w' },
      ],
    };
    const bias = [modality, { type: 'mask', visible: 'm' }, { type: 'causal', align: 'bottom-right' }];
    const outputs = await withJob({ ...attention, key: 'k', scale: 0.25, bias }, (path) =>
      runJob(path, { device }),
    );
    expect(Object.keys(outputs)).toEqual(['out', 'lse']);
    expect(calls).toHaveLength(1);
    const host = (name: keyof typeof tensors, dtype: string) => ({ ...tensors[name], dtype });
    expect(calls[0]).toEqual([
      'attention',
      {
        query: host('q', 'float32'),
        key: host('k', 'float32'),
        value: host('v', 'float32'),
        scale: 0.25,
        bias: [
          {
            ...modality,
            segments: modality.segments.map((segment) => ({ ...segment, weights: host('w', 'float32') })),
          },
          { type: 'mask', visible: host('m', 'uint8') },
          { type: 'causal', align: 'bottom-right' },
        ],
        signal: undefined,
      },
    ]);
    const [first, second] = ((calls[0]?.[1] as AttentionArgs).bias as [ModalityTerm])[0].segments;
    expect(first?.weights).toBe(second?.weights);
  });

  test('the other operations', async () => {
    const { device, calls } = fakeDevice();
    const run = (job: object) => withJob(job, async (path) => Object.keys(await runJob(path, { device })));
    expect(await run({ op: 'bias', shape: [1, 1, 2, 5], bias: [{ type: 'causal' }] })).toEqual(['bias']);
    expect(await run({ op: 'router', features: 'q', weight: 'w', bias: 'w' })).toEqual(['weights']);
    const project = {
      op: 'project',
      referencePoints: 'q',
      pointCloudRange: [-1, -2, -3, 1, 2, 3.5],
      lidar2img: 'k',
      imageShape: [8, 9],
      featureShape: [4, 5],
      bevShape: [6, 7],
    };
    expect(await run(project)).toEqual(['bevCenters', 'cameraCenters']);
    const sampled = { spatialShapes: [[2, 3]], value: 'q', samplingLocations: 'k', attentionWeights: 'w' };
    expect(await run({ op: 'deformable', ...sampled })).toEqual(['out']);
    expect(await run({ op: 'deformable-backward', ...sampled, gradOut: 'v', deterministic: true })).toEqual([
      'grad_value',
      'grad_samplingLocations',
      'grad_attentionWeights',
    ]);
    expect(calls.map(([op]) => op)).toEqual([
      'bias',
      'router',
      'project',
      'deformable',
      'deformableBackward',
    ]);
    expect(calls[3]?.[1]).toMatchObject({ spatialShapes: [[2, 3]] });
    expect(calls[4]?.[1]).toMatchObject({ spatialShapes: [[2, 3]], deterministic: true });
    const multihead = {
      op: 'multihead',
      query: 'q',
      key: 'k',
      value: 'k',
      keyPos: 'w',
      heads: 2,
      inProjWeight: 'w',
      outProjWeight: 'w',
      bias: [{ type: 'causal' }],
      identity: true,
    };
    expect(await run(multihead)).toEqual(['out']);
    expect(calls[5]?.[0]).toBe('multihead');
    const [q, k, w] = [tensors.q, tensors.k, tensors.w].map((tensor) => ({ ...tensor, dtype: 'float32' }));
    const given = { query: q, key: k, value: k, keyPos: w, inProjWeight: w, outProjWeight: w };
    const { bias, heads, identity } = multihead;
    expect(calls[5]?.[1]).toEqual({ ...given, heads, bias, identity, signal: undefined });
    expect(calls[2]?.[1]).toMatchObject({
      pointCloudRange: [-1, -2, -3, 1, 2, 3.5],
      imageShape: [8, 9],
      featureShape: [4, 5],
      bevShape: [6, 7],
    });
  });

  test('tensors come from a .npz file or from .npy files as well, and only those that the job names', async () => {
    await using folder = await temporaryFolder();
    const { q, k, v, m } = tensors;
    await writeNpz(folder.file('t.npz'), { q, k, v, m });
    await mkdir(folder.file('a'));
    for (const [name, tensor] of Object.entries({ q, k, v }))
      await writeNpy(folder.file(`a/${name}.npy`), tensor);
    const host = (tensor: typeof q) => ({ ...tensor, dtype: 'float32' });
    const files = { q: 'a/q.npy', k: 'a/k.npy', v: 'a/v.npy', other: 'nowhere.npy' };
    for (const source of ['t.npz', files]) {
      const { device, calls } = fakeDevice();
      await writeFile(folder.file('job.json'), JSON.stringify({ ...attention, tensors: source }));
      await runJob(folder.file('job.json'), { device });
      expect(calls).toEqual([
        ['attention', expect.objectContaining({ query: host(q), key: host(k), value: host(v) })],
      ]);
    }
    const { device } = fakeDevice();
    const refused = async (tensors: unknown, fields: object, words: RegExp) => {
      await writeFile(folder.file('job.json'), JSON.stringify({ ...attention, ...fields, tensors }));
      await expect(runJob(folder.file('job.json'), { device })).rejects.toThrow(words);
    };
    await refused(
      't.npz',
      { query: 'x' },
      /a tensor of \S+t\.npz \(q, k, v, m\) for query but received "x"$/,
    );
    await refused(
      files,
      { query: 'x' },
      /a tensor of the object \(q, k, v, other\) for query but received "x"$/,
    );
    await refused(
      files,
      { query: 'other' },
      /tensors: "other": expected .* for \S+nowhere\.npy but received ENOENT/,
    );
    await refused('t.npz', { query: 'm' }, /F32 for query \(tensor "m"\) but received U8 \[1, 1, 1, 5\]$/);
    await refused([], {}, /expected the path of a \.safetensors or \.npz file, or an object of \.npy files/);
  });

  test('a bias of terms without tensors needs no tensors file', async () => {
    await using folder = await temporaryFolder();
    const job = { op: 'bias', shape: [1, 1, 2, 5], bias: [{ type: 'causal' }] };
    await writeFile(folder.file('job.json'), JSON.stringify(job));
    const { device } = fakeDevice();
    expect(Object.keys(await runJob(folder.file('job.json'), { device }))).toEqual(['bias']);
    await writeFile(
      folder.file('job.json'),
      JSON.stringify({ ...job, bias: [{ type: 'alibi', slopes: 's' }] }),
    );
    await expect(runJob(folder.file('job.json'), { device })).rejects.toThrow(
      'expected the path of a .safetensors or .npz file, or an object of .npy files by their tensors, with bias[0].slopes (tensor "s"), for tensors but received nothing',
    );
  });

  test.each<[string, object, string, RegExp]>([
    [
      'a missing tensor',
      { value: 'nope' },
      'ERR_FORMAT',
      /^\S+job\.json: expected a tensor of \S+t\.safetensors \(q, k, v, w, ids, none, m\) for value but received "nope"$/,
    ],
    [
      'a mask of floats',
      { bias: [{ type: 'mask', visible: 'w' }] },
      'ERR_DTYPE',
      /expected U8 or BOOL for bias\[0\]\.visible \(tensor "w"\) but received F32 \[1, 2\]$/,
    ],
    [
      'a query of bytes',
      { query: 'm' },
      'ERR_DTYPE',
      /expected F32 for query \(tensor "m"\) but received U8 \[1, 1, 1, 5\]$/,
    ],
    [
      'ids of floats',
      { bias: [{ type: 'blockDiagonal', queryIds: 'ids', keyIds: 'w' }] },
      'ERR_DTYPE',
      /expected I32 for bias\[0\]\.keyIds \(tensor "w"\) but received F32/,
    ],
    [
      'an empty dimension',
      { bias: [{ type: 'alibi', slopes: 'none' }] },
      'ERR_SHAPE',
      /expected dimensions of at least 1 for bias\[0\]\.slopes \(tensor "none"\) but received \[1, 0\]$/,
    ],
  ])('refuses %s before the device sees it', async (_, fields, code, message) => {
    const { device, calls } = fakeDevice();
    const running = withJob({ ...attention, ...fields }, (path) => runJob(path, { device }));
    await expect(running).rejects.toMatchObject({
      name: 'AttentionBiasError',
      code,
      message: expect.stringMatching(message) as string,
    });
    expect(calls).toEqual([]);
  });

  test("names the tensor in the device's errors", async () => {
    const failure = new AttentionBiasError(
      'ERR_SHAPE',
      'expected shape [B, Q] for bias[0].segments[0].weights but received [1, 2]',
    );
    const { device } = fakeDevice(failure);
    const job = {
      ...attention,
      bias: [{ type: 'modality', segments: [{ start: 0, length: 2, weights: 'w' }] }],
    };
    await expect(withJob(job, (path) => runJob(path, { device }))).rejects.toMatchObject({
      code: 'ERR_SHAPE',
      message: expect.stringMatching(
        /job\.json: expected shape \[B, Q\] for bias\[0\]\.segments\[0\]\.weights \(tensor "w"\) but received \[1, 2\]$/,
      ) as string,
    });
  });

  test('errors that are not of the package stay as they are', async () => {
    const failure = new TypeError('a bug');
    const { device } = fakeDevice(failure);
    await expect(withJob(attention, (path) => runJob(path, { device }))).rejects.toBe(failure);
  });

  test('an aborted signal', async () => {
    const { device } = fakeDevice();
    const running = withJob(attention, (path) => runJob(path, { device, signal: AbortSignal.abort() }));
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });

  test('files that can not be opened are ERR_IO, bad contents of the tensors file ERR_FORMAT', async () => {
    await using folder = await temporaryFolder();
    const { device } = fakeDevice();
    const path = folder.file('job.json');
    const running = () => runJob(path, { device });
    await expect(running()).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringContaining('no such file') as string,
    });
    await writeFile(path, JSON.stringify(attention));
    const missing =
      /job\.json: tensors: expected .* for \S+t\.safetensors but received ENOENT: no such file or directory$/;
    await expect(running()).rejects.toMatchObject({
      code: 'ERR_IO',
      message: expect.stringMatching(missing) as string,
    });
    await writeFile(folder.file('t.safetensors'), 'short');
    const short = /job\.json: tensors: expected at least 8 bytes for \S+t\.safetensors but received 5$/;
    await expect(running()).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringMatching(short) as string,
    });
    await expect(runJob(folder.path, { device })).rejects.toMatchObject({ code: 'ERR_IO' });
  });
});

describe('run', () => {
  test('does not write over its inputs', async () => {
    await using folder = await temporaryFolder();
    const job = folder.file('job.json');
    await writeSafetensors(folder.file('t.safetensors'), {
      slopes: { data: Float32Array.of(1), shape: [1] },
    });
    const text = JSON.stringify({
      op: 'bias',
      tensors: 't.safetensors',
      shape: [1, 1, 2, 2],
      bias: [{ type: 'alibi', slopes: 'slopes' }],
    });
    await writeFile(job, text);
    const options = { job, device: 'cpu', precision: undefined, threads: undefined };
    for (const out of [job, folder.file('./t.safetensors')]) {
      await expect(run({ ...options, out })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    }
    await expect(run({ ...options, out: '' })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    expect(await readFile(job, 'utf8')).toBe(text);
    await run({ ...options, out: folder.file('out.safetensors') });
    expect(await folder.names()).toEqual(['job.json', 'out.safetensors', 't.safetensors']);
  });

  /** Attention of so many tokens with themselves. */
  async function selfAttention(tokens: number, { file }: { file: (name: string) => string }): Promise<void> {
    const x = {
      data: Float32Array.from({ length: 8 * tokens }, (_, i) => (i % 17) / 17),
      shape: [1, 1, tokens, 8],
    };
    await writeSafetensors(file('t.safetensors'), { x });
    await writeFile(file('job.json'), JSON.stringify({ ...attention, query: 'x', key: 'x', value: 'x' }));
  }
  const defaults = { device: 'cpu', precision: undefined, threads: 1 };

  test('writes the outputs and says what it did', async () => {
    await using folder = await temporaryFolder();
    await selfAttention(3, folder);
    const out = folder.file('out.safetensors');
    const summary = await run({ ...defaults, job: folder.file('job.json'), out });
    expect(summary).toMatchObject({
      op: 'attention',
      out,
      outputs: { out: [1, 1, 3, 8], lse: [1, 1, 3] },
      device: { backend: 'cpu', threads: 1 },
    });
    await using written = await openSafetensors(out);
    expect([...written.tensors.values()].map(({ dtype }) => dtype)).toEqual(['F32', 'F32']);
    expect((await written.read('lse')).shape).toEqual([1, 1, 3]);
    expect(await folder.names()).toEqual(['job.json', 'out.safetensors', 't.safetensors']);
  });

  test('an abort between tiles leaves no file', async () => {
    await using folder = await temporaryFolder();
    await selfAttention(200_000, folder); // minutes of work
    const signal = AbortSignal.timeout(300);
    const running = run({ ...defaults, job: folder.file('job.json'), out: folder.file('out') }, signal);
    await expect(running).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(await folder.names()).toEqual(['job.json', 't.safetensors']);
  });

  test.each([
    [{ out: 'no/such/out' }, 'ERR_IO', 'a path in a folder that exists'],
    [{ out: '.' }, 'ERR_IO', 'a folder'],
    [{ device: 'cuda:99' }, 'ERR_DEVICE', 'cuda:99'],
    [{ device: 'gpu' }, 'ERR_VALUE', 'gpu'],
    [{ threads: 0 }, 'ERR_VALUE', 'threads'],
    [{ job: 'no.json' }, 'ERR_IO', 'no.json'],
  ])('%j is refused before the work', async (options, code, words) => {
    await using folder = await temporaryFolder();
    await selfAttention(200_000, folder);
    const { job = 'job.json', out = 'out', ...others } = options as { job?: string; out?: string };
    const running = run({ ...defaults, ...others, job: folder.file(job), out: folder.file(out) });
    const message = expect.stringContaining(words) as string;
    await expect(running).rejects.toMatchObject({ name: 'AttentionBiasError', code, message });
    expect(await folder.names()).toEqual(['job.json', 't.safetensors']);
  });
});

describe('abortable', () => {
  const listeners = () => process.listenerCount('SIGINT') + process.listenerCount('SIGTERM');

  test('passes results and errors on, and takes its listeners back', async () => {
    const before = listeners();
    expect(await abortable((signal) => Promise.resolve(signal.aborted))).toBe(false);
    await expect(abortable(() => Promise.reject(new Error('x')))).rejects.toThrow('x');
    expect(listeners()).toBe(before);
  });

  test('aborts at a signal, lets the work end, and then ends by the signal', async () => {
    const kill = jest.spyOn(process, 'kill').mockReturnValue(true);
    const before = listeners();
    let cleaned = false;
    const working = abortable(async (signal) => {
      process.emit('SIGTERM', 'SIGTERM');
      expect(signal.aborted).toBe(true);
      expect(listeners()).toBe(before); // a second signal ends the process at once
      expect(kill).not.toHaveBeenCalled();
      await Promise.resolve();
      cleaned = true;
      throw new AttentionBiasError('ERR_ABORTED', 'aborted');
    });
    await expect(working).rejects.toMatchObject({ code: 'ERR_ABORTED' });
    expect(cleaned).toBe(true);
    expect(kill.mock.calls).toEqual([[process.pid, 'SIGTERM']]);
    kill.mockRestore();
  });
});
