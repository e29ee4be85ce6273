import { AttentionBiasError, callNative, expected, fromNative } from './errors.js';
import { adoptTensor, Tensor, wrapTensor } from './tensor.js';
import type { NativeBinding, NativeDevice as NativeHandle, OperationName } from './binding.js';
import type {
  AttentionArgs,
  AttentionResult,
  BiasArgs,
  CallOptions,
  Device,
  DeviceInfo,
  Precision,
  ProjectArgs,
  ProjectResult,
  RouterArgs,
} from './device.js';
import type { DType, DTypeOf, TensorLike, TypedArray } from './tensor.js';

const precisions: Record<DeviceInfo['backend'], readonly Precision[]> = {
  cpu: ['f32'],
  cuda: ['f32', 'tf32', 'bf16'],
};

/** Checks a precision that a backend is asked for. `value` undefined: the default. */
export function requirePrecision(backend: DeviceInfo['backend'], value: unknown): void {
  if (value === undefined || (precisions[backend] as readonly unknown[]).includes(value)) return;
  const received = typeof value === 'string' ? JSON.stringify(value) : typeof value;
  const known = precisions[backend].map((name) => JSON.stringify(name)).join(' or ');
  throw expected('ERR_VALUE', known, `precision on the ${backend} backend`, received);
}

function requireSignal(signal: unknown): asserts signal is AbortSignal | undefined {
  if (signal === undefined) return;
  // By shape: signals of another realm are as good.
  const { aborted, addEventListener } = Object(signal) as Partial<AbortSignal>;
  if (typeof aborted === 'boolean' && typeof addEventListener === 'function') return;
  throw expected('ERR_VALUE', 'an AbortSignal', 'signal', typeof signal);
}

function requireArgs<T extends CallOptions>(args: T): T {
  const given: unknown = args; // JavaScript may pass anything
  if (typeof given === 'object' && given !== null) return args;
  throw expected('ERR_VALUE', 'an object', 'the arguments', given === null ? 'null' : typeof given);
}

/** An output that the caller gave, as it is now: what becomes of the caller's object meanwhile changes nothing. */
function keep(given: TensorLike | undefined): TensorLike | undefined {
  if (given instanceof Tensor || typeof given !== 'object') return given;
  const { data, shape } = given;
  return { data, shape: Array.isArray(shape) ? [...(shape as readonly number[])] : shape };
}

/** A device over a native backend. Arguments are checked there, not here. */
export class NativeDevice implements Device {
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

  tensor<D extends DType = 'float32'>(shape: readonly number[], options: { dtype?: D } = {}): Tensor<D> {
    this.#requireOpen();
    const buffer = callNative(() => this.#binding.allocate(shape, options));
    return adoptTensor(this.#binding, buffer, shape, options.dtype ?? ('float32' as D));
  }

  from<A extends TypedArray>(data: A, shape?: readonly number[]): Tensor<DTypeOf<A>> {
    this.#requireOpen();
    return wrapTensor(this.#binding, data, shape ?? [(Object(data) as A).length]);
  }

  async attention(args: AttentionArgs): Promise<AttentionResult> {
    const { precision = this.#precision, ...rest } = requireArgs(args);
    requirePrecision(this.info.backend, precision);
    const withPrecision: AttentionArgs = { ...rest, precision };
    return this.#run('attention', withPrecision, { out: rest.out, lse: rest.lse });
  }

  async bias(args: BiasArgs): Promise<Tensor> {
    return (await this.#run('bias', args, { out: requireArgs(args).out })).out;
  }

  async router(args: RouterArgs): Promise<Tensor> {
    return (await this.#run('router', args, { out: requireArgs(args).out })).out;
  }

  async project(args: ProjectArgs): Promise<ProjectResult> {
    return this.#run('project', requireArgs(args), { bevCenters: undefined, cameraCenters: undefined });
  }

  /** Milliseconds that the GPU took for the last operation's kernels, without copies. @internal For benchmarks. */
  get kernelMs(): number {
    return this.#native.info().kernelMs;
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
    const { signal, ...rest } = args;
    requireSignal(signal);
    if (signal?.aborted) {
      throw new AttentionBiasError('ERR_ABORTED', 'the operation was aborted', { cause: signal.reason });
    }
    const kept = Object.entries<TensorLike | undefined>(outputs).map(
      ([name, given]) => [name, keep(given)] as const,
    );
    const id = ++this.#calls;
    try {
      const pending = this.#native[operation](id, rest);
      if (signal) this.#watch(signal, id);
      const made = await pending;
      const results = kept.map(([name, given]) => {
        const tensor = made[name];
        if (tensor) return [name, adoptTensor(this.#binding, tensor.buffer, tensor.shape, 'float32')];
        if (given instanceof Tensor || given === undefined) return [name, given];
        return [name, wrapTensor(this.#binding, given.data, given.shape)];
      });
      return Object.fromEntries(results) as Record<Name, Tensor>;
    } catch (error) {
      throw fromNative(error, signal?.aborted ? { cause: signal.reason } : undefined);
    } finally {
      if (signal) this.#unwatch(signal, id);
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
