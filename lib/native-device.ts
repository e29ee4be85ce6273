import { freemem, totalmem } from 'node:os';

import { AttentionBiasError, callNative, expected, fromNative } from './errors.js';
import { adoptTensor, keepShape, Tensor, wrapTensor } from './tensor.js';
import type { NativeBinding, NativeDevice as NativeHandle, OperationName } from './binding.js';
import type {
  AttentionArgs,
  AttentionResult,
  BackwardArgs,
  BackwardResult,
  BiasArgs,
  CallOptions,
  DeformableArgs,
  DeformableBackwardArgs,
  DeformableGradients,
  Device,
  DeviceInfo,
  Precision,
  LinearArgs,
  MultiheadArgs,
  ProjectArgs,
  ProjectResult,
  RouterArgs,
  RouterBackwardArgs,
  RouterBackwardResult,
  MemoryUse,
  TensorDType,
} from './device.js';
import { gradientsByField, withDispose } from './gradients.js';
import { requireSignal } from './signal.js';
import { observeOperations } from './telemetry.js';
import type { DType, DTypeOf, MemoryKind, TensorLike, TypedArray } from './tensor.js';
import type { BiasTerm } from './terms.js';

const precisions: Record<DeviceInfo['backend'], readonly Precision[]> = {
  cpu: ['f32', 'bf16'],
  cuda: ['f32', 'tf32', 'bf16'],
};

/** Checks a precision that a backend is asked for. `value` undefined: the default. */
export function requirePrecision(backend: DeviceInfo['backend'], value: unknown): void {
  if (value === undefined || (precisions[backend] as readonly unknown[]).includes(value)) return;
  const received = typeof value === 'string' ? JSON.stringify(value) : typeof value;
  const known = precisions[backend].map((name) => JSON.stringify(name)).join(' or ');
  throw expected('ERR_VALUE', known, `precision on the ${backend} backend`, received);
}

/** The arguments as they are now: a getter among them is read once, whatever it gives a second time. */
function requireArgs<T extends object>(args: T): T {
  const given: unknown = args; // JavaScript may pass anything
  if (typeof given === 'object' && given !== null) return { ...args };
  throw expected('ERR_VALUE', 'an object', 'the arguments', given === null ? 'null' : typeof given);
}

/** An output that the caller gave, as it is now: what becomes of the caller's object meanwhile changes nothing. */
function keep(given: TensorLike | undefined): TensorLike | undefined {
  if (given instanceof Tensor || typeof given !== 'object' || (given as unknown) === null) return given;
  const { data, shape } = given;
  return { data, shape: keepShape(shape) };
}

/** A device over a native backend. Arguments are checked there, not here. */
export class NativeDevice implements Device {
  static {
    observeOperations(this.prototype, (device: NativeDevice) => device.#precision);
  }

  readonly info: DeviceInfo;
  readonly #binding: NativeBinding;
  readonly #native: NativeHandle;
  readonly #precision: Precision | undefined;
  /** Operations under way by their signal: one listener a signal, however many operations share it. */
  readonly #signals = new Map<AbortSignal, { ids: Set<number>; abort: () => void }>();
  #closed = false;
  #calls = 0;

  /** `native` is a device of the binding; `precision` is the default of its attention. */
  constructor(binding: NativeBinding, native: NativeHandle, info: DeviceInfo, precision?: Precision) {
    this.#binding = binding;
    this.#native = native;
    this.#precision = precision;
    this.info = Object.freeze(info);
  }

  tensor<D extends DType = 'float32'>(
    shape: readonly number[],
    options: { dtype?: D; memory?: MemoryKind } = {},
  ): Tensor<D> {
    this.#requireOpen();
    const kept = keepShape(shape);
    const given = requireArgs(options);
    const buffer = callNative(() => this.#native.allocate(kept, given));
    const memory = this.info.backend === 'cpu' ? 'host' : given.memory;
    return adoptTensor(this.#binding, buffer, kept, given.dtype ?? ('float32' as D), memory);
  }

  from<A extends TypedArray>(data: A, shape?: readonly number[]): Tensor<DTypeOf<A>> {
    this.#requireOpen();
    // A proxy of a typed array is none, and has no length; the addon says so.
    const all = ArrayBuffer.isView(data) ? data.length : 0;
    return wrapTensor(this.#binding, data, shape ?? [all]);
  }

  async toDevice<T extends TensorLike>(
    tensor: T,
    options: CallOptions = {},
  ): Promise<Tensor<TensorDType<T>>> {
    const { signal } = requireArgs(options);
    return this.#copy(tensor, { signal, memory: 'device' });
  }

  async toHost<T extends TensorLike>(
    tensor: T,
    options: CallOptions & { memory?: 'host' | 'pinned' | undefined; out?: TensorLike | undefined } = {},
  ): Promise<Tensor<TensorDType<T>>> {
    return this.#copy(tensor, { memory: 'host', ...requireArgs(options) });
  }

  async #copy<T extends TensorLike>(
    source: T,
    options: CallOptions & { memory?: MemoryKind | undefined; out?: TensorLike | undefined },
  ): Promise<Tensor<TensorDType<T>>> {
    const args: CallOptions = { ...options, ...{ source } };
    const { out } = await this.#run('copy', args, { out: options.out });
    return out as Tensor<DType> as Tensor<TensorDType<T>>;
  }

  async attention(args: AttentionArgs): Promise<AttentionResult> {
    const { precision = this.#precision, ...rest } = requireArgs(args);
    requirePrecision(this.info.backend, precision);
    const withPrecision: AttentionArgs = { ...rest, precision };
    return this.#run('attention', withPrecision, { out: rest.out, lse: rest.lse });
  }

  async attentionBackward<const Terms extends readonly BiasTerm[] = readonly BiasTerm[]>(
    args: BackwardArgs<Terms>,
  ): Promise<BackwardResult<Terms>> {
    const { precision = this.#precision, ...rest } = requireArgs(args);
    requirePrecision(this.info.backend, precision);
    const withPrecision: CallOptions = { ...rest, ...{ precision } };
    const count = Array.isArray(rest.bias) ? rest.bias.length : 0; // what is no list is refused below
    const wanted = rest.termGradients !== false;
    const made = await this.#made('attentionBackward', withPrecision);
    return gradientsByField(made, wanted ? count : 0) as BackwardResult<Terms>;
  }

  bias(args: BiasArgs & { dtype: 'bfloat16' }): Promise<Tensor<'bfloat16'>>;
  bias(args: BiasArgs & { dtype?: 'float32' | undefined }): Promise<Tensor>;
  bias(args: BiasArgs): Promise<Tensor<'float32' | 'bfloat16'>>;
  async bias(args: BiasArgs): Promise<Tensor<DType>> {
    const given = requireArgs(args);
    return (await this.#run('bias', given, { out: given.out })).out;
  }

  async linear(args: LinearArgs): Promise<Tensor> {
    const given = requireArgs(args);
    return (await this.#run('linear', given, { out: given.out })).out;
  }

  async multihead(args: MultiheadArgs): Promise<Tensor> {
    const { precision = this.#precision, ...rest } = requireArgs(args);
    requirePrecision(this.info.backend, precision);
    const withPrecision: MultiheadArgs = { ...rest, precision };
    return (await this.#run('multihead', withPrecision, { out: rest.out })).out;
  }

  async router(args: RouterArgs): Promise<Tensor> {
    const given = requireArgs(args);
    return (await this.#run('router', given, { out: given.out })).out;
  }

  async routerBackward(args: RouterBackwardArgs): Promise<RouterBackwardResult> {
    const outputs = { features: undefined, weight: undefined, bias: undefined };
    return withDispose(await this.#run('routerBackward', requireArgs(args), outputs));
  }

  async project(args: ProjectArgs): Promise<ProjectResult> {
    return this.#run('project', requireArgs(args), { bevCenters: undefined, cameraCenters: undefined });
  }

  async deformable(args: DeformableArgs): Promise<Tensor> {
    const given = requireArgs(args);
    return (await this.#run('deformable', given, { out: given.out })).out;
  }

  async deformableBackward(args: DeformableBackwardArgs): Promise<DeformableGradients> {
    const names = { gradValue: undefined, gradSamplingLocations: undefined, gradAttentionWeights: undefined };
    const grads = await this.#run('deformableBackward', requireArgs(args), names);
    return {
      value: grads.gradValue,
      samplingLocations: grads.gradSamplingLocations,
      attentionWeights: grads.gradAttentionWeights,
    };
  }

  /** Small cases against the host; ERR_DEVICE with what differs. @internal */
  async selfTest(): Promise<void> {
    await this.#run('selfTest', {}, {});
  }

  /** Milliseconds that the GPU took for the last operation, from its first kernel to its last. @internal For benchmarks. */
  get kernelMs(): number {
    return this.#native.info().kernelMs;
  }

  memory(): MemoryUse {
    this.#requireOpen();
    const own = callNative(() => this.#native.memory());
    if (own && this.info.backend === 'cuda') return own;
    return {
      usedBytes: own?.usedBytes ?? this.#binding.memory().bytes,
      cachedBytes: 0,
      limitBytes: own?.limitBytes ?? 0,
      freeBytes: freemem(),
      totalBytes: totalmem(),
    };
  }

  trim(): void {
    this.#requireOpen();
    this.#native.trim();
  }

  close(): void {
    this.#closed = true;
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #requireOpen(): void {
    if (this.#closed) throw expected('ERR_DEVICE', 'an open device', 'the call', 'a closed one');
  }

  /** Runs an operation. `outputs` has its outputs by name, with the tensors that the caller gave for them. */
  async #run<Name extends string>(
    operation: OperationName,
    args: CallOptions,
    outputs: Record<Name, TensorLike | undefined>,
  ): Promise<Record<Name, Tensor>> {
    const kept = Object.entries<TensorLike | undefined>(outputs).map(
      ([name, given]) => [name, keep(given)] as const,
    );
    const made = await this.#made(operation, args);
    const results = kept.map(([name, given]) => {
      if (made[name]) return [name, made[name]];
      if (given instanceof Tensor || given === undefined) return [name, given];
      return [name, wrapTensor(this.#binding, given.data, given.shape)];
    });
    return Object.fromEntries(results) as Record<Name, Tensor>;
  }

  /** The outputs of an operation that the caller gave no tensors for, by name. */
  async #made(operation: OperationName, args: CallOptions): Promise<Record<string, Tensor>> {
    const { signal, ...rest } = args;
    requireSignal(signal);
    if (signal?.aborted) {
      throw new AttentionBiasError('ERR_ABORTED', 'the operation was aborted', { cause: signal.reason });
    }
    const id = ++this.#calls;
    try {
      const pending = this.#native[operation](id, rest);
      if (signal) this.#watchOr(signal, id, pending);
      const made = Object.entries(await pending).map(([name, { buffer, shape, dtype, memory }]) => {
        return [name, adoptTensor(this.#binding, buffer, shape, dtype, memory)];
      });
      return Object.fromEntries(made) as Record<string, Tensor>;
    } catch (error) {
      throw fromNative(error, signal?.aborted ? { cause: signal.reason } : undefined);
    } finally {
      if (signal) this.#unwatch(signal, id);
    }
  }

  /** Watches, or, where a signal of the caller's own making fails at that, gives up the operation. */
  #watchOr(signal: AbortSignal, id: number, pending: Promise<unknown>): void {
    try {
      this.#watch(signal, id);
    } catch (error) {
      pending.catch(() => undefined);
      this.#native.abort(id);
      throw error;
    }
  }

  #watch(signal: AbortSignal, id: number): void {
    let watched = this.#signals.get(signal);
    if (!watched) {
      const ids = new Set<number>();
      const abort = (): void => {
        for (const one of ids) this.#native.abort(one);
      };
      watched = { ids, abort };
      this.#signals.set(signal, watched);
      signal.addEventListener('abort', abort, { once: true });
    }
    watched.ids.add(id);
    if (signal.aborted) this.#native.abort(id); // by a getter of the arguments
  }

  #unwatch(signal: AbortSignal, id: number): void {
    const watched = this.#signals.get(signal);
    if (!watched?.ids.delete(id) || watched.ids.size > 0) return;
    this.#signals.delete(signal);
    signal.removeEventListener('abort', watched.abort);
  }
}
