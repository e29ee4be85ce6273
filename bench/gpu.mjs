// Times of this package's operations at the shapes of cases.json: medians over runs with fresh random inputs, which lie in
// device memory before the clock starts. On a GPU the clock is the device's own (events around the kernels); elsewhere it
// is wall time, to try this program. The last run of a case is compared with the CPU backend on the same inputs.
//
// Prints a line of JSON for each figure as soon as it is there; ends with 1 where a result is wrong or an operation fails.
//
//   node bench/gpu.mjs [--device cuda] [--small] [--runs 9] [--warmups 3] [--only NAME,NAME] [--precisions bf16,tf32,f32]
//                      [--pass first] [--seconds 100] [--unchecked] [--dump FOLDER]
//
// --only: names of cases; one that ends in * stands for all that begin so. --seconds: no case is begun after that. --dump: writes inputs, terms' tensors and
// outputs as FOLDER/NAME.safetensors, for bench/peers/torch_gpu.py --own, and times nothing.
import { mkdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { drawTensors, fromBfloat16, loadCases, makePool, sizeOf, withTensors } from './cases.mjs';
import { cpuCases } from './cpu/cases.mjs';
import { makeDraw, withoutTerms } from './cpu/inputs.mjs';
import { kindOf } from './kind.mjs';

const require = createRequire(import.meta.url);
const { open } = require('../dist/index.js');
const { compareBias, compareNorm } = require('../dist/compare.js');
const { TOLERANCES } = require('../dist/conformance.js');
const { gradientsWithPath } = require('../dist/gradients.js');
const { writeSafetensors } = require('../dist/formats/index.js');

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    small: { type: 'boolean', default: false },
    runs: { type: 'string', default: '9' },
    warmups: { type: 'string', default: '3' },
    only: { type: 'string', default: '' },
    precisions: { type: 'string', default: 'bf16,tf32,f32' },
    pass: { type: 'string', default: 'first' },
    seconds: { type: 'string', default: '3600' },
    unchecked: { type: 'boolean', default: false },
    dump: { type: 'string' },
  },
});
const [runs, warmups] = [Number(options.runs), Number(options.warmups)];
const { attention, bias, tensors } = loadCases(options);
const matches = (name, wanted) =>
  wanted.endsWith('*') ? name.startsWith(wanted.slice(0, -1)) : name === wanted;
const chosen = (list) =>
  list.filter(({ name }) => !options.only || options.only.split(',').some((wanted) => matches(name, wanted)));
const [attentionCases, biasCases] = [chosen(attention), chosen(bias)];
/** Gradients, multihead and deformable attention, with the inputs of bench/cpu. */
const operationCases = chosen(
  cpuCases(options).cases.filter(({ kind }) => !['attention', 'bias'].includes(kind)),
);
const largest = Math.max(
  1,
  ...attentionCases.map(({ shape: [b, h, q, k, d] }) => b * h * d * Math.max(q, k)),
);
const draw = makePool(largest);
const deadline = performance.now() + 1000 * Number(options.seconds);

const cpu = await open({ device: 'cpu' });
let device;

function print(figure) {
  console.log(JSON.stringify({ pass: options.pass, ...figure }));
  const { name, precision, ms, unit, problems = [], notRun } = figure;
  const what = notRun ?? `${ms?.toFixed(4)} ms (${unit})`;
  if (name) console.error([`${name}, ${precision}: ${what}`, ...problems].join('; WRONG: '));
  if (problems.length > 0) process.exitCode = 1;
}

const inDeviceMemory = () => typeof device.toDevice === 'function';

/** Every tensor of `value`, however deep, in device memory; as it is where the device has none of its own. */
async function onDevice(value, made) {
  if (!inDeviceMemory() || typeof value !== 'object' || value === null) return value;
  if (ArrayBuffer.isView(value.data)) {
    const tensor = await device.toDevice(value);
    made.push(tensor);
    return tensor;
  }
  if (Array.isArray(value)) return Promise.all(value.map((item) => onDevice(item, made)));
  const entries = Object.entries(value).map(async ([key, item]) => [key, await onDevice(item, made)]);
  return Object.fromEntries(await Promise.all(entries));
}

/** A tensor's values as float32 numbers here. */
async function onHost(tensor) {
  const there = await (device.toHost?.(tensor) ?? tensor.toHost?.() ?? tensor);
  const data = there.data instanceof Uint16Array ? fromBfloat16(there.data) : there.data;
  return { data, shape: tensor.shape };
}

const dispose = (list) => list.forEach((tensor) => tensor?.dispose?.());

/** Whether attention takes bfloat16 tensors; where it doesn't, bf16 reads float32 ones, and the figure says so. */
async function takesBfloat16() {
  if (!inDeviceMemory()) return false;
  const made = [];
  try {
    const tensor = { data: new Uint16Array(8), shape: [1, 1, 1, 8] };
    const { query } = await onDevice({ query: tensor }, made);
    const { out, lse } = await device.attention({ query, key: query, value: query, precision: 'bf16' });
    made.push(out, lse);
    return true;
  } catch {
    return false;
  } finally {
    dispose(made);
  }
}

/** Writes more than the second-level cache holds, so that every timed run finds its inputs in device memory only. */
async function makeFlush() {
  if (!inDeviceMemory()) return undefined;
  const shape = [1, 1, 1024, options.small ? 64 : 65_536];
  try {
    const out = device.tensor(shape, { memory: 'device' });
    const run = () => device.bias({ shape, bias: [], out });
    await run();
    return { run, dispose: () => out.dispose() };
  } catch (error) {
    console.error(`no flush of the cache: ${error}`); // the figures say that they were not cold
    return undefined;
  }
}

/** Milliseconds of one operation, and what it gave. */
async function time(operation) {
  const start = performance.now();
  const result = await operation();
  const wall = performance.now() - start;
  return { result, ms: kindOf(device.info) === 'gpu' ? device.kernelMs : wall };
}

function summary(times) {
  const sorted = times.slice(warmups).sort((a, b) => a - b);
  const units = { gpu: 'device events', emulated: 'wall, emulated', cpu: 'wall' };
  return {
    ms: sorted[Math.floor(sorted.length / 2)],
    least: sorted[0],
    most: sorted.at(-1),
    runs: sorted.length,
    unit: units[kindOf(device.info)],
  };
}

/** The last two heads alone, to spare the CPU: of a batch of one, a head's tensors lie together. */
function lastHeads({ query, key, value, drawn }) {
  const [b, h] = query.shape;
  if (b > 1 || h <= 2) return { query, key, value, drawn, first: 0 };
  const cut = ({ data, shape }) => ({
    data: data.subarray((data.length / h) * (h - 2)),
    shape: [b, 2, ...shape.slice(2)],
  });
  const slopes = drawn.slopes && { data: drawn.slopes.data.subarray(h - 2), shape: [2] };
  return {
    query: cut(query),
    key: cut(key),
    value: cut(value),
    drawn: slopes ? { ...drawn, slopes } : drawn,
    first: h - 2,
  };
}

/** What differs between a result and the CPU's on the same inputs. */
async function attentionProblems(item, precision, inputs, result) {
  const widen = ({ data, shape }) => ({
    data: data instanceof Uint16Array ? fromBfloat16(data) : data,
    shape,
  });
  const { first, drawn, ...heads } = lastHeads(inputs);
  const [query, key, value] = [heads.query, heads.key, heads.value].map(widen);
  const expected = await cpu.attention({ query, key, value, bias: withTensors(item.bias, drawn) });
  const got = {};
  for (const name of ['out', 'lse']) {
    const { data, shape } = await onHost(result[name]);
    got[name] = {
      data: data.subarray((data.length / shape[1]) * first),
      shape: [shape[0], shape[1] - first, ...shape.slice(2)],
    };
  }
  // Both sides have an error of their own.
  const tolerance = TOLERANCES[precision] + TOLERANCES.f32;
  const problems = [
    ...compareNorm(got.out, expected.out, tolerance).map((text) => `out: ${text}`),
    ...compareNorm(got.lse, expected.lse, tolerance, true).map((text) => `lse: ${text}`),
  ];
  dispose([expected.out, expected.lse]);
  return problems;
}

/** bfloat16 values that are not those of float32 ones, rounded. */
function roundingProblems(got, want) {
  const at = want.findIndex(
    (value, i) => !(Math.abs(got[i] - value) <= 2 ** -8 * Math.abs(value)) && got[i] !== value,
  );
  return at < 0 ? [] : [`[${at}] is ${got[at]}, not ${want[at]} rounded to bfloat16`];
}

/** What differs from the CPU's bias: at its beginning and its end, since all of it takes seconds. */
async function biasProblems(item, drawn, dtype, result) {
  const expected = await cpu.bias({ shape: item.shape, bias: withTensors(item.bias, drawn) });
  const got = await onHost(result);
  const count = Math.min(2 ** 22, expected.size);
  const problems = [0, expected.size - count].flatMap((first) => {
    const [some, wanted] = [got, expected].map(({ data }) => data.subarray(first, first + count));
    if (dtype !== 'float32') return roundingProblems(some, wanted);
    return compareBias({ data: some, shape: [count] }, { data: wanted, shape: [count] });
  });
  if (got.data.length !== expected.size) problems.push(`${got.data.length} values, not ${expected.size}`);
  dispose([expected]);
  return problems;
}

/**
 * Times cases of one shape in turns, on the same inputs in each round, so that their ratios don't carry what a clock does
 * meanwhile.
 */
async function timeAttention(cases, precision, dtype, flush) {
  const [b, h, q, k, d] = cases[0].shape;
  const live = cases.map((item) => ({ item, times: [] }));
  for (let round = 0; round < warmups + runs; ++round) {
    const last = round === warmups + runs - 1;
    const given = {
      query: draw([b, h, q, d], dtype),
      key: draw([b, h, k, d], dtype),
      value: draw([b, h, k, d], dtype),
    };
    const made = [];
    const there = await onDevice(given, made);
    for (const entry of live.filter(({ error }) => !error)) {
      const { item, times } = entry;
      const terms = [];
      try {
        const drawn = drawTensors(item.bias, tensors);
        const bias = await onDevice(withTensors(item.bias, drawn), terms);
        await flush?.run();
        const { result, ms } = await time(() => device.attention({ ...there, bias }));
        terms.push(result.out, result.lse);
        times.push(ms);
        if (last && !options.unchecked)
          entry.problems = await attentionProblems(item, precision, { ...given, drawn }, result);
      } catch (error) {
        entry.error = error;
      }
      dispose(terms);
    }
    dispose(made);
  }
  for (const { item, times, problems, error } of live) {
    const figure = { kind: 'attention', name: item.name, precision, inputs: dtype, cold: Boolean(flush) };
    if (error) print({ ...figure, notRun: String(error), problems: [String(error)] });
    else print({ ...figure, ...summary(times), problems });
  }
}

async function timeBias(item, dtype, flush) {
  const figure = { kind: 'bias', name: item.name, precision: dtype, cold: Boolean(flush) };
  if (dtype !== 'float32' && !inDeviceMemory())
    return print({ ...figure, notRun: 'this build has no bfloat16 bias' });
  const times = [];
  let problems;
  const where = inDeviceMemory() ? { memory: 'device', dtype } : {};
  try {
    for (let run = 0; run < warmups + runs; ++run) {
      const made = [];
      const drawn = drawTensors(item.bias, tensors);
      const bias = await onDevice(withTensors(item.bias, drawn), made);
      await flush?.run();
      const { result, ms } = await time(() => device.bias({ shape: item.shape, bias, ...where }));
      made.push(result);
      times.push(ms);
      if (run === warmups + runs - 1 && !options.unchecked)
        problems = await biasProblems(item, drawn, dtype, result);
      dispose(made);
    }
    const bytes = sizeOf(item.shape) * (dtype === 'float32' ? 4 : 2);
    print({ ...figure, bytes, ...summary(times), problems });
  } catch (error) {
    print({ ...figure, notRun: String(error), problems: [String(error)] });
  }
}

/**
 * Each kind of operation: prepare(device, item, given, bias) gives what one call makes as [name, tensor] pairs, in float32,
 * and what is to be disposed of in the end. The forward's results are at hand for its gradients.
 */
const operations = {
  async 'attention-backward'(on, _, { gradOut, ...given }, bias) {
    const args = { ...given, bias };
    const { out, lse } = await on.attention({ ...args, precision: 'f32' });
    const call = async () => gradientsWithPath(await on.attentionBackward({ ...args, gradOut, out, lse }));
    return { call, made: [out, lse] };
  },
  multihead(on, { shape }, given, bias) {
    const args = { ...given, heads: shape[1], bias, identity: true, precision: 'f32' };
    return { call: async () => [['out', await on.multihead(args)]], made: [] };
  },
  deformable(on, { levels }, { gradOut: _, ...given }) {
    const args = { ...given, spatialShapes: levels };
    return { call: async () => [['out', await on.deformable(args)]], made: [] };
  },
  'deformable-backward'(on, { levels }, given) {
    const args = { ...given, spatialShapes: levels };
    const names = ['value', 'samplingLocations', 'attentionWeights'];
    const call = async () => {
      const grads = await on.deformableBackward(args);
      return names.map((name) => [name, grads[name]]);
    };
    return { call, made: [] };
  },
};

/** What differs from the CPU's results of the same operation. */
async function operationProblems(item, drawn, results) {
  const given = withoutTerms(item, drawn);
  const { call, made } = await operations[item.kind](cpu, item, given, withTensors(item.bias, drawn));
  const expected = await call();
  const problems = [];
  for (const [i, [name, tensor]] of results.entries()) {
    const found = compareNorm(await onHost(tensor), expected[i][1], 2 * TOLERANCES.f32);
    problems.push(...found.map((text) => `${name}: ${text}`));
  }
  dispose([...made, ...expected.map(([, tensor]) => tensor)]);
  return problems;
}

async function timeOperation(item, drawInputs, flush) {
  const figure = { kind: 'operation', name: item.name, precision: 'f32', cold: Boolean(flush) };
  const times = [];
  let problems;
  try {
    for (let run = 0; run < warmups + runs; ++run) {
      const tensors = [];
      const drawn = drawInputs(item);
      const there = await onDevice(drawn, tensors);
      const given = withoutTerms(item, there);
      const { call, made } = await operations[item.kind](device, item, given, withTensors(item.bias, there));
      await flush?.run();
      const { result, ms } = await time(call);
      times.push(ms);
      if (run === warmups + runs - 1 && !options.unchecked)
        problems = await operationProblems(item, drawn, result);
      dispose([...tensors, ...made, ...result.map(([, tensor]) => tensor)]);
    }
    print({ ...figure, ...summary(times), problems });
  } catch (error) {
    print({ ...figure, notRun: String(error), problems: [String(error)] });
  }
}

async function dump(folder) {
  mkdirSync(folder, { recursive: true });
  for (const item of attentionCases) {
    const [b, h, q, k, d] = item.shape;
    const given = { query: draw([b, h, q, d]), key: draw([b, h, k, d]), value: draw([b, h, k, d]) };
    const drawn = drawTensors(item.bias, tensors);
    const terms = withTensors(item.bias, drawn);
    const { out, lse } = await device.attention({ ...given, bias: terms });
    const dense = await device.bias({ shape: [b, h, q, k], bias: terms });
    await writeSafetensors(join(folder, `${item.name}.safetensors`), {
      ...given,
      ...drawn,
      out: await onHost(out),
      dense: await onHost(dense),
    });
    dispose([out, lse, dense]);
  }
}

/** Cases of one shape together, in their order. */
function byShape(cases) {
  const groups = new Map();
  for (const item of cases) {
    const key = item.shape.join();
    groups.set(key, [...(groups.get(key) ?? []), item]);
  }
  return [...groups.values()];
}

const failed = (cases, precision) => (error) => {
  const figure = { kind: 'attention', precision, notRun: String(error), problems: [String(error)] };
  for (const { name } of cases) print({ ...figure, name });
};
const late = () => performance.now() > deadline;
const notBegun = 'not begun: the time was up';
const precisions = options.device === 'cpu' ? ['f32'] : options.precisions.split(',');
for (const [index, precision] of precisions.entries()) {
  device = await open({ device: options.device, precision });
  if (options.dump) {
    await dump(options.dump);
    device.close();
    break;
  }
  const bfloat16 = precision === 'bf16' && (await takesBfloat16());
  if (index === 0)
    print({ kind: 'header', device: device.info, measured: kindOf(device.info), memory: inDeviceMemory() });
  const flush = await makeFlush();
  for (const group of byShape(attentionCases.filter(({ precisions: list }) => list.includes(precision)))) {
    if (!late())
      await timeAttention(group, precision, bfloat16 ? 'bfloat16' : 'float32', flush).catch(
        failed(group, precision),
      );
    else for (const { name } of group) print({ kind: 'attention', name, precision, notRun: notBegun });
  }
  if (index === 0) {
    for (const item of biasCases) {
      for (const dtype of item.dtypes) {
        if (!late()) await timeBias(item, dtype, flush);
        else print({ kind: 'bias', name: item.name, precision: dtype, notRun: notBegun });
      }
    }
    const drawInputs = makeDraw(operationCases, tensors);
    for (const item of operationCases) {
      if (!late()) await timeOperation(item, drawInputs, flush);
      else print({ kind: 'operation', name: item.name, precision: 'f32', notRun: notBegun });
    }
  }
  flush?.dispose();
  device.close();
}
cpu.close();
