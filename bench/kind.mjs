// Which device a benchmark measures. ATTENTION_BIAS_BINARY names another addon, such as the emulated one
// (scripts/build-emulated.js), to try the benchmarks where there is no GPU.

/** What a figure of this device is worth: only `gpu` ones are times of a GPU. */
export function kindOf({ backend, name }) {
  if (backend !== 'cuda') return 'cpu';
  return name.startsWith('emulated') ? 'emulated' : 'gpu';
}
