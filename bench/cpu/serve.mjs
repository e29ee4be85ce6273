// The worker's end of the protocol: a line of JSON in, a line of JSON out.
//
//   { op: 'prepare', way, case, inputs, threads }   → { version }, or { skip: WHY }
//   { op: 'run', way, memory }                      → { ms }, with `memory` { ms, extraMib }
//   { op: 'output', way, path, stride }             → {}; every stride-th value of the last output as raw float32
//   { op: 'release' }                               → {}
import { writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { withPeak } from './memory.mjs';

/** Every stride-th value, as float32. */
export const every = (values, stride) =>
  stride === 1
    ? values
    : Float32Array.from({ length: Math.ceil(values.length / stride) }, (_, i) => values[i * stride]);

/**
 * Serves until stdin ends. `prepare(message)` gives { version, run, values, outputBytes, release }: run() a promise of what was timed
 * in milliseconds, values() the last output as a Float32Array, outputBytes what of it run() allocates itself.
 */
export async function serve(prepare) {
  const prepared = new Map();
  const operations = {
    async prepare(message) {
      const way = await prepare(message);
      prepared.set(message.way, way);
      return { version: way.version };
    },
    async run({ way, memory = false }) {
      const { run, outputBytes } = prepared.get(way);
      const timed = async () => ({ ms: await run() });
      return memory ? withPeak(timed, outputBytes) : timed();
    },
    async output({ way, path, stride }) {
      writeFileSync(path, every(prepared.get(way).values(), stride));
      return {};
    },
    async release() {
      for (const { release } of prepared.values()) await release();
      prepared.clear();
      return {};
    },
  };
  for await (const line of createInterface({ input: process.stdin })) {
    const message = JSON.parse(line);
    let reply;
    try {
      reply = await operations[message.op](message);
    } catch (error) {
      reply = { skip: String(error.message ?? error).split('\n')[0] };
    }
    process.stdout.write(`${JSON.stringify(reply)}\n`);
  }
}
