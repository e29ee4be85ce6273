// A call of each kind, results disposed or left, a call aborted, and a device closed: what valgrind watches in Node
// (scripts/test-valgrind.js).
'use strict';
const { open } = require('../../dist/index.js');
const { soakCases } = require('./soak-cases.cjs');

async function main() {
  const device = await open({ device: 'cpu', threads: 2 });
  for (const { args, run } of Object.values(soakCases())) {
    const tensors = await run(device, args);
    for (const tensor of Object.values(tensors).slice(1)) tensor.dispose();
  }
  const [{ args }] = Object.values(soakCases());
  const controller = new AbortController();
  const running = device.attention({ ...args, signal: controller.signal });
  controller.abort();
  await running.catch(() => {});
  device.close();
  console.log('ok');
}
void main();
