// Ends the process while an attention of about 20 s runs and another waits. Argument: how.
'use strict';
const { attentionBias, attentionOf } = require('./scene.cjs');

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const args = await attentionOf(device, 20);
  device.attention(args).catch(() => {});
  device.attention(args).catch(() => {});
  setTimeout(() => {
    console.log('ending');
    if (process.argv[2] === 'exit') process.exit(7);
    if (process.argv[2] === 'throw') throw new Error('thrown on purpose');
    process.kill(process.pid, 'SIGTERM');
  }, 100);
}
main();
