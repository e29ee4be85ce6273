// Writes lib/frame/inferno.ts, the colours of the heat maps, from d3-scale-chromatic (which is ESM only, so it is not
// imported at run time):  node scripts/make-colours.mjs
import { writeFileSync } from 'node:fs';
import { interpolateInferno } from 'd3-scale-chromatic';

const hex = Array.from({ length: 256 }, (_, i) => interpolateInferno(i / 255).slice(1)).join('');
const lines = hex.match(/.{1,96}/g).map((text) => `    '${text}'`);
writeFileSync(
  new URL('../lib/frame/inferno.ts', import.meta.url),
  `/** Made by scripts/make-colours.mjs. 256 colours, [256, 3]: matplotlib's inferno as d3-scale-chromatic has it. */
export const INFERNO: Uint8Array = Buffer.from(
  [
${lines.join(',\n')},
  ].join(''),
  'hex',
);
`,
);
