// Inputs lie in a file for each case, so that every participant computes the same.
import { createRequire } from 'node:module';
import { drawTensors, makePool, sizeOf, withTensors } from '../cases.mjs';

const require = createRequire(import.meta.url);
const { openSafetensors, writeSafetensors } = require('../../dist/formats/index.js');

const isAttention = ({ kind }) => kind === 'attention';
const isDeformable = ({ kind }) => kind.startsWith('deformable');

function* attentionShapes({ shape: [b, h, q, k, d] }) {
  yield ['query', [b, h, q, d]];
  yield ['key', [b, h, k, d]];
  yield ['value', [b, h, k, d]];
}

function* deformableShapes({ levels, queries, heads, points, channels }) {
  const pixels = levels.reduce((sum, level) => sum + sizeOf(level), 0);
  yield ['value', [1, pixels, heads, channels]];
  yield ['attentionWeights', [1, queries, heads, levels.length, points]];
  yield ['gradOut', [1, queries, heads * channels]];
}

/**
 * Locations some pixels about a query's own place: where there are as many queries as pixels, the pixel's, as in an encoder; else
 * anywhere. Clear of pixels' centres, where rounding would decide the derivative.
 */
function samplingLocations({ levels, queries, heads, points }) {
  const pixels = levels.flatMap(([h, w]) =>
    Array.from({ length: h * w }, (_, i) => [((i % w) + 0.5) / w, (Math.floor(i / w) + 0.5) / h]),
  );
  const shape = [1, queries, heads, levels.length, points, 2];
  const data = new Float32Array(sizeOf(shape));
  let at = 0;
  for (let q = 0; q < queries; ++q) {
    const place = queries === pixels.length ? pixels[q] : [Math.random(), Math.random()];
    for (let h = 0; h < heads; ++h) {
      for (const [height, width] of levels) {
        for (let i = 0; i < 2 * points; ++i) {
          const size = i % 2 === 0 ? width : height;
          const pixel = Math.floor(place[i % 2] * size + 8 * Math.random() - 4);
          data[at++] = (pixel + 0.5 + 0.01 + 0.98 * Math.random()) / size;
        }
      }
    }
  }
  return { data, shape };
}

/** write(item, path) draws a case's query, key, value and terms' tensors. */
export function makeWriter(cases, tensors) {
  const shapes = (item) =>
    isAttention(item) ? [...attentionShapes(item)] : isDeformable(item) ? [...deformableShapes(item)] : [];
  const sizes = cases.flatMap((item) => shapes(item).map(([, s]) => sizeOf(s)));
  const draw = makePool(Math.max(1, ...sizes));
  return (item, path) => {
    const drawn = drawTensors(item.bias, tensors);
    for (const [name, shape] of shapes(item)) drawn[name] = draw(shape);
    if (isDeformable(item)) drawn.samplingLocations = samplingLocations(item);
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
