// 1,000 attention calls. Argument: dispose (results are disposed) or gc (they are left to the garbage collector).
'use strict';
const { attentionArgs, attentionBias, memory } = require('./scene.cjs');

/** Native memory once all garbage is gone. Its finalizers run some turns of the event loop after a collection. */
async function settled() {
  for (let i = 0; i < 5; ++i) {
    global.gc();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return memory();
}

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const args = attentionArgs(device, 900, 64);
  const before = memory();
  const rss = [];
  // A function of its own, so that no variable holds the last result.
  const call = async () => {
    const { out, lse } = await device.attention(args);
    if (process.argv[2] !== 'dispose') return;
    out.dispose();
    lse.dispose();
  };
  for (let i = 1; i <= 1000; ++i) {
    await call();
    if (i === 100 || i === 1000) {
      await settled();
      rss.push(process.memoryUsage().rss);
    }
  }
  console.log(JSON.stringify({ rss, before, after: await settled() }));
}
main();
