// Worker threads that alone load the addon, terminated in the middle of an attention of about 20 s.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

async function main() {
  const times = [];
  for (let i = 0; i < 5; ++i) {
    const worker = new Worker(__filename);
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
    await new Promise((resolve) => setTimeout(resolve, 20 * i));
    const start = performance.now();
    await worker.terminate();
    times.push(performance.now() - start);
  }
  console.log(JSON.stringify({ times }));
}

async function work() {
  const { attentionBias, attentionOf } = require('./scene.cjs');
  const device = await attentionBias.open({ threads: 2 });
  const args = await attentionOf(device, 20);
  device.attention(args).catch(() => {});
  device.attention(args).catch(() => {});
  parentPort.postMessage('running');
}

if (isMainThread) main();
else work();
