/** The calls of a device's operations, described: what of their arguments an event tells. */
import type { DeviceInfo, Precision } from '../device.js';
import { bytesOf } from '../tensor.js';
import type { Operation, OperationEvent } from './events.js';

/** Reads a size of an argument: dimension `axis` of `name`, from its end where negative. */
type Size = (name: string, axis: number) => number | undefined;
type Sizes = Record<string, number | undefined>;

const attentionSizes = (size: Size): Sizes => ({
  B: size('query', 0),
  H: size('query', 1),
  Q: size('query', 2),
  K: size('key', 2),
  D: size('query', 3),
  Dv: size('value', 3),
});

const routerSizes = (size: Size): Sizes => ({
  B: size('features', 0),
  Q: size('features', 1),
  E: size('features', 2),
  M: size('weight', 0),
});

const deformableSizes = (size: Size): Sizes => ({
  B: size('value', 0),
  Q: size('samplingLocations', 1),
  H: size('value', 2),
  S: size('value', 1),
  D: size('value', 3),
  L: size('samplingLocations', 3),
  P: size('samplingLocations', 4),
});

const none = (): Sizes => ({});

/** The sizes of each operation's arguments by their letters; of copies, `describeCall` tells the elements. */
const sizes: Readonly<Record<Operation, (size: Size, args: Record<string, unknown>) => Sizes>> = {
  attention: attentionSizes,
  attentionBackward: attentionSizes,
  bias: (_, { shape }) => {
    const [B, H, Q, K] = shape as number[];
    return { B, H, Q, K };
  },
  linear: (size) => ({ E: size('input', -1), N: size('weight', 0) }),
  multihead: (size, { heads }) => ({
    B: size('query', 0),
    H: heads as number,
    Q: size('query', 1),
    K: size('key', 1),
    E: size('query', 2),
  }),
  router: routerSizes,
  routerBackward: routerSizes,
  project: (size) => ({
    B: size('referencePoints', 0),
    Q: size('referencePoints', 1),
    V: size('lidar2img', 1),
  }),
  deformable: deformableSizes,
  deformableBackward: deformableSizes,
  toDevice: none,
  toHost: none,
};

/** Names of the operations that are told of: each has a channel `attention-bias:NAME` of node:diagnostics_channel. */
export const operations = Object.keys(sizes) as readonly Operation[];

const withPrecision: ReadonlySet<Operation> = new Set(['attention', 'attentionBackward', 'multihead']);
const copies: ReadonlySet<Operation> = new Set(['toDevice', 'toHost']);

/** What `read` makes of arguments that may be anything; undefined where it fails. */
function attempt<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

function numbers(given: Sizes): Record<string, number> {
  const known = Object.entries(given).filter(([, size]) => typeof size === 'number' && Number.isFinite(size));
  return Object.fromEntries(known) as Record<string, number>;
}

function termTypes(bias: unknown): string[] {
  if (!Array.isArray(bias)) return [];
  return bias.flatMap((term: unknown) => {
    const { type } = Object(term) as { type?: unknown };
    return typeof type === 'string' ? [type] : [];
  });
}

/**
 * The event of a call. Arguments are read before anything has checked them, so whatever they are, this does not throw.
 *
 * @param precision the device's default
 */
export function describeCall(
  operation: Operation,
  info: DeviceInfo,
  precision: Precision | undefined,
  args: unknown,
): OperationEvent {
  const given = Object(args) as Record<string, unknown>;
  const size: Size = (name, axis) => (given[name] as { shape: readonly number[] }).shape.at(axis);
  const asked = attempt(() => given.precision as Precision | undefined);
  const bytes = copies.has(operation) ? attempt(() => bytesOf(args as never)) : undefined;
  const elements = copies.has(operation)
    ? attempt(() => ({ elements: (given.shape as number[]).reduce((a, b) => a * b, 1) }))
    : undefined;
  return {
    kind: 'operation',
    operation,
    backend: info.backend,
    device: info.backend === 'cuda' ? `cuda:${info.ordinal}` : 'cpu',
    shape: numbers(elements ?? attempt(() => sizes[operation](size, given)) ?? {}),
    ...(withPrecision.has(operation) ? { precision: asked ?? precision ?? 'f32' } : {}),
    terms: attempt(() => termTypes(given.bias)) ?? [],
    ...(bytes === undefined ? {} : { bytes }),
  };
}
