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
    const running = device.attention(args);
    await new Promise((resolve) => setTimeout(resolve, 30));
    for (const { data } of [args.key, args.value, args.query])
      structuredClone(data.buffer, { transfer: [data.buffer] });
    for (let j = 0; j < 3; ++j) {
      global.gc();
      await new Promise(setImmediate);
    }
    codes.push(
      await running.then(
        () => 'no error',
        (error) => error.code,
      ),
    );
  }
  console.log(JSON.stringify({ codes }));
}
main();
