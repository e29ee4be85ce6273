import { constants } from 'node:buffer';
import { availableParallelism } from 'node:os';

import { describe } from './describe.js';
import { AttentionBiasError, callNative, expected, fromNative } from './errors.js';
import { NativeDevice, requirePrecision } from './native-device.js';
import { native } from './native.js';
import type { NativeBinding } from './binding.js';
import type { Device, OpenOptions, Precision } from './device.js';

/** A setting with the name that a message calls it by. */
interface Setting {
  value: unknown;
  name: string;
}

const optionNames: readonly string[] = [
  'device',
  'threads',
  'precision',
  'memoryLimit',
] satisfies (keyof OpenOptions)[];
const maxThreads = 1024;

/** The option, else the environment variable where it is set and not empty. */
function setting(option: unknown, name: string, variable: string): Setting | undefined {
  if (option !== undefined) return { value: option, name };
  const value = process.env[variable];
  return value === undefined || value === '' ? undefined : { value, name: variable };
}

function requireKnownOptions(options: unknown): asserts options is OpenOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw expected('ERR_VALUE', 'an object', 'the options of open', describe(options));
  const unknown = Object.keys(options).find((name) => !optionNames.includes(name));
  if (unknown !== undefined) {
    throw expected(
      'ERR_VALUE',
      `no other fields than ${optionNames.join(', ')}`,
      'the options of open',
      describe(unknown),
    );
  }
}

/** The number of the CUDA device that is asked for; undefined for the CPU. */
function cudaOrdinal(device: Setting): number | undefined {
  if (device.value === 'auto' || device.value === 'cpu') return undefined;
  const match = typeof device.value === 'string' ? /^cuda(?::(\d{1,4}))?$/.exec(device.value) : null;
  if (!match) {
    throw expected('ERR_VALUE', '"auto", "cpu", "cuda" or "cuda:N"', device.name, describe(device.value));
  }
  return Number(match[1] ?? 0);
}

interface CudaOptions {
  precision?: Precision | undefined;
  memoryLimit?: number | undefined;
}

/** A CUDA device by its number. `asked` is what an error calls the setting. @internal */
export async function openCuda(
  binding: NativeBinding,
  ordinal: number,
  asked: string,
  { precision, memoryLimit }: CudaOptions = {},
): Promise<NativeDevice> {
  requirePrecision('cuda', precision);
  try {
    const limit = memoryLimit === undefined ? {} : { memoryLimit };
    const native = new binding.Device({ backend: 'cuda', ordinal, ...limit });
    try {
      await native.prepare(0, {});
    } catch (error) {
      native.close();
      throw error;
    }
    const { name, computeCapability, multiprocessors, memoryBytes } = native.info();
    const info = { backend: 'cuda', name, ordinal, computeCapability, multiprocessors, memoryBytes } as const;
    return new NativeDevice(binding, native, info, precision);
  } catch (cause) {
    const error = fromNative(cause);
    if (!(error instanceof AttentionBiasError) || error.code !== 'ERR_DEVICE') throw error;
    const received = `"cuda:${String(ordinal)}": ${error.message}`;
    const { message } = expected('ERR_DEVICE', 'a device that can be used', asked, received);
    throw new AttentionBiasError('ERR_DEVICE', message, { cause });
  }
}

/** The first GPU, where there is one and it computes as the host does. */
async function openAnyCuda(binding: NativeBinding, options: CudaOptions): Promise<Device | undefined> {
  let device: NativeDevice;
  try {
    device = await openCuda(binding, 0, 'device', options);
  } catch (error) {
    if (error instanceof AttentionBiasError && error.code === 'ERR_DEVICE') return undefined;
    throw error;
  }
  try {
    await device.selfTest();
    return device;
  } catch (error) {
    device.close();
    const reason = error instanceof Error ? error.message : String(error);
    process.emitWarning(`${device.info.name} is left unused, since its self-test failed: ${reason}`, {
      type: 'AttentionBiasWarning',
      detail: 'attention-bias doctor tells more',
    });
    return undefined;
  }
}

function openCpuWith(
  binding: NativeBinding,
  options: { threads: number; isa?: string | undefined; memoryLimit?: number | undefined },
  precision?: Precision,
): Device {
  requirePrecision('cpu', precision);
  const { threads, isa, memoryLimit } = options;
  const given = {
    ...(isa === undefined ? {} : { isa }),
    ...(memoryLimit === undefined ? {} : { memoryLimit }),
  };
  const native = callNative(() => new binding.Device({ backend: 'cpu', threads, ...given }));
  const { name, isa: level, threads: count } = callNative(() => native.info());
  const info = { backend: 'cpu', name, isa: level, threads: count } as const;
  return new NativeDevice(binding, native, info, precision);
}

function memoryLimitOf(limit: Setting | undefined): number | undefined {
  if (limit === undefined) return undefined;
  const { value, name } = limit;
  const fromEnvironment = name !== 'memoryLimit' && typeof value === 'string' && /^\d+(e\d+)?$/i.test(value);
  const bytes = fromEnvironment ? Number(value) : value;
  if (Number.isSafeInteger(bytes) && (bytes as number) > 0) return bytes as number;
  throw expected('ERR_VALUE', 'a number of bytes, an integer above 0,', name, describe(value));
}

function threadCount(threads: Setting | undefined): number {
  if (threads === undefined) return Math.min(availableParallelism(), maxThreads);
  const { value, name } = threads;
  const fromEnvironment = name !== 'threads' && typeof value === 'string' && /^\d+$/.test(value);
  const count = fromEnvironment ? Number(value) : value;
  if (typeof count === 'number' && Number.isInteger(count) && count >= 1 && count <= maxThreads) return count;
  throw expected('ERR_VALUE', `an integer from 1 to ${String(maxThreads)}`, name, describe(value));
}

function instructionSet(supported: readonly string[]): string | undefined {
  const isa = setting(undefined, '', 'ATTENTION_BIAS_ISA');
  if (isa === undefined) return undefined;
  if (typeof isa.value === 'string' && supported.includes(isa.value)) return isa.value;
  throw expected('ERR_VALUE', `one of ${supported.join(', ')}`, isa.name, describe(isa.value));
}

/**
 * Opens a device.
 *
 * An option that is absent is taken from ATTENTION_BIAS_DEVICE, ATTENTION_BIAS_THREADS or ATTENTION_BIAS_MEMORY_LIMIT where
 * these are set;
 * ATTENTION_BIAS_ISA picks a lower instruction set level of the CPU, for tests.
 *
 * @throws AttentionBiasError ERR_DEVICE when the device that was asked for can't be used; ERR_VALUE for an option or a
 *   variable with another value than it may have
 */
export async function open(options: OpenOptions = {}): Promise<Device> {
  await Promise.resolve();
  requireKnownOptions(options);
  const given: OpenOptions = { ...options }; // a getter among them is read once
  const asked = setting(given.device, 'device', 'ATTENTION_BIAS_DEVICE') ?? {
    value: 'auto',
    name: 'device',
  };
  const ordinal = cudaOrdinal(asked);
  const threads = threadCount(setting(given.threads, 'threads', 'ATTENTION_BIAS_THREADS'));
  const memoryLimit = memoryLimitOf(setting(given.memoryLimit, 'memoryLimit', 'ATTENTION_BIAS_MEMORY_LIMIT'));
  const binding = native();
  binding.setExternalLimit(constants.MAX_LENGTH);
  const { precision } = given;
  if (ordinal !== undefined) return openCuda(binding, ordinal, asked.name, { precision, memoryLimit });
  const isa = instructionSet(callNative(() => binding.info()).isas);
  if (asked.value === 'auto') {
    const device = await openAnyCuda(binding, { precision, memoryLimit });
    if (device) return device;
  }
  return openCpuWith(binding, { threads, isa, memoryLimit }, precision);
}

/** A CPU device of an instruction set level by name. @internal For self-tests and tests. */
export function openCpu(options: { threads: number; isa: string; precision?: Precision }): Device {
  return openCpuWith(native(), options, options.precision);
}
