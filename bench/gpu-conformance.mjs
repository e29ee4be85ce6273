// The conformance vectors on cuda:0 in every precision. Prints a line of JSON for each case as it ends, and one with
// "done" last; ends with 1 where a case fails, or none was there.
//
//   node bench/gpu-conformance.mjs [--only BEGINNING,BEGINNING] [--precisions f32,tf32,bf16]
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const require = createRequire(import.meta.url);
const { open } = require('../dist/index.js');
const { runJob } = require('../dist/job.js');
const { compareOutputs, operations } = require('../dist/conformance.js');
const { openSafetensors } = require('../dist/formats/index.js');

const { values: options } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    precisions: { type: 'string', default: 'f32,tf32,bf16' },
  },
});
const vectors = fileURLToPath(new URL('../test/vectors', import.meta.url));
const beginnings = options.only.split(',');

/** The cases that must give an output, of the operations that are built. */
const cases = readdirSync(vectors)
  .sort()
  .filter((name) => beginnings.some((beginning) => name.startsWith(beginning)))
  .filter((name) => existsSync(join(vectors, name, 'expected.safetensors')))
  .map((name) => ({ name, op: JSON.parse(readFileSync(join(vectors, name, 'job.json'), 'utf8')).op }))
  .filter(({ op }) => operations.includes(op));

async function problemsOf({ name, op }, device, precision) {
  try {
    const outputs = await runJob(join(vectors, name, 'job.json'), { device });
    const expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
    try {
      return await compareOutputs(op, outputs, expected, precision);
    } finally {
      await expected.close();
      for (const tensor of Object.values(outputs)) tensor.dispose();
    }
  } catch (error) {
    return [String(error)];
  }
}

let [passed, failed] = [0, 0];
for (const precision of options.precisions.split(',')) {
  const device = await open({ device: 'cuda', precision });
  for (const item of cases) {
    const problems = await problemsOf(item, device, precision);
    if (problems.length === 0) ++passed;
    else {
      ++failed;
      console.error(`${precision} ${item.name}: ${problems.join('; ')}`);
    }
    console.log(JSON.stringify({ precision, name: item.name, problems }));
  }
  device.close();
}
console.log(JSON.stringify({ done: true, passed, failed }));
console.error(`${passed} passed, ${failed} failed`);
if (failed > 0 || passed === 0) process.exitCode = 1;
