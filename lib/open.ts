import { constants } from 'node:buffer';
import { availableParallelism } from 'node:os';

import { CpuDevice, requireCpuPrecision } from './cpu-device.js';
import { expected } from './errors.js';
import { native } from './native.js';
import type { Device, OpenOptions } from './device.js';

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

/** ERR_DEVICE unless the setting asks for a device that is there. */
function requireDevice(device: Setting | undefined): void {
  if (device === undefined || device.value === 'auto' || device.value === 'cpu') return;
  if (typeof device.value !== 'string' || !/^cuda(:\d{1,4})?$/.test(device.value)) {
    throw expected('ERR_VALUE', '"auto", "cpu", "cuda" or "cuda:N"', device.name, show(device.value));
  }
  const reason = 'which needs the CUDA backend: this version has none yet';
  throw expected('ERR_DEVICE', 'a device that can be used', device.name, `${show(device.value)}, ${reason}`);
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
  requireDevice(setting(options.device, 'device', 'ATTENTION_BIAS_DEVICE'));
  requireCpuPrecision(options.precision);
  const threads = threadCount(setting(options.threads, 'threads', 'ATTENTION_BIAS_THREADS'));
  const binding = native();
  binding.setExternalLimit(constants.MAX_LENGTH);
  const isa = instructionSet(binding.info().isas);
  return new CpuDevice(binding, isa === undefined ? { threads } : { threads, isa });
}

/** A CPU device of an instruction set level by name. @internal For self-tests and tests. */
export function openCpu(options: { threads: number; isa: string }): Device {
  return new CpuDevice(native(), options);
}
