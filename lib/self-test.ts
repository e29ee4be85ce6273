/**
 * A self-test of one device: every operation on small random inputs against the float64 reference, at the tolerances of
 * the package's contract.
 */
import { DEFORMABLE_TOLERANCE } from './compare.js';
import { GRADIENT_TOLERANCES, TOLERANCES } from './conformance.js';
import { gradientsWithPath } from './gradients.js';
import type { Device, Precision } from './device.js';
import { normalFrom, randomSource } from './random.js';
import {
  referenceAttention,
  referenceBackward,
  referenceBias,
  referenceDeformable,
  referenceMultihead,
} from './reference.js';
import type { TensorLike } from './tensor.js';
import type { BiasTerm } from './terms.js';

export interface SelfTestResult {
  name: string;
  passed: boolean;
  /** relative L2 error, or the number of wrong cells of `project` */
  error: number;
  tolerance: number;
  ms: number;
}

interface Case {
  name: string;
  tolerance: Record<Precision, number>;
  run: (device: Device) => Promise<number>;
}

const random = randomSource(1);
const fill = (count: number, next: (i: number) => number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => next(i));
const normal = (): number => normalFrom(random);

function tensor(shape: number[], next: (i: number) => number): { data: Float32Array; shape: number[] } {
  return {
    data: fill(
      shape.reduce((a, b) => a * b),
      next,
    ),
    shape,
  };
}

/** ‖got − want‖ / ‖want‖; NaN, which passes no tolerance, where infinities or NaN stand in different places. */
function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  if (got.length !== want.length) return NaN;
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < want.length; i++) {
    const [a, b] = [got[i] ?? NaN, want[i] ?? NaN];
    if (a === b && !Number.isFinite(b)) continue;
    difference += (a - b) ** 2;
    norm += b ** 2;
  }
  return Math.sqrt(difference) / (norm > 0 ? Math.sqrt(norm) : 1);
}

const always = (tolerance: number): Record<Precision, number> => ({
  f32: tolerance,
  tf32: tolerance,
  bf16: tolerance,
});

function attentionCase(
  name: string,
  shape: [number, number, number, number],
  dim: number,
  bias: BiasTerm[],
): Case {
  const [b, h, q, k] = shape;
  return {
    name: `attention ${name}`,
    tolerance: TOLERANCES,
    run: async (device) => {
      const query = tensor([b, h, q, dim], normal);
      const key = tensor([b, h, k, dim], normal);
      const value = tensor([b, h, k, dim], normal);
      const { out, lse } = await device.attention({ query, key, value, bias });
      const want = referenceAttention({ query, key, value, bias });
      const error = Math.max(relativeError(out.data, want.out), relativeError(lse.data, want.lse));
      out.dispose();
      lse.dispose();
      return error;
    },
  };
}

function backwardCase(name: string, shape: [number, number, number, number], bias: BiasTerm[]): Case {
  const [b, h, q, k] = shape;
  return {
    name: `attentionBackward ${name}`,
    tolerance: GRADIENT_TOLERANCES,
    run: async (device) => {
      const args = {
        query: tensor([b, h, q, 32], normal),
        key: tensor([b, h, k, 32], normal),
        value: tensor([b, h, k, 32], normal),
        gradOut: tensor([b, h, q, 32], normal),
        bias,
      };
      using gradients = await device.attentionBackward(args);
      const want = referenceBackward(args);
      const errors = gradientsWithPath(gradients).map(([path, { data }]) =>
        relativeError(data, want[path] ?? []),
      );
      return Math.max(...errors);
    },
  };
}

function biasCase(name: string, shape: [number, number, number, number], bias: BiasTerm[]): Case {
  return {
    name: `bias ${name}`,
    tolerance: always(1e-6),
    run: async (device) => {
      using out = await device.bias({ shape, bias });
      return relativeError(out.data, referenceBias({ shape, bias }));
    },
  };
}

const uniform = (): number => random();

/** Windows on a grid so large that a GPU gathers the few keys of a query. */
function windows(queries: number): BiasTerm[] {
  const centers = tensor([1, queries, 2], () => Math.floor(random() * 64) - 2);
  return [{ type: 'window', segments: [{ start: 0, grid: [60, 60], centers, size: 3 }] }];
}

/** Router weights, tensors and results in the device's memory. */
const chainCase: Case = {
  name: 'attention chained in device memory',
  tolerance: TOLERANCES,
  run: async (device) => {
    const made: { dispose: () => void }[] = [];
    const upload = async (shape: number[]) => {
      const host = tensor(shape, normal);
      const there = await device.toDevice(host);
      made.push(there);
      return { host, there };
    };
    const [query, key, value] = [
      await upload([1, 2, 30, 16]),
      await upload([1, 2, 90, 16]),
      await upload([1, 2, 90, 16]),
    ];
    const [features, weight, bias] = [await upload([1, 30, 8]), await upload([2, 8]), await upload([2])];
    const router = { features: features.there, weight: weight.there, bias: bias.there };
    const weights = await device.router({ ...router, outputsFirst: true });
    const stack = (lidar: TensorLike, camera: TensorLike): BiasTerm[] => [
      {
        type: 'modality',
        segments: [
          { start: 0, length: 50, weights: lidar },
          { start: 50, length: 40, weights: camera },
        ],
      },
    ];
    const terms = stack(weights.at(0), weights.at(1));
    const result = await device.attention({
      query: query.there,
      key: key.there,
      value: value.there,
      bias: terms,
    });
    const [out, read] = [await device.toHost(result.out), await device.toHost(weights)];
    const want = referenceAttention({
      query: query.host,
      key: key.host,
      value: value.host,
      bias: stack(read.at(0), read.at(1)),
    });
    const error = relativeError(out.data, want.out);
    for (const one of [...made, weights, result.out, result.lse, out, read]) one.dispose();
    return error;
  },
};

/** AQR's stack on a 12×12 bird's-eye-view grid and two camera maps of 6×8 cells. */
function aqr(batch: number, queries: number): BiasTerm[] {
  const bev = tensor([batch, queries, 2], () => Math.floor(random() * 12));
  const camera = tensor(
    [batch, queries, 3],
    (i) => Math.floor(random() * [3, 6, 8][i % 3]!) - (i % 3 === 0 ? 1 : 0),
  );
  const [lidar, image] = [tensor([batch, queries], uniform), tensor([batch, queries], uniform)];
  return [
    {
      type: 'modality',
      segments: [
        { start: 0, length: 144, weights: lidar },
        { start: 144, length: 96, weights: image },
      ],
    },
    {
      type: 'spatial',
      segments: [
        { start: 0, grid: [12, 12], centers: bev, radius: 2.5, weights: lidar },
        { start: 144, grid: [2, 6, 8], centers: camera, radius: 2.5, weights: image },
      ],
    },
    {
      type: 'window',
      segments: [
        { start: 0, grid: [12, 12], centers: bev, size: 5 },
        { start: 144, grid: [2, 6, 8], centers: camera, size: 3 },
      ],
    },
    {
      type: 'padding',
      ignore: {
        data: Uint8Array.from({ length: batch * 240 }, () => Number(random() < 0.1)),
        shape: [batch, 240],
      },
    },
  ];
}

function swin(heads: number): BiasTerm[] {
  return [
    { type: 'relativePosition', window: [4, 4], table: tensor([49, heads], normal) },
    { type: 'shiftedWindow', resolution: [8, 8], window: [4, 4], shift: [2, 2] },
  ];
}

function alibi(heads: number): BiasTerm[] {
  const slopes = { data: fill(heads, (i) => 2 ** (-8 * ((i + 1) / heads))), shape: [heads] };
  return [{ type: 'alibi', slopes }, { type: 'causal' }];
}

const linearCase: Case = {
  name: 'linear',
  tolerance: always(1e-5),
  run: async (device) => {
    const [input, weight, bias] = [
      tensor([2, 35, 50], normal),
      tensor([70, 50], normal),
      tensor([70], normal),
    ];
    using out = await device.linear({ input, weight, bias });
    const want = Float64Array.from(out.data, (_, i) => {
      const [row, n] = [Math.floor(i / 70), i % 70];
      let sum = bias.data[n] ?? NaN;
      for (let e = 0; e < 50; e++)
        sum += (input.data[row * 50 + e] ?? NaN) * (weight.data[n * 50 + e] ?? NaN);
      return sum;
    });
    return relativeError(out.data, want);
  },
};

function multiheadCase(
  name: string,
  [b, heads, q, k]: [number, number, number, number],
  features: number,
  bias: BiasTerm[],
): Case {
  return {
    name: `multihead ${name}`,
    tolerance: GRADIENT_TOLERANCES,
    run: async (device) => {
      const weight = (): number => normal() / Math.sqrt(features);
      const args = {
        query: tensor([b, q, features], normal),
        key: tensor([b, k, features], normal),
        value: tensor([b, k, features], normal),
        queryPos: tensor([b, q, features], normal),
        keyPos: tensor([b, k, features], normal),
        heads,
        inProjWeight: tensor([3 * features, features], weight),
        inProjBias: tensor([3 * features], normal),
        outProjWeight: tensor([features, features], weight),
        outProjBias: tensor([features], normal),
        bias,
        identity: true,
      };
      using out = await device.multihead(args);
      return relativeError(out.data, referenceMultihead(args));
    },
  };
}

const routerCase: Case = {
  name: 'router',
  tolerance: always(1e-5),
  run: async (device) => {
    const [features, weight, bias] = [
      tensor([2, 50, 32], normal),
      tensor([2, 32], normal),
      tensor([2], normal),
    ];
    using weights = await device.router({ features, weight, bias });
    const want = Float64Array.from(weights.data, (_, i) => {
      const [row, m] = [Math.floor(i / 2), i % 2];
      let sum = bias.data[m] ?? NaN;
      for (let e = 0; e < 32; e++)
        sum += (features.data[row * 32 + e] ?? NaN) * (weight.data[m * 32 + e] ?? NaN);
      return 1 / (1 + Math.exp(-sum));
    });
    return relativeError(weights.data, want);
  },
};

const routerBackwardCase: Case = {
  name: 'routerBackward',
  tolerance: always(1e-5),
  run: async (device) => {
    const [features, weight, bias] = [
      tensor([1, 40, 8], normal),
      tensor([2, 8], normal),
      tensor([2], normal),
    ];
    const gradOut = tensor([1, 40, 2], normal);
    using gradients = await device.routerBackward({ features, weight, bias, gradOut });
    using weights = await device.router({ features, weight, bias });
    const delta = Float64Array.from(
      gradOut.data,
      (grad, i) => grad * (weights.data[i] ?? NaN) * (1 - (weights.data[i] ?? NaN)),
    );
    const sum = (term: (row: number) => number): number =>
      Array.from({ length: 40 }, (_, row) => term(row)).reduce((a, b) => a + b);
    const wantWeight = Float64Array.from({ length: 16 }, (_, i) =>
      sum((row) => (delta[row * 2 + Math.floor(i / 8)] ?? NaN) * (features.data[row * 8 + (i % 8)] ?? NaN)),
    );
    const wantBias = Float64Array.from({ length: 2 }, (_, m) => sum((row) => delta[row * 2 + m] ?? NaN));
    return Math.max(
      relativeError(gradients.weight.data, wantWeight),
      relativeError(gradients.bias.data, wantBias),
    );
  },
};

/** One camera at the origin that looks along +x: pixel = (800 − 1000·y/x, 450 − 1000·z/x). */
const projectCase: Case = {
  name: 'project',
  tolerance: always(0),
  run: async (device) => {
    const lidar2img = {
      data: Float32Array.of(800, -1000, 0, 0, 450, 0, -1000, 0, 1, 0, 0, 0, 0, 0, 0, 1),
      shape: [1, 1, 4, 4],
    };
    // Points at the centres of BEV cells, ahead at their own height or behind: their cells are plain to see.
    const points = [
      { at: [0.75, 0.5, 0.625], bev: [50, 75], camera: [0, 20, 50] },
      { at: [0.25, 0.5, 0.625], bev: [50, 25], camera: [-1, -1, -1] },
      { at: [0.995, 0.995, 0.625], bev: [99, 99], camera: [-1, -1, -1] },
    ];
    const { bevCenters, cameraCenters } = await device.project({
      referencePoints: { data: Float32Array.from(points.flatMap((p) => p.at)), shape: [1, points.length, 3] },
      pointCloudRange: [-50, -50, -5, 50, 50, 3],
      lidar2img,
      imageShape: [900, 1600],
      featureShape: [40, 100],
      bevShape: [100, 100],
    });
    const wrong = (got: Float32Array, want: number[]): number =>
      want.filter((cell, i) => got[i] !== cell).length;
    const bev = points.flatMap((p) => p.bev);
    const camera = points.flatMap((p) => p.camera);
    return wrong(bevCenters.data, bev) + wrong(cameraCenters.data, camera);
  },
};

/** Two levels, with samples inside and outside; `dim` picks a GPU's vectors or single channels. */
function deformableArgs(dim: number) {
  const [b, s, h, q, levels, p] = [2, 9 * 11 + 4 * 5, 3, 40, 2, 4];
  return {
    value: tensor([b, s, h, dim], normal),
    spatialShapes: [
      [9, 11],
      [4, 5],
    ] as const,
    samplingLocations: tensor([b, q, h, levels, p, 2], () => 1.4 * random() - 0.2),
    attentionWeights: tensor([b, q, h, levels, p], normal),
    gradOut: tensor([b, q, h * dim], normal),
  };
}

function deformableCase(dim: number): Case {
  return {
    name: `deformable of ${dim} channels`,
    tolerance: always(DEFORMABLE_TOLERANCE),
    run: async (device) => {
      const { gradOut, ...args } = deformableArgs(dim);
      using out = await device.deformable(args);
      return relativeError(out.data, referenceDeformable({ ...args, gradOut }).out);
    },
  };
}

function deformableBackwardCase(dim: number, deterministic: boolean): Case {
  return {
    name: `deformable-backward of ${dim} channels${deterministic ? ', deterministic' : ''}`,
    tolerance: always(DEFORMABLE_TOLERANCE),
    run: async (device) => {
      const args = deformableArgs(dim);
      const grads = await device.deformableBackward({ ...args, deterministic });
      const want = referenceDeformable(args);
      const names = ['value', 'samplingLocations', 'attentionWeights'] as const;
      const errors = names.map((name) => relativeError(grads[name].data, want[name]));
      for (const name of names) grads[name].dispose();
      return errors.some(Number.isNaN) ? NaN : Math.max(...errors);
    },
  };
}

const cases: Case[] = [
  attentionCase('plain', [2, 2, 50, 300], 32, []),
  attentionCase('AQR stack', [2, 2, 60, 240], 32, aqr(2, 60)),
  attentionCase('Swin', [8, 3, 16, 16], 32, swin(3)),
  attentionCase('ALiBi causal', [1, 4, 128, 128], 64, alibi(4)),
  attentionCase('few queries', [1, 1, 3, 5000], 16, []),
  attentionCase('few keys a query', [1, 2, 40, 3600], 32, windows(40)),
  chainCase,
  biasCase('AQR stack', [2, 1, 60, 240], aqr(2, 60)),
  biasCase('Swin', [8, 3, 16, 16], swin(3)),
  backwardCase('AQR stack', [2, 2, 60, 240], aqr(2, 60)),
  backwardCase('Swin', [8, 3, 16, 16], swin(3)),
  backwardCase('ALiBi causal', [1, 4, 128, 128], alibi(4)),
  linearCase,
  multiheadCase('AQR stack', [2, 4, 60, 240], 64, aqr(2, 60)),
  multiheadCase('Swin', [8, 3, 16, 16], 48, swin(3)),
  routerCase,
  routerBackwardCase,
  projectCase,
  deformableCase(32),
  deformableCase(7),
  deformableBackwardCase(32, false),
  deformableBackwardCase(7, true),
];

/** Runs all cases. `precision` is the device's. */
export async function selfTest(device: Device, precision: Precision = 'f32'): Promise<SelfTestResult[]> {
  const results: SelfTestResult[] = [];
  for (const { name, tolerance: tolerances, run } of cases) {
    const start = performance.now();
    const error = await run(device);
    const tolerance = tolerances[precision];
    results.push({ name, passed: error <= tolerance, error, tolerance, ms: performance.now() - start });
  }
  return results;
}
