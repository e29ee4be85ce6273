/** Outputs of jobs against those of the conformance vectors (test/vectors). */
import {
  compareBias,
  compareCameraCenters,
  compareExact,
  compareNorm,
  compareZeroRows,
  DEFORMABLE_TOLERANCE,
  ROUTER_TOLERANCE,
  F32_TOLERANCE,
  type Values,
} from './compare.js';
import type { Precision } from './device.js';
import type { SafetensorsFile } from './formats/safetensors.js';
import type { JobOutputs } from './job.js';

type Operation =
  | 'attention'
  | 'attention-backward'
  | 'bias'
  | 'multihead'
  | 'router'
  | 'project'
  | 'deformable'
  | 'deformable-backward';
/** The operations that are built. */
export const operations: readonly string[] = [
  'attention',
  'attention-backward',
  'bias',
  'multihead',
  'router',
  'project',
  'deformable',
  'deformable-backward',
] satisfies Operation[];

/** Relative L2 tolerance of `attention` in each precision. */
export const TOLERANCES: Record<Precision, number> = { f32: F32_TOLERANCE, tf32: 1e-3, bf16: 1e-2 };

/** The same of gradients and of `multihead`. */
export const GRADIENT_TOLERANCES: Record<Precision, number> = { f32: 1e-5, tf32: 2e-3, bf16: 2e-2 };

/** What is wrong with one output. */
function compareOutput(
  op: Operation,
  name: string,
  actual: Values,
  expected: Values,
  precision: Precision,
): string[] {
  const tolerance = TOLERANCES[precision];
  switch (op) {
    case 'attention':
      return compareNorm(actual, expected, tolerance, name === 'lse');
    case 'attention-backward':
    case 'multihead':
      return compareNorm(actual, expected, GRADIENT_TOLERANCES[precision]);
    case 'router':
      return compareNorm(actual, expected, Math.max(ROUTER_TOLERANCE, tolerance));
    case 'deformable':
    case 'deformable-backward':
      return compareNorm(actual, expected, DEFORMABLE_TOLERANCE);
    case 'bias':
      return compareBias(actual, expected);
    case 'project':
      return name === 'cameraCenters'
        ? compareCameraCenters(actual, expected)
        : compareExact(actual, expected);
  }
}

/** What is wrong with the outputs of a case of the conformance vectors, computed in `precision`; an empty list if nothing is. */
export async function compareOutputs(
  op: string,
  outputs: JobOutputs,
  expected: SafetensorsFile,
  precision: Precision,
): Promise<string[]> {
  const problems: string[] = [];
  if (Object.keys(outputs).sort().join() !== [...expected.tensors.keys()].sort().join()) {
    problems.push(`outputs are ${Object.keys(outputs).join()}, not ${[...expected.tensors.keys()].join()}`);
  }
  const zero = JSON.parse(expected.metadata.get('exactZero') ?? '{}') as Record<string, number[]>;
  for (const [name, actual] of Object.entries(outputs)) {
    const wrong = compareOutput(op as Operation, name, actual, await expected.read(name), precision);
    wrong.push(...compareZeroRows(actual, zero[name] ?? []));
    problems.push(...wrong.map((text) => `${name}: ${text}`));
  }
  return problems;
}
