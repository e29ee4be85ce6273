// How processes and worker threads with a CUDA device end, upon the emulator (ATTENTION_BIAS_BINARY). Prints ok.
'use strict';
const assert = require('node:assert');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { open } = require('../../dist/index.js');

const tensor = (shape, value = 0.5) => ({
  data: new Float32Array(shape.reduce((a, b) => a * b)).fill(value),
  shape,
});
const inputs = (keys) => ({
  query: tensor([1, 4, 9, 8]),
  key: tensor([1, 4, keys, 8]),
  value: tensor([1, 4, keys, 8], 2),
});

async function chain(device) {
  const { query, key, value } = inputs(200);
  const there = { query: await device.toDevice(query), key: await device.toDevice(key), value };
  const { out } = await device.attention(there);
  return [...(await device.toHost(out)).data];
}

const modes = {
  // Three threads with a device each, of two GPUs.
  async workers() {
    const results = await Promise.all(
      [0, 1, 0].map(async (ordinal) => {
        const worker = new Worker(__filename, { workerData: { mode: 'chain', ordinal } });
        let result;
        worker.on('message', (message) => (result = message));
        const code = await new Promise((resolve, reject) =>
          worker.once('exit', resolve).once('error', reject),
        );
        assert.strictEqual(code, 0);
        return result;
      }),
    );
    for (const result of results) assert.ok(result.every((value) => Math.abs(value - 2) < 1e-5));
  },
  async chain() {
    parentPort.postMessage(await chain(await open({ device: `cuda:${workerData.ordinal}` })));
  },
  // Threads that are terminated with operations under way and tensors alive.
  async terminate() {
    for (let i = 0; i < 4; ++i) {
      const worker = new Worker(__filename, { workerData: { mode: 'endless' } });
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
      await new Promise((resolve) => setTimeout(resolve, 10 * i));
      await worker.terminate();
    }
  },
  async endless() {
    const device = await open({ device: 'cuda' });
    globalThis.kept = [
      device.tensor([1000], { memory: 'device' }),
      device.tensor([10], { memory: 'pinned' }),
    ];
    for (let i = 0; i < 200; ++i) device.attention(inputs(200)).catch(() => {});
    parentPort.postMessage('running');
  },
  // process.exit() in the middle, with everything open.
  async exit() {
    const device = await open({ device: 'cuda' });
    globalThis.kept = device.tensor([1000], { memory: 'device' });
    for (let i = 0; i < 20; ++i) device.attention(inputs(200)).catch(() => {});
    process.stdout.write('ok\n');
    process.exit(0);
  },
  // `auto` takes the GPU that passes its self-test.
  async auto() {
    const device = await open();
    assert.deepStrictEqual([device.info.backend, device.info.ordinal], ['cuda', 0]);
    const cpu = await open({ device: 'cpu' });
    const there = await cpu.toDevice(tensor([3]));
    assert.deepStrictEqual([there.memory, ...there.data], ['host', 0.5, 0.5, 0.5]);
    assert.ok(cpu.memory().usedBytes > 0);
  },
  // Lost tensors go with the garbage.
  async 'forced-gc'() {
    const device = await open({ device: 'cuda' });
    (() => {
      for (let i = 0; i < 50; ++i) device.tensor([1000], { memory: 'device' });
    })();
    assert.ok(device.memory().usedBytes >= 200_000);
    for (let i = 0; i < 50 && device.memory().usedBytes > 0; ++i) {
      global.gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.strictEqual(device.memory().usedBytes, 0);
  },
};

modes[isMainThread ? process.argv[2] : workerData.mode]().then(
  () => {
    if (isMainThread) process.stdout.write('ok\n');
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
