// Mixed operations for a while, from the main thread and four worker threads with a device each: aborts, disposals, devices
// closed, buffers transferred and workers terminated with calls under way, files of every format, forced collections. Each
// result is held, bit by bit, against the first of its case, which is held against the float64 reference. At checkpoints all
// threads rest, and then nothing may be left: of native memory, of the process's size, its file descriptors and its threads.
//
//   node test/process/soak.cjs [--seconds 60] [--device cpu] [--seed 1] [--allowance 48] [--plant flip|tensor|memory|fd|thread]
//
// `--plant` puts a fault in, which must be found. Prints what it did as JSON; the first fault goes to stderr, with exit code 1.
'use strict';
const assert = require('node:assert');
const { openSync, readdirSync, readlinkSync, rmSync } = require('node:fs');
const { mkdtemp, rm } = require('node:fs/promises');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const { setFlagsFromString } = require('node:v8');
const { runInNewContext } = require('node:vm');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { open } = require('../../dist/index.js');
const { native } = require('../../dist/native.js');
const { randomSource } = require('../../dist/random.js');
const { selfTest } = require('../../dist/self-test.js');
const { bytesOf, compareWithReference, soakCases, throughFiles } = require('./soak-cases.cjs');

const WORKERS = 4;
const CHECKPOINTS = 12;
const PATIENCE_MS = 120_000; // until threads rest, on however loaded a machine
// A file that a worker was opening when it was terminated stays open: Node 20 forgets it. This many are opened at once.
const ORPHANS = 3;

/** Of the main thread: the workers that run, and whether a fault ends them. */
const running = new Set();
let ending = false;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc');

/** One thread's part: turns of mixed work on a device of its own. */
async function player({ device: kind, seed, folder, expected, plant }) {
  const random = randomSource(seed);
  const cases = soakCases();
  const names = Object.keys(cases);
  const pick = () => names[Math.floor(random() * names.length)];
  const counts = { checked: {}, aborted: 0, closed: 0, transferred: 0, files: 0, collected: 0 };
  // As many threads everywhere: results are the same bits for the same number.
  const openDevice = () => open(kind === 'cpu' ? { device: kind, threads: 2 } : { device: kind });
  let device = await openDevice();

  const same = (what, got, want) =>
    assert.ok(
      got.byteLength === want.byteLength &&
        Buffer.compare(
          Buffer.from(got.buffer, got.byteOffset, got.byteLength),
          Buffer.from(want.buffer, want.byteOffset, want.byteLength),
        ) === 0,
      `expected the bits of the first run for ${what} but received others`,
    );
  const check = async (name, tensors) => {
    const bytes = await bytesOf(device, tensors, random() < 0.8);
    const done = (counts.checked[name] = (counts.checked[name] ?? 0) + 1);
    if (plant === 'flip' && done === 2) Object.values(bytes)[0][5] ^= 1;
    assert.deepStrictEqual(Object.keys(bytes), Object.keys(expected[name]));
    for (const [field, got] of Object.entries(bytes)) same(`${name}, ${field}`, got, expected[name][field]);
  };
  const start = (name, more = {}) => cases[name].run(device, { ...cases[name].args, ...more });
  /** Checks a result, or that the call ended with the code that it may end with. */
  const settle = async (name, running, code) => {
    let tensors;
    try {
      tensors = await running;
    } catch (error) {
      if (code === undefined || error.code !== code) throw error;
      return false;
    }
    await check(name, tensors);
    return true;
  };

  const actions = {
    check: async (name = pick()) => settle(name, start(name)),
    async abort() {
      const calls = Array.from({ length: 4 }, () => ({ name: pick(), controller: new AbortController() }));
      for (const call of calls) call.running = start(call.name, { signal: call.controller.signal });
      if (random() < 0.5) await sleep(2 * random());
      const aborted = calls.filter(() => random() < 0.6);
      for (const { controller } of aborted) controller.abort();
      const ended = await Promise.all(
        calls.map((call) =>
          settle(call.name, call.running, aborted.includes(call) ? 'ERR_ABORTED' : undefined),
        ),
      );
      counts.aborted += ended.filter((right) => !right).length;
    },
    // Inputs in memory of the device's, disposed when the call has begun.
    async dispose() {
      const name = pick();
      const made = [];
      const entries = await Promise.all(
        Object.entries(cases[name].args).map(async ([field, value]) => {
          if (!(value?.data instanceof Float32Array)) return [field, value];
          const tensor = await device.toDevice(value);
          made.push(tensor);
          return [field, tensor];
        }),
      );
      const running = start(name, Object.fromEntries(entries));
      for (const tensor of made) tensor.dispose();
      await settle(name, running);
    },
    async close() {
      const calls = Array.from({ length: 3 }, pick).map((name) => [name, start(name)]);
      if (random() < 0.5) await sleep(2 * random());
      const closed = device;
      const settling = Promise.all(calls.map(([name, running]) => settle(name, running, 'ERR_DEVICE')));
      closed.close();
      device = await openDevice();
      const settled = await settling;
      assert.throws(() => closed.tensor([1]), { code: 'ERR_DEVICE' });
      counts.closed += settled.filter((right) => !right).length;
    },
    async transfer() {
      const name = names.find((each) => cases[each].args.query);
      const { data, shape } = cases[name].args.query;
      const query = { data: data.slice(), shape };
      const running = start(name, { query });
      structuredClone(query.data, { transfer: [query.data.buffer] });
      assert.strictEqual(
        await settle(name, running, 'ERR_VALUE'),
        false,
        'expected a transferred input to be refused',
      );
      ++counts.transferred;
    },
    async files() {
      const name = pick();
      const tensors = await start(name);
      const host = Object.fromEntries(
        await Promise.all(
          Object.entries(tensors).map(async ([field, tensor]) => [
            field,
            tensor.memory === 'device' ? await device.toHost(tensor) : tensor,
          ]),
        ),
      );
      await throughFiles(folder, host, same);
      await check(name, tensors);
      ++counts.files;
    },
    collect() {
      collect();
      ++counts.collected;
    },
  };
  const shares = {
    check: 0.5,
    abort: 0.15,
    dispose: 0.12,
    close: 0.08,
    transfer: 0.03,
    files: 0.07,
    collect: 0.05,
  };

  return {
    counts,
    async allCases() {
      for (const name of names) await actions.check(name);
    },
    async turn() {
      let at = random();
      for (const [action, share] of Object.entries(shares)) {
        at -= share;
        if (at < 0) return actions[action]();
      }
      return actions.check();
    },
    /** Calls that nobody waits for. */
    fly: () => Array.from({ length: 20 }, pick).forEach((name) => start(name).catch(() => {})),
    /** Waits until no native memory is in use: finalizers run some turns of the event loop after a collection. */
    async rest() {
      const used = () => {
        const { bytes, blocks } = native().memory();
        const there = device.info.backend === 'cuda' ? device.memory().usedBytes : 0;
        return { bytes: bytes + there, blocks };
      };
      for (let i = 0; i < 100 && (used().bytes > 0 || used().blocks > 0); ++i) {
        collect();
        await sleep(10);
      }
      collect();
      const { bytes, blocks } = used();
      assert.ok(
        bytes === 0 && blocks === 0,
        `expected no native memory in use at rest but received ${bytes} bytes in ${blocks} blocks`,
      );
    },
    close: () => device.close(),
  };
}

/** What a worker does: turns, until it is told to rest, or to have calls under way while it is terminated. */
async function work() {
  let asked;
  let go;
  parentPort.on('message', (message) => {
    if (message === 'go') go();
    else asked = message;
  });
  const part = await player(workerData);
  await part.allCases();
  parentPort.postMessage({ type: 'begun' });
  while (asked !== 'end') {
    await part.turn();
    if (asked === 'rest') {
      asked = undefined;
      const waiting = new Promise((resolve) => (go = resolve));
      await part.rest();
      parentPort.postMessage({ type: 'resting' });
      await waiting;
    } else if (asked === 'fly') {
      part.fly();
      parentPort.postMessage({ type: 'flying' });
      asked = undefined;
    }
  }
  part.close();
  parentPort.postMessage({ type: 'counts', counts: part.counts });
  parentPort.close();
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/** How many file descriptors are open, and how many of them are files below a folder that is gone. */
function fileDescriptors(root) {
  let [open, orphans] = [0, 0];
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`);
      if (path.startsWith(root) && path.endsWith(' (deleted)')) ++orphans;
      else ++open;
    } catch {
      // the one that listed the folder
    }
  }
  return { open, orphans };
}

/** Throws where the last third of the samples has grown over the third before it. */
function requireFlat(samples, allowance) {
  const third = samples.length / 3;
  const [middle, last] = [1, 2].map((i) => samples.slice(Math.floor(i * third), Math.floor((i + 1) * third)));
  const of = (part, field) => median(part.map((sample) => sample[field]));
  const mebibytes = samples.map(({ rss }) => (rss / 2 ** 20).toFixed(0));
  const grown = (of(last, 'rss') - of(middle, 'rss')) / 2 ** 20;
  assert.ok(
    grown <= allowance,
    `expected at most ${allowance} MiB of growth for the resident set but received ${grown.toFixed(0)}: ${mebibytes.join(', ')}`,
  );
  for (const field of ['files', 'threads']) {
    const [before, after] = [of(middle, field), of(last, field)];
    assert.ok(
      after <= before,
      `expected no growth for ${field} but received ${samples.map((sample) => sample[field]).join(', ')}`,
    );
  }
}

async function main() {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '60' },
      device: { type: 'string', default: 'cpu' },
      seed: { type: 'string', default: '1' },
      // What the resident set may grow from the middle third of the checkpoints to the last, in MiB.
      allowance: { type: 'string', default: '48' },
      plant: { type: 'string' },
    },
  });
  const [seconds, seed] = [Number(values.seconds), Number(values.seed)];
  const root = await mkdtemp(join(tmpdir(), 'attention-bias-soak-'));
  process.on('exit', () => rmSync(root, { recursive: true, force: true }));
  const random = randomSource(seed);

  // The first runs, which all others are held against.
  const first = await open(
    values.device === 'cpu' ? { device: 'cpu', threads: 2 } : { device: values.device },
  );
  for (const { name, passed, error } of await selfTest(first))
    assert.ok(passed, `expected ${name} to pass the self-test but received an error of ${error}`);
  const expected = {};
  for (const [name, one] of Object.entries(soakCases())) {
    const tensors = await one.run(first, one.args);
    if (values.device === 'cpu') compareWithReference(name, one, tensors);
    expected[name] = await bytesOf(first, tensors, true);
  }
  const kept = values.plant === 'tensor' ? [first.tensor([10])] : [];
  first.close();

  let fault;
  let serial = 0;
  const total = { checked: {}, terminated: 0 };
  const add = (counts) => {
    for (const [name, count] of Object.entries(counts.checked))
      total.checked[name] = (total.checked[name] ?? 0) + count;
    for (const [name, count] of Object.entries(counts))
      if (typeof count === 'number') total[name] = (total[name] ?? 0) + count;
  };
  const failed = new Promise((_, reject) => (fault = reject));
  failed.catch(() => {});
  /** Throws what any thread threw, and where it takes too long. */
  const within = async (promise, what) => {
    const controller = new AbortController();
    const late = sleep(PATIENCE_MS, undefined, { signal: controller.signal, ref: false }).then(() => {
      throw new Error(`expected ${what} within ${PATIENCE_MS / 1000} s but received nothing`);
    });
    late.catch(() => {});
    try {
      return await Promise.race([promise, failed, late]);
    } finally {
      controller.abort();
    }
  };

  const shared = { device: values.device, expected, plant: undefined };
  function begin() {
    const folder = join(root, `worker-${++serial}`);
    const worker = new Worker(__filename, { workerData: { ...shared, folder, seed: seed + serial } });
    running.add(worker);
    worker.once('exit', () => running.delete(worker));
    const waiting = new Map();
    const one = {
      folder,
      worker,
      until: (type) => within(new Promise((resolve) => waiting.set(type, resolve)), `"${type}" of a worker`),
      exited: new Promise((resolve) => worker.once('exit', resolve)),
    };
    worker.on('message', (message) => {
      if (message.type === 'counts') add(message.counts);
      waiting.get(message.type)?.(message);
    });
    worker.once('error', fault);
    one.begun = one.until('begun');
    one.begun.catch(() => {}); // terminated before
    return one;
  }
  const workers = Array.from({ length: WORKERS }, begin);

  /** Terminates a worker with calls under way, or whatever else it may be doing, and begins another. */
  async function replace() {
    const index = Math.floor(random() * WORKERS);
    const one = workers[index];
    const [begun, flies] = [random() < 0.8, random() < 0.7];
    if (begun) await one.begun;
    if (begun && flies) {
      const flying = one.until('flying');
      one.worker.postMessage('fly');
      await flying;
    } else {
      await sleep(20 * random());
    }
    await one.worker.terminate();
    await within(one.exited, 'the end of a terminated worker');
    ++total.terminated;
    await rm(one.folder, { recursive: true, force: true });
    if (!ending) workers[index] = begin();
  }

  const samples = [];
  const part = await player({ ...shared, plant: values.plant, seed, folder: join(root, 'main') });
  async function checkpoint() {
    if (values.plant === 'memory') kept.push(Buffer.alloc(24 * 2 ** 20, 1));
    if (values.plant === 'fd') openSync('/dev/null');
    if (values.plant === 'thread') kept.push(await open({ device: 'cpu', threads: 1 }));
    await Promise.all(workers.map(({ begun }) => begun));
    const resting = workers.map((one) => one.until('resting'));
    for (const { worker } of workers) worker.postMessage('rest');
    await part.rest();
    await Promise.all(resting);
    const { open: files, orphans } = fileDescriptors(root);
    assert.ok(
      orphans <= ORPHANS * total.terminated,
      `expected at most ${ORPHANS} files left open by each of ${total.terminated} terminated workers but received ${orphans}`,
    );
    samples.push({
      rss: process.memoryUsage.rss(),
      files,
      threads: readdirSync('/proc/self/task').length,
    });
    for (const { worker } of workers) worker.postMessage('go');
  }

  await part.allCases();
  const began = performance.now();
  const elapsed = () => (performance.now() - began) / 1000;
  let replacing = Promise.resolve();
  let replaceAt = 0.5;
  while (samples.length < CHECKPOINTS) {
    await within(part.turn(), 'the end of a turn');
    if (elapsed() > replaceAt) {
      await replacing;
      replacing = replace();
      replacing.catch(fault);
      replaceAt = elapsed() + 0.2 + random();
    }
    if (elapsed() > (seconds * (samples.length + 1)) / CHECKPOINTS) {
      await replacing;
      await checkpoint();
    }
  }
  requireFlat(samples, Number(values.allowance));
  const counted = workers.map((one) => one.until('counts'));
  for (const { worker } of workers) worker.postMessage('end');
  await Promise.all(counted);
  await within(Promise.all(workers.map(({ exited }) => exited)), 'the end of the workers');
  part.close();
  add(part.counts);
  console.log(JSON.stringify({ seconds: elapsed(), ...total, samples }));
}

(isMainThread ? main() : work()).catch(async (error) => {
  if (!isMainThread) throw error;
  console.error(`soak: ${error.message}`);
  // They write below the folder that is removed on exit. One that hangs is not waited for.
  ending = true;
  const ended = Promise.all([...running].map((worker) => worker.terminate()));
  await Promise.race([ended, sleep(10_000)]);
  process.exit(1);
});
