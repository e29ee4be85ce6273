import { constants } from 'node:buffer';
import { availableParallelism } from 'node:os';

import { callNative, expected } from './errors.js';
import { NativeDevice, requirePrecision } from './native-device.js';
import { native } from './native.js';
import type { NativeBinding } from './binding.js';
import type { Device, OpenOptions, Precision } from './device.js';

/** A setting with the name that a message calls it by. */
interface Setting {
  value: unknown;
  name: string;
}

const optionNames: readonly string[] = ['device', 'threads', 'precision'] satisfies (keyof OpenOptions)[];
const maxThreads = 1024;

/** The option, else the environment variable where it is set and not empty. */
function setting(option: unknown, name: string, variable: string): Setting | undefined {
  if (option !== undefined) return { value: option, name };
  const value = process.env[variable];
  return value === undefined || value === '' ? undefined : { value, name: variable };
}

function show(value: unknown): string {
  if (typeof value === 'string') return JSON.stringify(value);
  return typeof value === 'object' && value !== null ? 'an object' : String(value);
}

function requireKnownOptions(options: unknown): asserts options is OpenOptions {
  if (typeof options !== 'object' || options === null || Array.isArray(options))
    throw expected('ERR_VALUE', 'an object', 'the options of open', show(options));
  const unknown = Object.keys(options).find((name) => !optionNames.includes(name));
  if (unknown !== undefined) {
    throw expected(
      'ERR_VALUE',
      `no other fields than ${optionNames.join(', ')}`,
      'the options of open',
      show(unknown),
    );
  }
}

/** The number of the CUDA device that is asked for; undefined for the CPU. */
function cudaOrdinal(device: Setting | undefined): number | undefined {
  if (device === undefined || device.value === 'auto' || device.value === 'cpu') return undefined;
  const match = typeof device.value === 'string' ? /^cuda(?::(\d{1,4}))?$/.exec(device.value) : null;
  if (!match) {
    throw expected('ERR_VALUE', '"auto", "cpu", "cuda" or "cuda:N"', device.name, show(device.value));
  }
  return Number(match[1] ?? 0);
}

/** A CUDA device by its number. `asked` is what an error calls the setting. @internal */
export function openCuda(
  binding: NativeBinding,
  ordinal: number,
  asked: string,
  precision: Precision | undefined,
): Device {
  requirePrecision('cuda', precision);
  const status = callNative(() => binding.cuda(false));
  const found = status.devices.find((device) => device.ordinal === ordinal);
  if (!found) {
    const reason =
      status.reason || `only ${status.devices.map((d) => `cuda:${d.ordinal} (${d.name})`).join(', ')}`;
    throw expected('ERR_DEVICE', 'a device that can be used', asked, `"cuda:${ordinal}": ${reason}`);
  }
  const { name, computeCapability, multiprocessors, memoryBytes } = found;
  const native = callNative(() => new binding.Device({ backend: 'cuda', ordinal }));
  const info = { backend: 'cuda', name, ordinal, computeCapability, multiprocessors, memoryBytes } as const;
  return new NativeDevice(binding, native, info, precision);
}

function openCpuWith(
  binding: NativeBinding,
  options: { threads: number; isa?: string | undefined },
  precision?: Precision,
): Device {
  requirePrecision('cpu', precision);
  const { threads, isa } = options;
  const native = callNative(
    () => new binding.Device({ backend: 'cpu', threads, ...(isa === undefined ? {} : { isa }) }),
  );
  const { isa: level, threads: count } = native.info();
  const info = { backend: 'cpu', name: binding.info().processor, isa: level, threads: count } as const;
  return new NativeDevice(binding, native, info, precision);
}

function threadCount(threads: Setting | undefined): number {
  if (threads === undefined) return Math.min(availableParallelism(), maxThreads);
  const { value, name } = threads;
  const fromEnvironment = name !== 'threads' && typeof value === 'string' && /^\d+$/.test(value);
  const count = fromEnvironment ? Number(value) : value;
  if (typeof count === 'number' && Number.isInteger(count) && count >= 1 && count <= maxThreads) return count;
  throw expected('ERR_VALUE', `an integer from 1 to ${String(maxThreads)}`, name, show(value));
}

function instructionSet(supported: readonly string[]): string | undefined {
  const isa = setting(undefined, '', 'ATTENTION_BIAS_ISA');
  if (isa === undefined) return undefined;
  if (typeof isa.value === 'string' && supported.includes(isa.value)) return isa.value;
  throw expected('ERR_VALUE', `one of ${supported.join(', ')}`, isa.name, show(isa.value));
}

/**
 * Opens a device.
 *
 * An option that is absent is taken from ATTENTION_BIAS_DEVICE or ATTENTION_BIAS_THREADS where these are set;
 * ATTENTION_BIAS_ISA picks a lower instruction set level of the CPU, for tests.
 *
 * @throws AttentionBiasError ERR_DEVICE when the device that was asked for can't be used; ERR_VALUE for an option or a
 *   variable with another value than it may have
 */
export async function open(options: OpenOptions = {}): Promise<Device> {
  // In a promise: opening a GPU will take its time, and every error is a rejection.
  await Promise.resolve();
  requireKnownOptions(options);
  const asked = setting(options.device, 'device', 'ATTENTION_BIAS_DEVICE');
  const ordinal = cudaOrdinal(asked);
  const threads = threadCount(setting(options.threads, 'threads', 'ATTENTION_BIAS_THREADS'));
  const binding = native();
  binding.setExternalLimit(constants.MAX_LENGTH);
  if (ordinal !== undefined) return openCuda(binding, ordinal, asked?.name ?? 'device', options.precision);
  return openCpuWith(binding, { threads, isa: instructionSet(binding.info().isas) }, options.precision);
}

/** A CPU device of an instruction set level by name. @internal For self-tests and tests. */
export function openCpu(options: { threads: number; isa: string }): Device {
  return openCpuWith(native(), options);
}
