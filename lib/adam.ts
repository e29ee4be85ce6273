import { isFloat32Array } from 'node:util/types';

import { describe } from './describe.js';
import { expected } from './errors.js';
import { Tensor, type TensorLike } from './tensor.js';

/** Adam's settings, by the names and with the defaults of torch.optim.Adam. */
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
  const given: unknown = tensor; // JavaScript may pass anything
  if (typeof given !== 'object' || given === null) {
    throw expected('ERR_VALUE', 'a Tensor or { data, shape }', name, describe(given));
  }
  const { data } = given as { data?: unknown };
  if (isFloat32Array(data)) return data; // also one of another realm
  throw expected('ERR_DTYPE', 'float32', name, Object.prototype.toString.call(data).slice(8, -1));
}

function inRange(value: unknown, low: number, high: number, name: string): number {
  if (typeof value === 'number' && value >= low && value < high) return value;
  throw expected('ERR_VALUE', `a number from ${low} to below ${high}`, name, describe(value));
}

/** As many tensors as memory could be thought to hold. */
const MAX_TENSORS = 1_000_000;

/** The entries of a list as they are now. */
function listOf(given: unknown, name: string): readonly TensorLike[] {
  if (!Array.isArray(given) || given.length > MAX_TENSORS) {
    throw expected('ERR_VALUE', `an array of at most ${MAX_TENSORS} tensors`, name, describe(given));
  }
  return Array.from({ length: given.length }, (_, i) => given[i] as TensorLike);
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
    const given: unknown = options;
    if (typeof given !== 'object' || given === null) {
      throw expected('ERR_VALUE', 'an object', 'the options of Adam', describe(given));
    }
    const { learningRate = 1e-3, betas = [0.9, 0.999], epsilon = 1e-8, weightDecay = 0 } = options;
    if (!Array.isArray(betas)) throw expected('ERR_VALUE', 'two numbers', 'betas', describe(betas));
    this.learningRate = inRange(learningRate, 0, Infinity, 'learningRate');
    this.#betas = [inRange(betas[0], 0, 1, 'betas[0]'), inRange(betas[1], 0, 1, 'betas[1]')];
    this.#epsilon = inRange(epsilon, 0, Infinity, 'epsilon');
    this.#weightDecay = inRange(weightDecay, 0, Infinity, 'weightDecay');
    this.#parameters = listOf(parameters, 'parameters');
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
    const given = listOf(gradients, 'gradients');
    if (given.length !== this.#parameters.length) {
      throw expected('ERR_SHAPE', `${this.#parameters.length} tensors`, 'gradients', `${given.length}`);
    }
    const learningRate = inRange(this.learningRate, 0, Infinity, 'learningRate');
    const all = this.#parameters.map((parameter, i) => {
      const name = `gradients[${i}]`;
      const [data, gradient] = [floats(parameter, `parameters[${i}]`), floats(given[i]!, name)];
      const { length } = this.#moments[i]!.first;
      // A parameter's memory may have been detached or resized since.
      if (data.length !== length) {
        throw expected('ERR_SHAPE', `${length} values`, `parameters[${i}]`, `${data.length}`);
      }
      if (gradient.length !== length) {
        throw expected('ERR_SHAPE', `${length} values`, name, `${gradient.length}`);
      }
      const bad = gradient.findIndex((value) => !Number.isFinite(value));
      if (bad >= 0) throw expected('ERR_VALUE', 'finite values', name, `${gradient[bad]} at element ${bad}`);
      return { data, gradient, ...this.#moments[i]! };
    });
    this.#steps += 1;
    const [beta1, beta2] = this.#betas;
    const rate = learningRate / (1 - beta1 ** this.#steps);
    const correction = 1 - beta2 ** this.#steps;
    for (const { data, gradient, first, second } of all) {
      for (let i = 0; i < data.length; i++) {
        const g = gradient[i]!;
        first[i] = beta1 * first[i]! + (1 - beta1) * g;
        second[i] = beta2 * second[i]! + (1 - beta2) * g * g;
        const decayed = data[i]! * (1 - learningRate * this.#weightDecay);
        data[i] = decayed - (rate * first[i]!) / (Math.sqrt(second[i]! / correction) + this.#epsilon);
      }
    }
  }
}
