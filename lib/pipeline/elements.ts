/** Tensors as shards hold them: of the run's dtype, and as .npy. */
import { bfloat16ToFloat32, float32ToBfloat16, float32ToHalf, type HostTensor } from '../formats/host.js';
import { npyHeader } from '../formats/npy.js';
import type { ShardDtype } from './sidecar.js';

/** A safetensors dtype. */
export type ElementType = 'F32' | 'F16' | 'BF16' | 'I32' | 'U8';

export interface Elements {
  readonly type: ElementType;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** float32 and bfloat16 tensors in the run's dtype, others as they are. Without a copy where nothing changes. */
export function elementsOf({ data, shape, dtype }: HostTensor, as: ShardDtype): Elements {
  const of = (type: ElementType, array: ArrayBufferView): Elements => ({
    type,
    shape,
    bytes: bytesOf(array),
  });
  if (dtype === 'int32') return of('I32', data);
  if (dtype === 'uint8') return of('U8', data);
  if (dtype === 'bfloat16' && as === 'bf16') return of('BF16', data);
  const values = dtype === 'bfloat16' ? bfloat16ToFloat32(data as Uint16Array) : (data as Float32Array);
  switch (as) {
    case 'f32':
      return of('F32', values);
    case 'f16':
      return of('F16', float32ToHalf(values));
    case 'bf16':
      return of('BF16', float32ToBfloat16(values));
  }
}

const descriptors = { F32: '<f4', F16: '<f2', I32: '<i4', U8: '|u1' } as const;

/** A .npy file in two parts. `BF16` has none: NumPy has no such dtype. */
export function npyOf({ type, shape, bytes }: Elements): [header: Uint8Array, data: Uint8Array] {
  if (type === 'BF16') throw new Error('bfloat16 has no .npy form');
  return [npyHeader(descriptors[type], shape), bytes];
}
