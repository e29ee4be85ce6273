// Inputs lie in a file for each case, so that every participant computes the same.
import { createRequire } from 'node:module';
import { drawTensors, makePool, sizeOf, withTensors } from '../cases.mjs';

const require = createRequire(import.meta.url);
const { openSafetensors } = require('../../dist/formats/index.js');

/** The tensors of each kind of case, but for its terms'. */
const shapes = {
  attention: ({ shape: [b, h, q, k, d] }) => ({
    query: [b, h, q, d],
    key: [b, h, k, d],
    value: [b, h, k, d],
  }),
  'attention-backward': ({ qkv: [b, h, q, k, d] }) => ({
    query: [b, h, q, d],
    key: [b, h, k, d],
    value: [b, h, k, d],
    gradOut: [b, h, q, d],
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
  deformable,
  'deformable-backward': deformable,
};

function deformable({ levels, queries, heads, points, channels }) {
  const pixels = levels.reduce((sum, level) => sum + sizeOf(level), 0);
  return {
    value: [1, pixels, heads, channels],
    attentionWeights: [1, queries, heads, levels.length, points],
    gradOut: [1, queries, heads * channels],
  };
}

const shapesOf = (item) => Object.entries(shapes[item.kind](item));

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

/** draw(item): a case's tensors by name. Weights are such that what they project is as large as before. */
export function makeDraw(cases, tensors) {
  const sizes = cases.flatMap((item) => shapesOf(item).map(([, shape]) => sizeOf(shape)));
  const draw = makePool(Math.max(1, ...sizes));
  return (item) => {
    const drawn = drawTensors(item.bias, tensors);
    for (const [name, shape] of shapesOf(item)) {
      const { data } = draw(shape);
      const scale = name.endsWith('Weight') ? shape[1] ** -0.5 : 1;
      drawn[name] = { data: scale === 1 ? data : data.map((x) => scale * x), shape };
    }
    if (item.kind.startsWith('deformable')) drawn.samplingLocations = samplingLocations(item);
    return drawn;
  };
}

/** The operation's own tensors of those drawn for a case. */
export const withoutTerms = (item, drawn) =>
  item.bias.length === 0 ? drawn : Object.fromEntries(shapesOf(item).map(([name]) => [name, drawn[name]]));

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
