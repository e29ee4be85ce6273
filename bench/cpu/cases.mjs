// The CPU's cases: those of cases.json that a CPU runs in a sensible time, each with the ways in which peers do the same.
//
// { name, from, kind, shape, bias, precision, dtype, fresh, ways, flops, bytes }: `kind` is the operation, `from` names the case in
// cases.json, `ways` are PyTorch's ('given': a dense mask at hand, 'built': made within the time, 'boolean': a mask of bools at hand, 'none',
// 'bf16 given', 'flex': compiled FlexAttention) and ONNX Runtime's ('onnx'). `flops` and `bytes` are what must be done at least.
// A case of kind 'attention-backward' has its forward's shape as `qkv`; its own is that of all gradients.
// A case of kind 'deformable' or 'deformable-backward' has levels, queries, heads, points and channels; its shape is that of all
// its outputs, and PyTorch's way is 'grid_sample'.
import { loadCases, sizeOf } from '../cases.mjs';

const attention = [
  { from: 'cmt none', ways: ['none'] },
  { from: 'cmt modality', ways: ['given', 'built', 'onnx', 'flex'] },
  { from: 'cmt modality', precision: 'bf16', ways: ['given', 'built', 'bf16 given'] },
  { from: 'cmt modality + spatial', ways: ['given'] },
  { from: 'cmt LAM windows', ways: ['boolean'] },
  { from: 'Swin', ways: ['given', 'built'] },
];

/** 'learned': of the terms' weights and tables too, through a dense mask; 'given': of query, key and value alone. */
const attentionBackward = [
  { from: 'cmt modality', ways: ['learned', 'given', 'flex'] },
  { from: 'Swin', ways: ['learned', 'given'] },
];

/** Projections round an attention, with positions of the keys and the query added to the output. */
const multihead = [{ name: 'multihead', from: 'cmt modality', ways: ['given', 'built'] }];

const bias = [
  { from: 'dense modality', ways: ['built'] },
  { from: 'dense modality', dtype: 'bfloat16', ways: ['built'] },
  { from: 'dense modality', fresh: true, ways: ['built'] },
];

/** Keys that a query sees at most: a bound by the terms, not by where the centres lie. */
function visibleKeys({ shape, bias: terms }) {
  const window = terms.find(({ type }) => type === 'window');
  return window ? window.segments.reduce((sum, { size }) => sum + size * size, 0) : shape[3];
}

/** Names of the terms' tensors that learn, in the order of attentionBackward's gradients. */
export function learntTensors(terms) {
  return terms.flatMap(({ segments = [], table }) => [
    ...segments.flatMap(({ weights }) => weights ?? []),
    ...(table === undefined ? [] : [table]),
  ]);
}

/** All cases, in the order of the report; `small` and `changed` as loadCases has them. */
export function cpuCases(sizes = {}) {
  const given = loadCases(sizes);
  const find = (list, name) => list.find((item) => item.name === name);
  const attentionCases = attention.map(({ from, precision = 'f32', ways }) => {
    const { shape, bias: terms } = find(given.attention, from);
    const [b, h, q, , d] = shape;
    const flops = 4 * b * h * q * visibleKeys({ shape, bias: terms }) * d;
    const name = precision === 'f32' ? from : `${from}, ${precision}`;
    return { name, from, kind: 'attention', shape, bias: terms, precision, dtype: 'float32', ways, flops };
  });
  const backwardCases = attentionBackward.map(({ from, ways }) => {
    const { flops, shape, ...same } = attentionCases.find((item) => item.name === from);
    const [b, h, q, k, d] = shape;
    const learnt = learntTensors(same.bias).map((name) => sizeOf(given.tensors[name].shape));
    const values = b * h * (q + 2 * k) * d + learnt.reduce((sum, size) => sum + size, 0);
    // Scores again, and the gradients of probabilities, query, key and value: five products where the forward has two.
    const kind = 'attention-backward';
    return { ...same, name: `${from} backward`, kind, ways, qkv: shape, shape: [values], flops: 2.5 * flops };
  });
  const multiheadCases = multihead.map(({ name, from, ways }) => {
    const { flops, ...same } = attentionCases.find((item) => item.name === from);
    const [b, h, q, k, d] = same.shape;
    const projections = 2 * b * (2 * q + 2 * k) * (h * d) ** 2;
    return { ...same, name, kind: 'multihead', ways, flops: flops + projections };
  });
  const biasCases = bias.map(({ from, dtype = 'float32', fresh = false, ways }) => {
    const { shape, bias: terms } = find(given.bias, from);
    const bytes = sizeOf(shape) * (dtype === 'float32' ? 4 : 2);
    const name = `${from}${dtype === 'float32' ? '' : ', bf16'}${fresh ? ', fresh memory' : ''}`;
    return { name, from, kind: 'bias', shape, bias: terms, dtype, fresh, ways, bytes };
  });
  const deformableCases = given.deformable.flatMap((item) => {
    const { name, levels, queries, heads, points, channels } = item;
    const samples = queries * heads * levels.length * points;
    const values = levels.reduce((sum, level) => sum + sizeOf(level), 0) * heads * channels;
    const common = {
      ...item,
      from: name,
      bias: [],
      precision: 'f32',
      dtype: 'float32',
      ways: ['grid_sample'],
    };
    const flops = 8 * samples * channels;
    return [
      { ...common, kind: 'deformable', shape: [1, queries, heads * channels], flops },
      {
        ...common,
        name: `${name} backward`,
        kind: 'deformable-backward',
        shape: [values + 3 * samples],
        flops: 2 * flops,
      },
    ];
  });
  return {
    cases: [...attentionCases, ...backwardCases, ...multiheadCases, ...biasCases, ...deformableCases],
    tensors: given.tensors,
  };
}
