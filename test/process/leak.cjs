// 1,000 attention calls. Argument: dispose (results are disposed) or gc (they are left to the garbage collector).
'use strict';
const { attentionArgs, attentionBias, memory } = require('./scene.cjs');

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const args = attentionArgs(device, 900, 64);
  const before = memory();
  const rss = [];
  for (let i = 1; i <= 1000; ++i) {
    const { out, lse } = await device.attention(args);
    if (process.argv[2] === 'dispose') {
      out.dispose();
      lse.dispose();
    }
    if (i === 100 || i === 1000) {
      global.gc();
      await new Promise(setImmediate);
      rss.push(process.memoryUsage().rss);
    }
  }
  global.gc();
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  console.log(JSON.stringify({ rss, before, after: memory() }));
}
main();
