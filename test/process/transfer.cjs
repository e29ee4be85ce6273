// Transfers the inputs of a running attention away and lets the garbage collector take them. Run with --expose-gc.
'use strict';
const { attentionBias, attentionOf } = require('./scene.cjs');

async function main() {
  const device = await attentionBias.open({ threads: 2 });
  const native = await attentionOf(device, 0.3);
  const codes = [];
  for (let i = 0; i < 3; ++i) {
    const own = (tensor) => ({ data: tensor.data.slice(), shape: tensor.shape });
    const args = { ...native, query: own(native.query), key: own(native.key), value: own(native.value) };
    const ended = device.attention(args).then(
      () => 'no error',
      (error) => error.code,
    );
    // Not a turn of the event loop: however late this thread goes on, the attention is not settled before.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 30);
    for (const { data } of [args.key, args.value, args.query])
      structuredClone(data.buffer, { transfer: [data.buffer] });
    for (let j = 0; j < 3; ++j) {
      global.gc();
      await new Promise(setImmediate);
    }
    codes.push(await ended);
  }
  console.log(JSON.stringify({ codes }));
}
main();
