// The event loop's delay, in ms, while an attention of about 0.5 s runs.
'use strict';
const { monitorEventLoopDelay } = require('node:perf_hooks');
const { attentionBias, attentionOf } = require('./scene.cjs');

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const args = await attentionOf(device, 0.5);
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const start = performance.now();
  delay.enable();
  await device.attention(args);
  delay.disable();
  const seconds = (performance.now() - start) / 1000;
  console.log(JSON.stringify({ seconds, p99: delay.percentile(99) / 1e6, samples: delay.count }));
}
main();
