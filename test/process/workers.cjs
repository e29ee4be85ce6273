// Three worker threads with two devices each, computing the same at once; each prints a checksum. They end by themselves.
'use strict';
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

async function main() {
  const sums = await Promise.all(
    Array.from({ length: 3 }, () => {
      const worker = new Worker(__filename);
      let sum;
      worker.on('message', (message) => (sum = message));
      return new Promise((resolve, reject) => worker.once('exit', () => resolve(sum)).once('error', reject));
    }),
  );
  console.log(JSON.stringify({ sums }));
}

async function work() {
  const { attentionArgs, attentionBias } = require('./scene.cjs');
  const devices = [await attentionBias.open({ threads: 2 }), await attentionBias.open({ threads: 2 })];
  const args = attentionArgs(devices[0], 100, 3000);
  const calls = [];
  for (let i = 0; i < 6; ++i) calls.push(devices[i % 2].attention(args));
  const results = await Promise.all(calls);
  parentPort.postMessage(results.map(({ out }) => out.data.reduce((a, b) => a + b, 0)));
}

if (isMainThread) main();
else work();
