// Inputs lie in a file for each case, so that every participant computes the same.
import { createRequire } from 'node:module';
import { drawTensors, makePool, sizeOf, withTensors } from '../cases.mjs';

const require = createRequire(import.meta.url);
const { openSafetensors, writeSafetensors } = require('../../dist/formats/index.js');

const isAttention = ({ kind }) => kind === 'attention';

function* attentionShapes({ shape: [b, h, q, k, d] }) {
  yield ['query', [b, h, q, d]];
  yield ['key', [b, h, k, d]];
  yield ['value', [b, h, k, d]];
}

/** write(item, path) draws a case's query, key, value and terms' tensors. */
export function makeWriter(cases, tensors) {
  const sizes = cases
    .filter(isAttention)
    .flatMap((item) => [...attentionShapes(item)].map(([, s]) => sizeOf(s)));
  const draw = makePool(Math.max(1, ...sizes));
  return (item, path) => {
    const drawn = drawTensors(item.bias, tensors);
    if (isAttention(item)) for (const [name, shape] of attentionShapes(item)) drawn[name] = draw(shape);
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
