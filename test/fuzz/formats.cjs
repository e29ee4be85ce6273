// Damaged files of every format that the package reads (docs/fuzzing.md). Inputs are those of the corpus, then random
// damage of them that knows the format: numbers, fields and sizes are changed within a file that is otherwise right, as
// well as bytes anywhere. What is read must be what the file's own header says, and be read the same once written again;
// anything else must be refused with an AttentionBiasError of one line, in bounded time and memory.
//
//   node test/fuzz/formats.cjs [--format all] [--seconds 60] [--seed 1] [--keep FOLDER] [FILE...]
//
// With files, only these are run. Ends with 1 at the first input that fails, which is kept in FOLDER.
'use strict';

const assert = require('node:assert/strict');
const {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { parseArgs } = require('node:util');
const { Worker, isMainThread, workerData } = require('node:worker_threads');
const { unzipSync, zipSync } = require('fflate');

const dist = join(__dirname, '..', '..', 'dist');
const { AttentionBiasError } = require(join(dist, 'errors.js'));
const { openSafetensors, writeSafetensors } = require(join(dist, 'formats', 'safetensors.js'));
const { parseNpy, readNpy, readNpz, writeNpy, writeNpz } = require(join(dist, 'formats', 'npy.js'));
const { parseJob, TensorRef } = require(join(dist, 'formats', 'job.js'));
const { decodeUtf8 } = require(join(dist, 'formats', 'json.js'));
const { indexManifest, readManifest, readShardLines } = require(join(dist, 'pipeline', 'read-manifest.js'));
const { randomSource } = require(join(dist, 'random.js'));

const LONGEST = 64 * 2 ** 10;
const MOST_MEMORY_KB = 768 * 2 ** 10; // above what the process takes before the first input
const LONGEST_MS = 30_000; // an input takes 1 ms; the machine may be busy
const LONGEST_MESSAGE = 4000;

// ---- oracles -----------------------------------------------------------------------------------------------------------

/** What `read` gives; or undefined where it refuses, as it may: with one of the codes, in one line. */
async function readOr(codes, read) {
  try {
    return await read();
  } catch (error) {
    if (!(error instanceof AttentionBiasError)) throw error;
    assert.ok(codes.includes(error.code), `${error.code} is none of ${codes.join(', ')}: ${error.message}`);
    assert.doesNotMatch(error.message, /[\n\r]/, 'a message of more than one line');
    assert.ok(
      error.message.length < LONGEST_MESSAGE,
      `a message of ${error.message.length} characters: ${error.message.slice(0, 300)}`,
    );
    return undefined;
  }
}

const arrayTypes = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, bfloat16: Uint16Array };

/** The tensor's fields agree with each other. */
function checkTensor({ data, shape, dtype }) {
  assert.ok(data instanceof arrayTypes[dtype], `${dtype} in ${data?.constructor?.name}`);
  assert.ok(shape.every((size) => Number.isSafeInteger(size) && size >= 0));
  assert.equal(
    data.length,
    shape.reduce((product, size) => product * size, 1),
  );
}

const bytesOf = ({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength);

function checkSame(again, tensor) {
  checkTensor(again);
  assert.deepEqual(again.shape, tensor.shape);
  assert.equal(again.dtype, tensor.dtype);
  assert.ok(bytesOf(again).equals(bytesOf(tensor)), 'other elements once written and read again');
}

async function checkSafetensors(bytes, { path, other }) {
  writeFileSync(path, bytes);
  const file = await readOr(['ERR_FORMAT'], () => openSafetensors(path));
  if (!file) return;
  const found = {};
  try {
    const start = 8 + Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
    for (const [name, { dtype, shape, offsets }] of file.tensors) {
      const tensor = await readOr(['ERR_DTYPE'], () => file.read(name));
      if (tensor) {
        checkTensor(tensor);
        assert.deepEqual(tensor.shape, shape);
        assert.ok(bytesOf(tensor).equals(bytes.subarray(start + offsets[0], start + offsets[1])), dtype);
        Object.defineProperty(found, name, { value: tensor, enumerable: true }); // also __proto__
      }
      const floats = await readOr(['ERR_DTYPE'], () => file.readFloat32(name));
      if (floats) {
        checkTensor(floats);
        assert.equal(floats.dtype, 'float32');
      }
    }
  } finally {
    await file.close();
  }
  await writeSafetensors(other, found, { metadata: Object.fromEntries(file.metadata) });
  const again = await openSafetensors(other);
  try {
    assert.deepEqual([...again.tensors.keys()].sort(), Object.keys(found).sort());
    assert.deepEqual(again.metadata, file.metadata);
    for (const [name, tensor] of Object.entries(found)) checkSame(await again.read(name), tensor);
  } finally {
    await again.close();
  }
}

async function checkNpy(bytes, { other }) {
  const tensor = await readOr(['ERR_FORMAT', 'ERR_DTYPE'], () =>
    parseNpy(new Uint8Array(bytes).buffer, 'x.npy'),
  );
  if (!tensor) return;
  checkTensor(tensor);
  await writeNpy(other, tensor);
  checkSame(await readNpy(other), tensor);
}

async function checkNpz(bytes, { path, other }) {
  writeFileSync(path, bytes);
  const arrays = await readOr(['ERR_FORMAT', 'ERR_DTYPE'], () => readNpz(path));
  if (!arrays) return;
  for (const tensor of arrays.values()) checkTensor(tensor);
  await writeNpz(other, Object.fromEntries(arrays));
  const again = await readNpz(other);
  assert.deepEqual([...again.keys()].sort(), [...arrays.keys()].sort());
  for (const [name, tensor] of arrays) checkSame(again.get(name), tensor);
}

/** A job as its file has it: names for tensors. */
const jobText = (job) =>
  JSON.stringify(job, (_, value) => (value instanceof TensorRef ? value.tensor : value));

async function checkJob(bytes) {
  const job = await readOr(['ERR_FORMAT'], () => parseJob(decodeUtf8(bytes, 'job.json'), 'job.json'));
  if (!job) return;
  assert.equal(typeof job.op, 'string');
  assert.equal(jobText(parseJob(jobText(job), 'job.json')), jobText(job));
}

async function checkManifest(bytes, { path }) {
  writeFileSync(path, bytes);
  const items = await readOr(['ERR_FORMAT'], async () => {
    const all = [];
    for await (const item of readManifest(path)) all.push(item);
    return all;
  });
  const index = await readOr(['ERR_FORMAT'], () => indexManifest(path, 2));
  if (!index) return;
  // Of what has an index every line reads, by itself and in its shard.
  assert.equal(index.items, items?.length);
  assert.equal(new Set(items.map(({ key }) => key.toLowerCase())).size, items.length);
  const lines = [];
  for (let shard = 0; shard < index.offsets.length - 1; ++shard) {
    lines.push(...(await readShardLines(index, 2, shard)));
  }
  assert.deepEqual(
    lines.map(({ item }) => item),
    items,
  );
  for (const { kind, key, frame, job } of items) {
    assert.match(key, /^[A-Za-z0-9_-]{1,100}$/);
    assert.equal(typeof (kind === 'frame' ? frame : job), 'string');
  }
}

// ---- damage ------------------------------------------------------------------------------------------------------------

const below = (next, end) => Math.floor(next() * end);
const pick = (next, list) => list[below(next, list.length)];

const NUMBERS = [
  ...[0, 1, -1, 2, 3, 4, 7, 8, 63, 64, 65, 100, 255, 256, 0.5, -0.5, 1e-320, 1e308],
  ...[2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 40, 2 ** 53 - 1, 2 ** 53, 2 ** 63, -(2 ** 53), 1e21],
];
const STRINGS = [
  ...[
    '',
    ' ',
    'a\nb',
    'a\r\nb',
    '\u2028',
    '\0',
    '__proto__',
    'constructor',
    '__metadata__',
    'toString',
    '\ud800',
  ],
  ...[
    'x'.repeat(300),
    '../..',
    'F32',
    'F64',
    'BF16',
    'BOOL',
    'F4',
    'U8',
    'é',
    '🙂',
    'query',
    'dense',
    'attention',
  ],
];

function hostile(next) {
  switch (below(next, 8)) {
    case 0:
      return null;
    case 1:
      return next() < 0.5;
    case 2:
      return [];
    case 3:
      return {};
    case 4:
      return [pick(next, NUMBERS), pick(next, NUMBERS)];
    case 5:
      return pick(next, STRINGS);
    default:
      return pick(next, NUMBERS);
  }
}

/** A JSON value with one node changed, taken out, doubled or renamed. */
function changeJson(next, json) {
  const places = [];
  const visit = (value) => {
    if (typeof value !== 'object' || value === null) return;
    for (const key of Object.keys(value)) {
      places.push([value, key]);
      visit(value[key]);
    }
  };
  const whole = { json: structuredClone(json) };
  visit(whole);
  const [parent, key] = pick(next, places);
  const set = (name, value) =>
    Object.defineProperty(parent, name, { value, enumerable: true, configurable: true, writable: true });
  const donor = pick(next, places);
  switch (below(next, 6)) {
    case 0:
    case 1:
      set(key, hostile(next));
      break;
    case 2:
      if (Array.isArray(parent)) parent.splice(Number(key), 1);
      else if (parent !== whole) delete parent[key];
      break;
    case 3:
      if (Array.isArray(parent)) parent.push(structuredClone(parent[key]));
      else set(pick(next, STRINGS), structuredClone(parent[key]));
      break;
    case 4:
      set(key, structuredClone(donor[0][donor[1]]));
      break;
    default:
      if (typeof parent[key] === 'number') set(key, parent[key] + pick(next, [-1, 1, 0.5, 4]));
      else set(key, [parent[key]]);
  }
  return whole.json;
}

/** JSON text, at times written in another way than JSON.stringify's, or no JSON. */
function jsonOf(next, json) {
  let text = JSON.stringify(json) ?? 'null';
  if (next() < 0.1) text = JSON.stringify(json, null, pick(next, [1, '\t', '\r\n'])) ?? '';
  if (next() < 0.05)
    text = text.replace(/\d+/, pick(next, ['1e999', '01', '1.', '-', 'NaN', '0x1', '1e-5', '٣']));
  if (next() < 0.05) text = text.replace(/,/, pick(next, [',,', '', ';', ',"__proto__":1,']));
  if (next() < 0.02) text = '['.repeat(pick(next, [99, 101, 20000])) + text;
  if (next() < 0.02) text = `\ufeff${text}`;
  return text;
}

function changeBytes(next, bytes, others) {
  let result = Buffer.from(bytes);
  const at = below(next, result.length + 1);
  switch (below(next, 8)) {
    case 0:
      if (at < result.length) result[at] = below(next, 256);
      break;
    case 1:
      if (at < result.length) result[at] ^= 1 << below(next, 8);
      break;
    case 2:
      result = result.subarray(0, at);
      break;
    case 3:
      result = Buffer.concat([
        result.subarray(0, at),
        Buffer.from(Array.from({ length: 1 + below(next, 9) }, () => below(next, 256))),
        result.subarray(at),
      ]);
      break;
    case 4:
      result = Buffer.concat([result.subarray(0, at), result.subarray(at + 1 + below(next, 9))]);
      break;
    case 5:
      if (at + 8 <= result.length) {
        if (next() < 0.5) result.writeUInt32LE(pick(next, [0, 1, 0x7fffffff, 0x80000000, 0xffffffff]), at);
        else result.writeBigUInt64LE(pick(next, [0n, 1n << 31n, 1n << 53n, 1n << 63n, (1n << 64n) - 1n]), at);
      }
      break;
    case 6: {
      const other = pick(next, others);
      result = Buffer.concat([result.subarray(0, at), other.subarray(below(next, other.length + 1))]);
      break;
    }
    default: {
      const digits = [...result.toString('latin1').matchAll(/\d+/g)];
      if (digits.length === 0) break;
      const { index, 0: text } = pick(next, digits);
      const number = Buffer.from(String(pick(next, NUMBERS)));
      result = Buffer.concat([result.subarray(0, index), number, result.subarray(index + text.length)]);
    }
  }
  return result;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function changeSafetensors(next, bytes) {
  const length = bytes.length < 8 ? 0 : Number(bytes.readBigUInt64LE(0));
  const header = parsed(bytes.subarray(8, 8 + length).toString());
  if (header === undefined) return bytes;
  const text = Buffer.from(jsonOf(next, changeJson(next, header)));
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([start, text, bytes.subarray(8 + length)]);
}

function changeNpy(next, bytes) {
  if (bytes.length < 10) return bytes;
  const length = bytes.readUInt16LE(8);
  let dict = bytes.subarray(10, 10 + length).toString('latin1');
  const swap = (pattern, words) => {
    dict = dict.replace(pattern, () => pick(next, words));
  };
  switch (below(next, 4)) {
    case 0:
      swap(/\([^)]*\)/, [
        '()',
        '(1,)',
        '(0,)',
        '(3, 0)',
        '(2, 3)',
        '(6,)',
        '(-1,)',
        '(1)',
        '(9007199254740993,)',
        '(99999999999, 99999999999)',
        '(2, 3,)',
        '(1e3,)',
      ]);
      break;
    case 1:
      swap(/'[<|>=][^']*'/, [
        "'<f4'",
        "'<f2'",
        "'<f8'",
        "'<i4'",
        "'|u1'",
        "'|b1'",
        "'>f4'",
        "'<i8'",
        "'<U5'",
        "'|O'",
        "''",
        "'\n'",
      ]);
      break;
    case 2:
      swap(/True|False/, ['True', 'False', '1', 'true']);
      break;
    default:
      swap(pick(next, [/,/, /'shape'/, /\{/, /\}/, /:/]), [
        '',
        ',,',
        "'x'",
        '{{',
        '}',
        ':',
        "'shape'",
        "'descr'",
      ]);
  }
  const end = next() < 0.2 ? 0 : (64 - ((10 + dict.length) % 64)) % 64;
  const text = Buffer.from(dict + ' '.repeat(end), 'latin1');
  const start = Buffer.from(bytes.subarray(0, 10));
  start.writeUInt16LE(Math.min(text.length, 65535), 8);
  return Buffer.concat([start, text, bytes.subarray(10 + length)]);
}

function changeNpz(next, bytes) {
  let files;
  try {
    // What damage claims of sizes would be allocated.
    files = unzipSync(bytes, { filter: ({ originalSize }) => originalSize <= LONGEST });
  } catch {
    return bytes;
  }
  const changed = {};
  for (const [name, contents] of Object.entries(files)) {
    const damaged = next() < 0.5 ? changeNpy(next, Buffer.from(contents)) : Buffer.from(contents);
    const other = next() < 0.1 ? `${pick(next, STRINGS)}.npy` : name;
    changed[other.slice(0, 100)] = [damaged, { level: pick(next, [0, 6]), mtime: new Date(1980, 0, 1) }];
  }
  return Buffer.from(zipSync(changed));
}

function changeJob(next, bytes) {
  const json = parsed(bytes.toString());
  return json === undefined ? bytes : Buffer.from(jsonOf(next, changeJson(next, json)));
}

function changeManifest(next, bytes) {
  const lines = bytes.toString().split('\n');
  const at = below(next, lines.length);
  const json = parsed(lines[at] ?? '');
  if (json !== undefined)
    lines[at] = jsonOf(next, changeJson(next, json)).replaceAll('\n', next() < 0.9 ? ' ' : '\n');
  if (next() < 0.1) lines.splice(at, 0, pick(next, ['', ' ', lines[0] ?? '']));
  return Buffer.from(lines.join(pick(next, ['\n', '\n', '\n', '\r\n'])));
}

const targets = {
  safetensors: { check: checkSafetensors, change: changeSafetensors },
  npy: { check: checkNpy, change: changeNpy },
  npz: { check: checkNpz, change: changeNpz },
  job: { check: checkJob, change: changeJob },
  manifest: { check: checkManifest, change: changeManifest },
};

function damaged(next, { corpus, change }) {
  let bytes = pick(next, corpus);
  for (let left = 1 + below(next, 4); left > 0; --left) {
    bytes = next() < 0.6 ? change(next, bytes) : changeBytes(next, bytes, corpus);
  }
  return bytes.length > LONGEST ? bytes.subarray(0, LONGEST) : bytes;
}

// ---- running -----------------------------------------------------------------------------------------------------------

/** Ends the process where an input takes too long; it sees the input in shared memory. */
function watch({ shared, keep }) {
  const state = new Int32Array(shared, 0, 2); // inputs so far, length of the present one
  let seen = -1;
  setInterval(() => {
    const now = Atomics.load(state, 0);
    if (now !== seen) {
      seen = now;
      return;
    }
    const path = join(keep, 'hang');
    writeFileSync(path, new Uint8Array(shared, 8, Atomics.load(state, 1)).slice());
    process.stderr.write(`an input takes more than ${LONGEST_MS} ms; it is kept as ${path}\n`);
    process.kill(process.pid, 'SIGKILL');
  }, LONGEST_MS);
}

async function main() {
  const { values, positionals } = parseArgs({
    options: {
      format: { type: 'string', default: 'all' },
      seconds: { type: 'string', default: '60' },
      seed: { type: 'string', default: '1' },
      keep: { type: 'string', default: join('out', 'fuzz', 'formats') },
    },
    allowPositionals: true,
  });
  const names = values.format === 'all' ? Object.keys(targets) : [values.format];
  if (!names.every((name) => Object.hasOwn(targets, name))) {
    throw new Error(
      `expected all or one of ${Object.keys(targets).join(', ')} but received ${values.format}`,
    );
  }
  mkdirSync(values.keep, { recursive: true });
  // Written files are flushed, which a disk takes its time for.
  const memory = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
  const folder = mkdtempSync(join(memory, 'attention-bias-fuzz-'));
  const files = { path: join(folder, 'input'), other: join(folder, 'again') };
  const shared = new SharedArrayBuffer(8 + LONGEST);
  const state = new Int32Array(shared, 0, 2);
  const watcher = new Worker(__filename, { workerData: { shared, keep: values.keep } });
  watcher.unref();

  let count = 0;
  const run = async (name, bytes, what) => {
    const length = Math.min(bytes.length, LONGEST);
    new Uint8Array(shared, 8, length).set(bytes.subarray(0, length));
    Atomics.store(state, 1, length);
    Atomics.add(state, 0, 1);
    count += 1;
    const before = process.resourceUsage().maxRSS;
    try {
      await targets[name].check(bytes, files);
      const after = process.resourceUsage().maxRSS;
      const most = base + MOST_MEMORY_KB;
      assert.ok(after <= most || before > most, `memory beyond ${MOST_MEMORY_KB} kB: ${after - base} kB`);
    } catch (error) {
      const path = join(values.keep, `crash-${name}-${count}`);
      writeFileSync(path, bytes);
      error.message = `${name}, ${what}, kept as ${path}: ${error.message}`;
      throw error;
    }
  };
  const base = process.resourceUsage().maxRSS;
  try {
    if (positionals.length > 0) {
      for (const path of positionals) await run(names[0], readFileSync(path), path);
    } else {
      for (const name of names) {
        const corpus = join(__dirname, 'corpus', name);
        const paths = readdirSync(corpus).sort();
        targets[name].corpus = paths.map((path) => readFileSync(join(corpus, path)));
        for (const [i, bytes] of targets[name].corpus.entries()) await run(name, bytes, paths[i]);
      }
      const next = randomSource(Number(values.seed));
      const end = Date.now() + 1000 * Number(values.seconds);
      for (let i = 0; Date.now() < end; ++i) {
        const name = names[i % names.length];
        await run(name, damaged(next, targets[name]), `seed ${values.seed}, number ${i}`);
      }
    }
    console.log(`${count} inputs of ${names.join(', ')} (seed ${values.seed}): 0 failed`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (isMainThread) {
  main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
} else {
  watch(workerData);
}
