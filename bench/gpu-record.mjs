// Joins what scripts/gpu-check left in a folder into one record, and prints a short table.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, path] = process.argv.slice(2);
const text = (name) =>
  existsSync(join(folder, name)) ? readFileSync(join(folder, name), 'utf8').trim() : '';
const json = (name) => {
  try {
    return JSON.parse(text(name).split('\n').at(-1));
  } catch {
    return null;
  }
};
const record = {
  date: new Date().toISOString().slice(0, 10),
  gpu: text('gpu.txt'), // name, driver, clocks seen, memory
  node: process.version,
  conformance: json('conformance.json'),
  sanitizer: Object.fromEntries(
    ['memcheck', 'racecheck'].map((tool) => [
      tool,
      text(`${tool}.exit`) === '0' ? 'clean' : text(`${tool}.txt`).slice(-2000) || 'not run',
    ]),
  ),
  bench: json('bench.json'),
  peers: json('peers.json'),
};
writeFileSync(path, `${JSON.stringify(record, null, 1)}\n`);
const { passed = 0, failed = 'all' } = record.conformance ?? {};
console.log(`${record.gpu}\nconformance: ${passed} passed, ${failed} failed`);
for (const [tool, result] of Object.entries(record.sanitizer))
  console.log(`${tool}: ${result.split('\n').at(-1)}`);
for (const { name, precision, ms } of record.bench ?? [])
  console.log(`${name.padEnd(28)} ${precision.padEnd(5)} ${ms.toFixed(4)} ms`);
for (const { name, ms, error } of record.peers?.results ?? [])
  console.log(`${name.padEnd(38)} ${ms === undefined ? error : `${ms.toFixed(4)} ms`}`);
console.log(`record: ${path}`);
if (!(passed > 0) || failed !== 0) process.exitCode = 1;
