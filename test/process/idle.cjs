// An open device that does nothing does not keep the process; a running operation does.
'use strict';
const { attentionArgs, attentionBias } = require('./scene.cjs');

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const { out } = await device.attention(attentionArgs(device, 100, 1000));
  console.log(JSON.stringify({ shape: out.shape }));
}
main();
