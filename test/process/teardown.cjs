// Environments that end with every operation queued and running, on the CPU and upon the emulated CUDA part
// (ATTENTION_BIAS_BINARY). Arguments: cpu or cuda; terminate (worker threads, three at once), exit or throw. Prints ok.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const { attentionBias } = require('./scene.cjs');
const { operations } = require('./operations.cjs');

async function start(device) {
  const opened = await attentionBias.open({ device, threads: 2 });
  const all = Object.entries(operations(device === 'cpu' ? 2000 : 60));
  const kept = (globalThis.kept = []);
  for (let round = 0; round < 3; ++round) {
    for (const [name, args] of all) kept.push(opened[name](args).catch(() => {}));
  }
  await Promise.race(kept); // something runs
}

async function main() {
  const [device, how] = process.argv.slice(2);
  if (how !== 'terminate') {
    await start(device);
    process.stdout.write('ok\n');
    if (how === 'throw') throw new Error('thrown on purpose');
    process.exit(7);
  }
  for (let round = 0; round < 4; ++round) {
    const workers = await Promise.all(
      [0, 1, 2].map(async () => {
        const worker = new Worker(__filename, { workerData: { device } });
        await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
        return worker;
      }),
    );
    await new Promise((resolve) => setTimeout(resolve, 15 * round));
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
  process.stdout.write('ok\n');
}

if (isMainThread) main();
else void start(workerData.device).then(() => parentPort.postMessage('running'));
