import type {
  AttentionArgs,
  BiasArgs,
  DeformableArgs,
  DeformableBackwardArgs,
  Device,
  MultiheadArgs,
  ProjectArgs,
  RouterArgs,
} from '../lib/device.js';
import { AttentionBiasError } from '../lib/errors.js';
import type { Tensor } from '../lib/tensor.js';

/** The arguments of an operation, with the operation's name. */
export type Call =
  | ['attention', AttentionArgs]
  | ['bias', BiasArgs]
  | ['multihead', MultiheadArgs]
  | ['router', RouterArgs]
  | ['project', ProjectArgs]
  | ['deformable', DeformableArgs]
  | ['deformableBackward', DeformableBackwardArgs];

function tensor(value: number, shape: readonly number[]): Tensor {
  const data = new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(value);
  const fake = {
    data,
    shape,
    dtype: 'float32' as const,
    size: data.length,
    disposed: false,
    dispose: () => undefined,
  };
  return { ...fake, [Symbol.dispose]: () => undefined } as unknown as Tensor;
}

/** A device that notes its calls and computes nothing, or fails with `failure`. */
export function fakeDevice(failure?: Error): { device: Device; calls: Call[] } {
  const calls: Call[] = [];
  const note = async (...call: Call): Promise<void> => {
    await Promise.resolve();
    calls.push(call);
    if (failure) throw failure;
    if (call[1].signal?.aborted) throw new AttentionBiasError('ERR_ABORTED', 'aborted');
  };
  const device: Partial<Device> = {
    attention: async (args) => {
      await note('attention', args);
      return { out: tensor(1, [1, 1, 2, 3]), lse: tensor(2, [1, 1, 2]) };
    },
    bias: async (args) => {
      await note('bias', args);
      return tensor(3, [1, 1, 2, 5]) as Tensor<never>;
    },
    multihead: async (args) => {
      await note('multihead', args);
      return tensor(7, [1, 2, 4]);
    },
    router: async (args) => {
      await note('router', args);
      return tensor(4, [1, 2, 2]);
    },
    project: async (args) => {
      await note('project', args);
      return { bevCenters: tensor(5, [1, 2, 2]), cameraCenters: tensor(6, [1, 2, 3]) };
    },
    deformable: async (args) => {
      await note('deformable', args);
      return tensor(7, [1, 2, 3]);
    },
    deformableBackward: async (args) => {
      await note('deformableBackward', args);
      const grad = tensor(8, [1, 2, 3]);
      return { value: grad, samplingLocations: grad, attentionWeights: grad };
    },
    close: () => undefined,
  };
  return { device: device as Device, calls };
}
