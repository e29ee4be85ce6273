// Runs the conformance vectors (test/vectors) on the CPU, in each precision that it has, on two threads. For where jest does not
// run: another machine's Node.js upon qemu (scripts/test-arm64.sh).
'use strict';
const { existsSync, readdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');

const dist = process.env.ATTENTION_BIAS_TEST_DIST ?? join(__dirname, '../../dist');
const { compareOutputs, operations } = require(join(dist, 'conformance.js'));
const { openSafetensors } = require(join(dist, 'formats/safetensors.js'));
const { open } = require(join(dist, 'index.js'));
const { runJob } = require(join(dist, 'job.js'));

const vectors = join(__dirname, '../vectors');

async function main() {
  const names = readdirSync(vectors).filter((name) =>
    existsSync(join(vectors, name, 'expected.safetensors')),
  );
  for (const precision of ['f32', 'bf16']) {
    let [passed, failed] = [0, 0];
    const device = await open({ device: 'cpu', threads: 2, precision });
    for (const name of names) {
      const job = join(vectors, name, 'job.json');
      const { op } = JSON.parse(readFileSync(job, 'utf8'));
      if (!operations.includes(op)) throw new Error(`${name}: unknown operation ${op}`);
      if (precision === 'bf16' && op !== 'attention' && op !== 'multihead') continue;
      const expected = await openSafetensors(join(vectors, name, 'expected.safetensors'));
      const problems = await compareOutputs(op, await runJob(job, { device }), expected, precision);
      await expected.close();
      if (problems.length === 0) ++passed;
      else ++failed;
      for (const problem of problems) console.error(`${name}, ${precision}: ${problem}`);
    }
    console.log(`${device.info.isa} ${precision}: conformance, ${passed} passed, ${failed} failed`);
    if (failed > 0 || passed === 0) process.exitCode = 1;
    device.close();
  }
}
main();
