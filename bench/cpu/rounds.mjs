// One case, all participants in turns.
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { sizeOf } from '../cases.mjs';

/** Outputs of more values than this are compared by a sample of them. */
const MOST_COMPARED = 8_000_000;

/** Relative L2 distance of two outputs: between float32 kernels, and where one computes in bfloat16. */
const TOLERANCE = { f32: 1e-5, bf16: 1e-2 };

export function summary(times) {
  const sorted = [...times].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  const median = (sorted[Math.ceil(middle) - 1] + sorted[Math.floor(middle)]) / 2;
  return { ms: median, min: sorted[0], max: sorted.at(-1) };
}

/** ‖a − b‖ / ‖b‖ over what is finite, and the largest difference; Infinity where one is not finite and the other differs. */
export function distance(a, b) {
  if (a.length !== b.length) return { relative: Infinity, largest: Infinity };
  let [difference, norm, largest] = [0, 0, 0];
  for (let i = 0; i < a.length; ++i) {
    if (a[i] === b[i] && !Number.isFinite(b[i])) continue;
    const d = Math.abs(a[i] - b[i]);
    if (!Number.isFinite(d)) return { relative: Infinity, largest: Infinity };
    difference += d * d;
    norm += b[i] * b[i];
    if (d > largest) largest = d;
  }
  return { relative: norm > 0 ? Math.sqrt(difference / norm) : Math.sqrt(difference), largest };
}

export function tolerance({ precision, dtype }, way) {
  return precision === 'bf16' || dtype === 'bfloat16' || way.startsWith('bf16')
    ? TOLERANCE.bf16
    : TOLERANCE.f32;
}

/**
 * Runs a case: every participant is prepared, runs once to warm up (that call's memory is measured, on a process that has kept
 * nothing for it yet), has its output compared with the first one's, and then runs once a round in an order that rotates.
 * Returns a figure a participant: { case, who, way, ms, min, max, times, extraMib, relative, largest, wrong } or { skip }.
 */
export async function runCase(item, entries, { rounds, threads, folder, inputs }) {
  const message = { case: item, inputs, threads };
  const stride = Math.ceil(
    sizeOf(item.kind === 'bias' ? item.shape : item.shape.slice(0, 3)) / MOST_COMPARED,
  );
  const figures = [];
  const able = [];
  let expected;
  for (const { participant, way } of entries) {
    const figure = { case: item.name, who: participant.name, way };
    figures.push(figure);
    const ask = async (op, more = {}) => {
      const reply = await participant.ask({ op, way, ...more });
      if (reply.skip !== undefined) throw new Error(reply.skip);
      return reply;
    };
    try {
      const { version } = await ask('prepare', message);
      if (version) figure.version = version;
      const { extraMib } = await ask('run', { memory: true });
      if (extraMib !== undefined) figure.extraMib = extraMib;
      const path = join(folder, 'output');
      await ask('output', { path, stride });
      const bytes = readFileSync(path);
      rmSync(path);
      const output = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
      if (expected) {
        // With the bias given there are no gradients of its tensors, which come last.
        const fewer = item.kind === 'attention-backward' && way === 'given';
        const same = fewer ? expected.subarray(0, output.length) : expected;
        Object.assign(figure, distance(output, same));
        if (!(figure.relative <= tolerance(item, way))) figure.wrong = true;
      }
      expected ??= output;
      figure.times = [];
      able.push({ figure, ask });
    } catch (error) {
      figure.skip = error.message;
    }
  }
  for (let round = 0; round < rounds; ++round) {
    for (let i = 0; i < able.length; ++i) {
      const { figure, ask } = able[(i + round) % able.length];
      if (figure.skip !== undefined) continue;
      try {
        figure.times.push((await ask('run')).ms);
      } catch (error) {
        figure.skip = error.message;
      }
    }
  }
  for (const participant of new Set(entries.map((entry) => entry.participant)))
    await participant.ask({ op: 'release' }).catch(() => {}); // it has ended, which its figures say
  for (const figure of figures) if (figure.times?.length) Object.assign(figure, summary(figure.times));
  return figures;
}
