/** Weights of torch.nn.MultiheadAttention modules in the state dict of a safetensors file. */
import { expected } from './errors.js';
import { openSafetensors, type SafetensorsFile } from './formats/safetensors.js';
import type { HostTensor } from './formats/host.js';

/** Of a module with E channels; every field goes where `Device.multihead` takes it. */
export interface LoadedMultihead {
  /** [3E, E] */
  inProjWeight: HostTensor<'float32'>;
  /** [3E]; absent in a module without biases */
  inProjBias?: HostTensor<'float32'>;
  /** [E, E] */
  outProjWeight: HostTensor<'float32'>;
  /** [E]; absent likewise */
  outProjBias?: HostTensor<'float32'>;
}

const shapeOf = ({ shape }: { shape: readonly number[] }): string => `[${shape.join(', ')}]`;

/**
 * Reads `in_proj_weight`, `in_proj_bias`, `out_proj.weight` and `out_proj.bias` of one torch.nn.MultiheadAttention, in
 * float32, or F16, BF16 and F64 converted. The biases may be missing. Refused are modules of other sizes for key and value
 * (`q_proj_weight` and so on: kdim, vdim), and those that add a key and a value of their own (`bias_k`, `bias_v`).
 *
 * @param file a safetensors file, or its path
 * @param prefix the module's name in the state dict, such as `decoder.layers.0.attentions.1.attn`, with or without the dot
 *   at its end; `''` where the file holds nothing else
 * @throws AttentionBiasError ERR_FORMAT for tensors that are missing or of such a module, ERR_SHAPE, ERR_DTYPE, ERR_IO
 */
export async function loadMultihead(
  file: SafetensorsFile | string,
  prefix: string,
): Promise<LoadedMultihead> {
  if (typeof file !== 'string') return load(file, prefix);
  await using opened = await openSafetensors(file);
  return await load(opened, prefix);
}

async function load(file: SafetensorsFile, prefix: string): Promise<LoadedMultihead> {
  const start = prefix === '' || prefix.endsWith('.') ? prefix : `${prefix}.`;
  const refuse = (what: string, name: string, received: string) =>
    expected('ERR_FORMAT', what, `${start}${name} in ${file.path}`, received);
  for (const name of ['q_proj_weight', 'k_proj_weight', 'v_proj_weight']) {
    if (!file.tensors.has(start + name)) continue;
    throw refuse('one in_proj_weight, key and value having the sizes of query', name, 'a weight of its own');
  }
  for (const name of ['bias_k', 'bias_v']) {
    if (file.tensors.has(start + name)) throw refuse('no added key and value', name, 'one');
  }
  const optional = async (name: string, want: (shape: readonly number[]) => string) => {
    const entry = file.tensors.get(start + name);
    if (!entry) return undefined;
    if (want(entry.shape) !== shapeOf(entry)) {
      const where = `${start}${name} in ${file.path}`;
      throw expected('ERR_SHAPE', want(entry.shape), where, shapeOf(entry));
    }
    return file.readFloat32(start + name);
  };
  const required = async (name: string, want: (shape: readonly number[]) => string) => {
    const tensor = await optional(name, want);
    if (tensor) return tensor;
    const weights = [...file.tensors.keys()].filter((key) => key.endsWith('in_proj_weight')).slice(0, 8);
    const modules = weights.map((key) => key.slice(0, -'in_proj_weight'.length).replace(/\.$/, ''));
    const known = modules.length === 0 ? 'of a file with such modules' : `of ${modules.join(', ')}`;
    throw refuse(`a tensor ${known}`, name, 'nothing');
  };
  const outProjWeight = await required('out_proj.weight', ([e]) => `[${e}, ${e}]`);
  const e = outProjWeight.shape[0] ?? 0;
  const inProjWeight = await required('in_proj_weight', () => `[${3 * e}, ${e}]`);
  const inProjBias = await optional('in_proj_bias', () => `[${3 * e}]`);
  const outProjBias = await optional('out_proj.bias', () => `[${e}]`);
  return {
    inProjWeight,
    ...(inProjBias && { inProjBias }),
    outProjWeight,
    ...(outProjBias && { outProjBias }),
  };
}
