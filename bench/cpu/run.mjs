// Starts the participants, runs the cases, and puts a record together.
import { mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { cpuCases } from './cases.mjs';
import { judge } from './goals.mjs';
import { makeDraw } from './inputs.mjs';
import { machine, measuredIsas, peaks } from './machine.mjs';
import { startParticipant } from './participant.mjs';
import { runCase } from './rounds.mjs';

const require = createRequire(import.meta.url);
const { writeSafetensors } = require('../../dist/formats/index.js');
const { throwIfAborted } = require('../../dist/formats/io.js');

const file = (path) => fileURLToPath(new URL(path, import.meta.url));

/** Names of all cases. */
export const caseNames = () => cpuCases().cases.map(({ name }) => name);

function startAll(isas, python) {
  const own = isas.map((isa) =>
    startParticipant(isa, process.execPath, [file('own-worker.mjs')], { ATTENTION_BIAS_ISA: isa }),
  );
  const onnx = startParticipant('ONNX Runtime', process.execPath, [file('onnx-worker.mjs')]);
  // Workers that have nothing to do sleep, and don't take a core from whose turn it is.
  const torch =
    python &&
    startParticipant('PyTorch', python, [file('../peers/torch_cpu.py')], { OMP_WAIT_POLICY: 'PASSIVE' });
  return { own, onnx, torch };
}

/** Who runs a case, in which way. */
function entriesOf({ ways }, { own, onnx, torch }) {
  const entries = own.map((participant) => ({ participant, way: 'own' }));
  for (const way of ways) {
    const participant = way === 'onnx' ? onnx : torch;
    if (participant) entries.push({ participant, way });
  }
  return entries;
}

/** Other work on the machine only ever lowers a peak. */
const higher = (a, b) =>
  Object.fromEntries(
    Object.entries(a).map(([isa, ofIsa]) => [
      isa,
      Object.fromEntries(Object.entries(ofIsa).map(([name, value]) => [name, Math.max(value, b[isa][name])])),
    ]),
  );

/**
 * The figures of a case that is bound by bandwidth, each of ours with `fillGBs`: a machine's bandwidth moves with what its
 * neighbours do, so that fills are timed right before and right after.
 */
async function besideFills(run, threads, isas) {
  const before = peaks(threads, isas);
  const figures = await run();
  const after = peaks(threads, isas);
  for (const figure of figures.filter(({ way }) => way === 'own')) {
    const [a, b] = [before, after].map((ofIsas) => ofIsas[figure.who].fillGBs);
    figure.fillGBs = (a + b) / 2;
  }
  return figures;
}

/**
 * The record of a run: { date, machine, threads, rounds, small, peaks, cases, figures, goals }. `names`: the cases, all where
 * empty; `say`: gets a line on each case as it begins. Aborted by `signal`, it stops the participants, removes its temporary
 * folder and throws ERR_ABORTED.
 */
export async function measure({ names = [], rounds, threads, python, small, signal, say = () => {} }) {
  const { cases, tensors } = cpuCases({ small });
  const chosen = cases.filter(({ name }) => names.length === 0 || names.includes(name));
  const isas = measuredIsas();
  const record = {
    date: new Date().toISOString().slice(0, 10),
    machine: machine(),
    threads,
    rounds,
    small,
    peaks: peaks(threads, isas),
    cases: chosen,
    figures: [],
  };
  const draw = makeDraw(chosen, tensors);
  const folder = mkdtempSync(join(tmpdir(), 'attention-bias-bench-'));
  const { own, onnx, torch } = startAll(isas, python);
  const all = [...own, onnx, torch].filter(Boolean);
  const stop = () => all.forEach((participant) => participant.stop());
  signal?.addEventListener('abort', stop);
  try {
    for (const item of chosen) {
      say(item.name);
      const inputs = join(folder, 'inputs.safetensors');
      await writeSafetensors(inputs, draw(item));
      const entries = entriesOf(item, { own, onnx, torch });
      const run = () => runCase(item, entries, { rounds, threads, folder, inputs });
      record.figures.push(...(item.kind === 'bias' ? await besideFills(run, threads, isas) : await run()));
      throwIfAborted(signal, item.name); // its figures are of participants that were stopped
    }
  } finally {
    signal?.removeEventListener('abort', stop);
    await Promise.all(all.map((participant) => participant.close()));
    rmSync(folder, { recursive: true, force: true });
  }
  record.peaks = higher(record.peaks, peaks(threads, isas));
  record.goals = small ? [] : judge(record);
  return record;
}
