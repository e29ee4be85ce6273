/** The options of every command that computes, and the device that they ask for. */
import type { Device, OpenOptions, Precision } from '../device.js';
import { open } from '../open.js';

export interface DeviceOptions {
  /** as in `OpenOptions`, whose checks these meet in `open` */
  device: string | undefined;
  precision: Precision | undefined;
  threads: number | undefined;
  'memory-limit'?: number | undefined;
}

export const deviceOptions = {
  device: { type: 'string', requiresArg: true, describe: 'auto, cpu, cuda or cuda:N' },
  precision: { choices: ['f32', 'tf32', 'bf16'], requiresArg: true, describe: 'of the arithmetic' },
  threads: { type: 'number', requiresArg: true, describe: 'CPU threads' },
  'memory-limit': {
    type: 'number',
    requiresArg: true,
    describe: "the most bytes of the device's memory, or of the system's for the CPU",
  },
} as const;

/** Opens the device; errors are those of `open`. */
export async function openDevice({
  device,
  precision,
  threads,
  'memory-limit': memoryLimit,
}: DeviceOptions): Promise<Device> {
  return open({ device: device as OpenOptions['device'], precision, threads, memoryLimit });
}

/** A device in a few words. */
export function describeDevice({ info }: Pick<Device, 'info'>): string {
  if (info.backend === 'cuda') return `cuda:${info.ordinal} ${info.name}`;
  return `${info.backend} ${info.isa}, ${info.threads} thread${info.threads === 1 ? '' : 's'}`;
}
