/** The gradients that an operation made, by the fields that they belong to. */
import type { BackwardResult, TermGradients } from './device.js';
import type { Tensor } from './tensor.js';

/** bias[2].segments[0].weights: the term, and a segment's weights or the field */
const PATH = /^bias\[(\d+)\]\.(?:segments\[(\d+)\]\.weights|(\w+))$/;

/** `made` has `query`, `key`, `value`, and the terms' by the path of their tensor. */
export function gradientsByField(made: Record<string, Tensor>, termCount: number): BackwardResult {
  const { query, key, value, ...rest } = made as Record<'query' | 'key' | 'value', Tensor>;
  const terms: TermGradients[] = Array.from({ length: termCount }, () => ({}));
  for (const [path, tensor] of Object.entries<Tensor>(rest)) {
    const [, index, segment, field] = PATH.exec(path) ?? [];
    const term = terms[Number(index)];
    if (!term) throw new Error(`a gradient of ${path}`);
    if (segment === undefined) {
      Object.assign(term, { [field ?? '']: tensor });
    } else {
      (term.segments ??= [])[Number(segment)] = { weights: tensor };
    }
  }
  const dispose = (): void => {
    for (const tensor of Object.values(made)) tensor.dispose();
  };
  return { query, key, value, terms, dispose, [Symbol.dispose]: dispose };
}
