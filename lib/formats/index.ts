/** `attention-bias/formats`: tensors in files. Writers write whole files or none; readers check what they read. */
export { openSafetensors, writeSafetensors } from './safetensors.js';
export type { Allocate } from './io.js';
export type { ReadOptions, SafetensorsEntry, SafetensorsFile, SafetensorsHeader } from './safetensors.js';
export { readNpy, readNpz, writeNpy, writeNpz } from './npy.js';
export type { HostTensor, WritableTensor } from './host.js';
