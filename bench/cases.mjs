// The cases of cases.json with their sizes put in and their tensors drawn.
import { readFileSync } from 'node:fs';

const { sizes, ...given } = JSON.parse(readFileSync(new URL('cases.json', import.meta.url), 'utf8'));

const isObject = (value) => typeof value === 'object' && value !== null && !ArrayBuffer.isView(value);

/** `value` with f(string) in place of every string, however deep. */
function replaceStrings(value, f) {
  if (typeof value === 'string') return f(value);
  if (Array.isArray(value)) return value.map((item) => replaceStrings(item, f));
  if (!isObject(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, replaceStrings(item, f)]));
}

/**
 * `attention` and `bias`: lists of cases whose `bias` holds terms with tensors' names in them; `deformable`: a list of cases;
 * `tensors` by name. `changed`: sizes that differ from those of cases.json.
 */
export function loadCases({ small = false, changed = {} } = {}) {
  const numbers = { ...sizes[small ? 'small' : 'full'], ...changed };
  const { attention, bias, deformable, tensors, terms } = replaceStrings(given, (text) =>
    text.startsWith('$') ? numbers[text.slice(1)] : text,
  );
  const withTerms = (item) => ({ ...item, bias: item.bias.map((name) => terms[name]) });
  return { attention: attention.map(withTerms), bias: bias.map(withTerms), deformable, tensors };
}

export const sizeOf = (shape) => shape.reduce((a, b) => a * b, 1);

/** About standard normal: enough for scores whose softmax is neither flat nor one key's. */
const normal = () => 2 * (Math.random() + Math.random() + Math.random() - 1.5);

const draws = {
  uniform: () => Math.random(),
  normal,
  cells: (i, { grid }) => Math.floor(Math.random() * grid[i % grid.length]),
  slopes: (i, { shape }) => 2 ** ((-8 * (i + 1)) / shape[0]),
};

/** The tensors that the terms name, drawn anew, by name. */
export function drawTensors(bias, tensors) {
  const drawn = {};
  replaceStrings(bias, (text) => {
    const spec = tensors[text];
    if (spec && !drawn[text]) {
      const data = Float32Array.from({ length: sizeOf(spec.shape) }, (_, i) => draws[spec.draw](i, spec));
      drawn[text] = { data, shape: spec.shape };
    }
    return text;
  });
  return drawn;
}

/** Terms with tensors in place of their names. */
export const withTensors = (bias, drawn) => replaceStrings(bias, (text) => drawn[text] ?? text);

/** A float32 as the nearest bfloat16, ties to even; finite values only. */
export function toBfloat16(values) {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const rounded = new Uint16Array(bits.length);
  for (let i = 0; i < bits.length; ++i) rounded[i] = (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) >>> 16;
  return rounded;
}

export function fromBfloat16(values) {
  const bits = new Uint32Array(values.length);
  for (let i = 0; i < values.length; ++i) bits[i] = values[i] << 16;
  return new Float32Array(bits.buffer);
}

/**
 * Random numbers to cut large tensors from, since drawing 115 MB for every run would take most of the time: a tensor is a
 * slice at a random offset, a multiple of 16 bytes.
 */
export function makePool(largest) {
  const values = new Float32Array(largest + 2 ** 20);
  for (let i = 0; i < values.length; ++i) values[i] = normal();
  const rounded = toBfloat16(values);
  return (shape, dtype = 'float32') => {
    const length = sizeOf(shape);
    const offset = 8 * Math.floor((Math.random() * (values.length - length)) / 8);
    return { data: (dtype === 'bfloat16' ? rounded : values).subarray(offset, offset + length), shape };
  };
}
