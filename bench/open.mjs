// Opens the device that a benchmark measures: this package's, or upon an addon that ATTENTION_BIAS_BENCH_ADDON names, such
// as the emulated one (scripts/build-emulated.js), to try the benchmarks where there is no GPU.
import { createRequire } from 'node:module';
import { resolve } from 'node:path';

const require = createRequire(import.meta.url);
const { open } = require('../dist/index.js');
const { openCuda } = require('../dist/open.js');

const addon = process.env.ATTENTION_BIAS_BENCH_ADDON;

export async function openDevice(device, precision) {
  if (!addon || device === 'cpu') return open({ device, precision });
  return openCuda(require(resolve(addon)), 0, 'device', precision);
}

/** What a figure of this device is worth: only `gpu` ones are times of a GPU. */
export function kindOf({ backend, name }) {
  if (backend !== 'cuda') return 'cpu';
  return name.startsWith('emulated') ? 'emulated' : 'gpu';
}
