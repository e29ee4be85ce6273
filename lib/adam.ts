import { expected } from './errors.js';
import { Tensor, type TensorLike } from './tensor.js';

export interface AdamOptions {
  /** default 1e-3 */
  learningRate?: number | undefined;
  /** decay of the means of gradients and of their squares; default [0.9, 0.999] */
  betas?: readonly [number, number] | undefined;
  /** default 1e-8 */
  epsilon?: number | undefined;
  /** default 0; taken off the parameters themselves, as AdamW does (Loshchilov and Hutter, ICLR 2019) */
  weightDecay?: number | undefined;
}

interface Moments {
  readonly first: Float64Array;
  readonly second: Float64Array;
}

function floats(tensor: TensorLike, name: string): Float32Array {
  if (tensor instanceof Tensor && tensor.memory === 'device') {
    throw expected(
      'ERR_DEVICE',
      "a tensor in the host's memory",
      name,
      "one in a device's (toHost copies it)",
    );
  }
  const data: unknown = tensor.data;
  // By its tag: arrays of another realm are as good.
  if (Object.prototype.toString.call(data) === '[object Float32Array]') return data as Float32Array;
  throw expected('ERR_DTYPE', 'float32', name, Object.prototype.toString.call(data).slice(8, -1));
}

function inRange(value: number, low: number, high: number, name: string): number {
  if (value >= low && value < high) return value;
  throw expected('ERR_VALUE', `a number from ${low} to below ${high}`, name, String(value));
}

/**
 * The Adam optimiser (Kingma and Ba, ICLR 2015), for small parameters in the host's memory such as a router's. Its means are
 * float64.
 */
export class Adam {
  /** may be changed between steps: a schedule */
  learningRate: number;
  readonly #parameters: readonly TensorLike[];
  readonly #moments: readonly Moments[];
  readonly #betas: readonly [number, number];
  readonly #epsilon: number;
  readonly #weightDecay: number;
  #steps = 0;

  /**
   * @param parameters float32, each a Tensor or { data, shape }; step() writes to them
   * @throws AttentionBiasError ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_VALUE
   */
  constructor(parameters: readonly TensorLike[], options: AdamOptions = {}) {
    const { learningRate = 1e-3, betas = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0 } = options;
    this.learningRate = inRange(learningRate, 0, Infinity, 'learningRate');
    this.#betas = [inRange(betas[0], 0, 1, 'betas[0]'), inRange(betas[1], 0, 1, 'betas[1]')];
    this.#epsilon = inRange(epsilon, 0, Infinity, 'epsilon');
    this.#weightDecay = inRange(weightDecay, 0, Infinity, 'weightDecay');
    this.#parameters = [...parameters];
    this.#moments = this.#parameters.map((parameter, i) => {
      const { length } = floats(parameter, `parameters[${i}]`);
      return { first: new Float64Array(length), second: new Float64Array(length) };
    });
  }

  /** Steps done so far. */
  get steps(): number {
    return this.#steps;
  }

  /**
   * One step against the gradients, which have the parameters' order and sizes.
   *
   * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED; ERR_VALUE for NaN or an infinity. Nothing is
   *   changed then.
   */
  step(gradients: readonly TensorLike[]): void {
    if (gradients.length !== this.#parameters.length) {
      throw expected('ERR_SHAPE', `${this.#parameters.length} tensors`, 'gradients', `${gradients.length}`);
    }
    const all = this.#parameters.map((parameter, i) => {
      const name = `gradients[${i}]`;
      const [data, gradient] = [floats(parameter, `parameters[${i}]`), floats(gradients[i]!, name)];
      if (gradient.length !== data.length) {
        throw expected('ERR_SHAPE', `${data.length} values`, name, `${gradient.length}`);
      }
      const bad = gradient.findIndex((value) => !Number.isFinite(value));
      if (bad >= 0) throw expected('ERR_VALUE', 'finite values', name, `${gradient[bad]} at element ${bad}`);
      return { data, gradient, ...this.#moments[i]! };
    });
    this.#steps += 1;
    const [beta1, beta2] = this.#betas;
    const rate = this.learningRate / (1 - beta1 ** this.#steps);
    const correction = 1 - beta2 ** this.#steps;
    for (const { data, gradient, first, second } of all) {
      for (let i = 0; i < data.length; i++) {
        const g = gradient[i]!;
        first[i] = beta1 * first[i]! + (1 - beta1) * g;
        second[i] = beta2 * second[i]! + (1 - beta2) * g * g;
        const decayed = data[i]! * (1 - this.learningRate * this.#weightDecay);
        data[i] = decayed - (rate * first[i]!) / (Math.sqrt(second[i]! / correction) + this.#epsilon);
      }
    }
  }
}
