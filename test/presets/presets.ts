// What the tests of the presets share.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { compareBias } from '../../lib/compare.js';
import { openSafetensors } from '../../lib/formats/safetensors.js';
import { open } from '../../lib/index.js';
import type { HostTensor } from '../../lib/formats/host.js';
import type { BiasTerm, Device } from '../../lib/index.js';

/** A CPU device for the tests of a file. */
export function useDevice(): () => Device {
  let device: Device | undefined;
  beforeAll(async () => {
    device = await open({ device: 'cpu', threads: 1 });
  });
  afterAll(() => {
    device?.close();
  });
  return () => device!;
}

/** What is wrong with the bias of the terms, where each entry must be `want(b, h, q, k)`. */
export async function biasProblems(
  device: Device,
  shape: [number, number, number, number],
  bias: readonly BiasTerm[],
  want: (b: number, h: number, q: number, k: number) => number,
): Promise<string[]> {
  const actual = await device.bias({ shape, bias });
  const [batch, heads, queries, keys] = actual.shape as typeof shape;
  const data = new Float64Array(actual.size);
  let i = 0;
  for (let b = 0; b < batch; ++b)
    for (let h = 0; h < heads; ++h)
      for (let q = 0; q < queries; ++q) for (let k = 0; k < keys; ++k) data[i++] = want(b, h, q, k);
  // A dimension that the terms don't depend on is 1; `want` must not depend on it either.
  const [b, h] = [shape[0] - 1, shape[1] - 1];
  const last = data.subarray(data.length - queries * keys);
  for (let q = 0; q < queries; ++q) {
    for (let k = 0; k < keys; ++k) {
      if (!Object.is(last[q * keys + k], want(b, h, q, k)))
        return [`(${b}, ${h}, ${q}, ${k}) of a bias of shape [${actual.shape.join()}]`];
    }
  }
  return compareBias(actual, { data, shape: actual.shape });
}

/** A case of the conformance vectors: the job, the tensors that go in, and those that must come out. */
export async function readVector(name: string): Promise<{
  job: Record<string, unknown>;
  tensors: Record<string, HostTensor>;
  expected: Record<string, HostTensor>;
}> {
  const folder = join(__dirname, '../vectors', name);
  const job = JSON.parse(readFileSync(join(folder, 'job.json'), 'utf8')) as Record<string, unknown>;
  const read = async (file: string): Promise<Record<string, HostTensor>> => {
    await using opened = await openSafetensors(join(folder, file));
    const all: Record<string, HostTensor> = {};
    for (const tensor of opened.tensors.keys()) all[tensor] = await opened.read(tensor);
    return all;
  };
  return {
    job,
    tensors: typeof job.tensors === 'string' ? await read(job.tensors) : {},
    expected: await read('expected.safetensors'),
  };
}

/** An integer from low to high. */
export const between = (next: () => number, low: number, high: number): number =>
  low + Math.floor(next() * (high - low + 1));

export const seeds = [1, 2, 3, 4, 5, 6, 7, 8];
