// ALiBi in a language model that generates: the newest token looks back over all earlier keys, each head as far as its slope
// lets it.
//
//   node examples/alibi.mjs
import { open } from 'attention-bias';
import { alibiSlopes, alibiTerms } from 'attention-bias/presets';

const [heads, headDim, keys] = [12, 64, 1000];
const device = await open();
const query = device.tensor([1, heads, 1, headDim]); // zeros: all keys are alike, but for their distance
const key = device.tensor([1, heads, keys, headDim]);
const value = device.tensor([1, heads, keys, 1]);
value.data.forEach((_, i) => (value.data[i] = keys - 1 - (i % keys))); // how far back a key is

const { out } = await device.attention({ query, key, value, bias: alibiTerms({ heads }) });
const slopes = alibiSlopes(heads).data;
for (const head of [0, 7]) {
  const back = out.data[head].toFixed(1);
  console.log(`head ${head}, slope ${slopes[head]}: looks ${back} tokens back on average`);
}
device.close();
