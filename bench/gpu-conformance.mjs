// The conformance vectors on cuda:0 in every precision. Prints a line of JSON; ends with 1 where a case fails.
//
//   node bench/gpu-conformance.mjs [--only PART,PART]
import { readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const require = createRequire(import.meta.url);
const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const { open } = require('../dist/index.js');
const { runJob } = require('../dist/job.js');
const { compareOutputs, operations, TOLERANCES } = require('../dist/conformance.js');
const { openSafetensors } = require('../dist/formats/index.js');

const { values } = parseArgs({ options: { only: { type: 'string' } } });
const parts = values.only?.split(',');
const vectors = join(root, 'test/vectors');
const result = { passed: 0, failed: 0, problems: [] };
for (const precision of ['f32', 'tf32', 'bf16']) {
  const device = await open({ device: 'cuda', precision });
  for (const name of readdirSync(vectors).sort()) {
    const expectedPath = join(vectors, name, 'expected.safetensors');
    if (parts && !parts.some((part) => name.startsWith(part))) continue;
    let op;
    try {
      ({ op } = JSON.parse(readFileSync(join(vectors, name, 'job.json'), 'utf8')));
    } catch {
      continue; // README.md, and cases that must be refused
    }
    if (!operations.includes(op) || name.startsWith('bad-')) continue;
    let problems;
    try {
      const outputs = await runJob(join(vectors, name, 'job.json'), { device });
      const expected = await openSafetensors(expectedPath);
      problems = await compareOutputs(op, outputs, expected, TOLERANCES[precision]);
      await expected.close();
    } catch (error) {
      problems = [String(error)];
    }
    if (problems.length === 0) result.passed += 1;
    else {
      result.failed += 1;
      result.problems.push(`${precision} ${name}: ${problems.join('; ')}`);
    }
  }
  device.close();
}
console.log(JSON.stringify(result));
console.error(`${result.passed} passed, ${result.failed} failed`);
for (const problem of result.problems.slice(0, 20)) console.error(problem);
if (result.failed > 0 || result.passed === 0) process.exitCode = 1;
