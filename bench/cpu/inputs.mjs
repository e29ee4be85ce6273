// Inputs lie in a file for each case, so that every participant computes the same.
import { createRequire } from 'node:module';
import { drawTensors, makePool, sizeOf, withTensors } from '../cases.mjs';

const require = createRequire(import.meta.url);
const { openSafetensors, writeSafetensors } = require('../../dist/formats/index.js');

/** The tensors of each kind of case, but for its terms'. */
const shapes = {
  attention: ({ shape: [b, h, q, k, d] }) => ({
    query: [b, h, q, d],
    key: [b, h, k, d],
    value: [b, h, k, d],
  }),
  multihead({ shape: [b, h, q, k, d] }) {
    const e = h * d;
    const [query, key] = [
      [b, q, e],
      [b, k, e],
    ];
    const weights = {
      inProjWeight: [3 * e, e],
      inProjBias: [3 * e],
      outProjWeight: [e, e],
      outProjBias: [e],
    };
    return { query, key, value: key, keyPos: key, ...weights };
  },
  bias: () => ({}),
};
const shapesOf = (item) => Object.entries(shapes[item.kind](item));

/** write(item, path) draws a case's tensors. Weights are such that what they project is as large as before. */
export function makeWriter(cases, tensors) {
  const sizes = cases.flatMap((item) => shapesOf(item).map(([, shape]) => sizeOf(shape)));
  const draw = makePool(Math.max(1, ...sizes));
  return (item, path) => {
    const drawn = drawTensors(item.bias, tensors);
    for (const [name, shape] of shapesOf(item)) {
      const { data } = draw(shape);
      const scale = name.endsWith('Weight') ? shape[1] ** -0.5 : 1;
      drawn[name] = { data: scale === 1 ? data : data.map((x) => scale * x), shape };
    }
    return writeSafetensors(path, drawn);
  };
}

/** { given, bias }: the tensors by name, and the case's terms with them in place. */
export async function openInputs(path, item) {
  const file = await openSafetensors(path);
  try {
    const given = {};
    for (const name of file.tensors.keys()) given[name] = await file.read(name);
    return { given, bias: withTensors(item.bias, given) };
  } finally {
    await file.close();
  }
}
