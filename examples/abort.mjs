// Causal attention with ALiBi over a long sequence, given up after 50 ms.
//
//   node examples/abort.mjs
import { AttentionBiasError, open } from 'attention-bias';

const device = await open();
const shape = [1, 8, 16384, 64];
const [query, key, value] = [0, 1, 2].map(() =>
  device.from(new Float32Array(8 * 16384 * 64).fill(0.1), shape),
);
const slopes = device.from(Float32Array.from({ length: 8 }, (_, h) => 2 ** -(h + 1)));
const bias = [{ type: 'causal' }, { type: 'alibi', slopes }];

try {
  await device.attention({ query, key, value, bias, signal: AbortSignal.timeout(50) });
  console.log('finished');
} catch (error) {
  if (!(error instanceof AttentionBiasError) || error.code !== 'ERR_ABORTED') throw error;
  console.log(`${error.code}: ${error.cause.name}`); // ERR_ABORTED: TimeoutError
}
device.close();
