// Denoising training (DN-DETR, CMT): noised ground-truth boxes in front of the queries, and who sees whom.
//
//   node examples/denoising.mjs
import { open } from 'attention-bias';
import { denoisingPlan, denoisingQueries } from 'attention-bias/presets';

const [queries, channels, heads] = [20, 32, 4];
const plan = denoisingPlan({ variant: 'cmt', boxCounts: [2, 4], queries, groups: 3 });

// Each noised box takes its image's box as it is; a model adds noise and embeds it.
const boxes = Float32Array.from({ length: 6 * channels }, () => Math.random());
const noised = { data: new Float32Array(plan.boxes.length * channels), shape: [plan.boxes.length, channels] };
plan.boxes.forEach((box, i) =>
  noised.data.set(boxes.subarray(box * channels, (box + 1) * channels), i * channels),
);
const matching = { data: new Float32Array(queries * channels), shape: [queries, channels] };
const tokens = denoisingQueries(plan, { noised, matching });

const device = await open();
const split = { data: tokens.data, shape: [plan.batch, 1, plan.length, channels] }; // one head of all channels
const { out } = await device.attention({ query: split, key: split, value: split, bias: plan.terms });
console.log(JSON.stringify({ groups: plan.groups, groupSize: plan.groupSize, out: out.shape }));

const mask = await device.bias({ shape: [1, heads, plan.length, plan.length], bias: plan.terms });
const show = (q) =>
  Array.from(mask.data.subarray(q * plan.length, (q + 1) * plan.length), (x) => (x ? '.' : 'x')).join('');
console.log(`a query of group 1 sees ${show(plan.groupSize)}`);
console.log(`a matching query sees   ${show(plan.length - 1)}`);
device.close();
