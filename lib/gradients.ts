/** The gradients that an operation made, by the fields that they belong to. */
import type { BackwardResult, TermGradients } from './device.js';
import type { Tensor } from './tensor.js';

/** bias[2].segments[0].weights: the term, and a segment's weights or the field */
const PATH = /^bias\[(\d+)\]\.(?:segments\[(\d+)\]\.weights|(\w+))$/;

/** Tensors with a way to dispose them all. */
export function withDispose<T extends Record<string, Tensor>>(
  tensors: T,
): T & Disposable & { dispose: () => void } {
  const dispose = (): void => {
    for (const tensor of Object.values(tensors)) tensor.dispose();
  };
  return { ...tensors, dispose, [Symbol.dispose]: dispose };
}

/** All gradients of an attention with the path of what they belong to: `query`, …, bias[0].table. */
export function gradientsWithPath({ query, key, value, terms }: BackwardResult): [string, Tensor][] {
  const ofTerms = terms.flatMap(({ segments, ...fields }, i) => [
    ...(segments ?? []).map(({ weights }, j): [string, Tensor] => [
      `bias[${i}].segments[${j}].weights`,
      weights,
    ]),
    ...Object.entries<Tensor>(fields).map(([name, tensor]): [string, Tensor] => [
      `bias[${i}].${name}`,
      tensor,
    ]),
  ]);
  return [['query', query], ['key', key], ['value', value], ...ofTerms];
}

/** `made` has `query`, `key`, `value`, and the terms' by the path of their tensor, of at least `termCount` terms. */
export function gradientsByField(made: Record<string, Tensor>, termCount: number): BackwardResult {
  const { query, key, value, ...rest } = made as Record<'query' | 'key' | 'value', Tensor>;
  const terms: TermGradients[] = Array.from({ length: termCount }, () => ({}));
  for (const [path, tensor] of Object.entries<Tensor>(rest)) {
    const [, index, segment, field] = PATH.exec(path) ?? [];
    if (index === undefined) throw new Error(`a gradient of ${path}`);
    const term = (terms[Number(index)] ??= {}); // a list may have grown while it was read
    if (segment === undefined) {
      Object.assign(term, { [field ?? '']: tensor });
    } else {
      (term.segments ??= [])[Number(segment)] = { weights: tensor };
    }
  }
  const { dispose } = withDispose(made);
  return { query, key, value, terms, dispose, [Symbol.dispose]: dispose };
}
