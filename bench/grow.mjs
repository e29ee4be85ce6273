// How the cost of attention with a modality bias grows, one size at a time: a plot (bench/records/grow-WHAT.png) and the figures
// (bench/records/grow.json), with PyTorch's line beside this package's.
//
//   npm run bench:grow -- [--python PATH] [--rounds 5]
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { loadCases } from './cases.mjs';
import { makeWriter } from './cpu/inputs.mjs';
import { machine, measuredIsas } from './cpu/machine.mjs';
import { startParticipant } from './cpu/participant.mjs';
import { runCase } from './cpu/rounds.mjs';

const sharp = createRequire(import.meta.url)('sharp');

// A quarter of CMT's keys, where nothing else is said.
const base = { queries: 900, side: 90, heads: 8, dim: 32, terms: 1, threads: availableParallelism() };

const doublings = (from, to) => Array.from({ length: 1 + Math.log2(to / from) }, (_, i) => from * 2 ** i);

/** What grows: the values, and the number that stands on the axis. */
const axes = {
  queries: { title: 'queries', values: doublings(56, 1792) },
  side: {
    name: 'keys',
    title: 'keys',
    values: [23, 45, 90, 180, 254],
    shown: (side) => sizes({ side }).keys,
  },
  heads: { title: 'heads', values: doublings(1, 16) },
  dim: { name: 'head-dim', title: 'head dim', values: doublings(16, 128) },
  terms: { title: 'modality terms in the bias', values: [1, 2, 4, 8, 16] },
  threads: { title: 'threads', values: doublings(1, 2 ** Math.floor(Math.log2(base.threads))) },
};

function sizes({ queries = base.queries, side = base.side }) {
  const [lidarKeys, cameraKeys] = [side * side, Math.round(0.74 * side * side)];
  return { queries, lidarKeys, cameraKeys, keys: lidarKeys + cameraKeys };
}

/** The case of one point, with its tensors' specifications. */
function point(setting) {
  const { queries, keys, ...others } = sizes(setting);
  const { attention, tensors } = loadCases({ changed: { queries, keys, ...others } });
  const [modality] = attention.find(({ name }) => name === 'cmt modality').bias;
  const item = {
    name: JSON.stringify(setting),
    kind: 'attention',
    shape: [1, setting.heads, queries, keys, setting.dim],
    bias: Array.from({ length: setting.terms }, () => modality),
    precision: 'f32',
    dtype: 'float32',
  };
  return { item, tensors };
}

function specification({ title }, rows, subtitle) {
  const log = (name, range, field) => ({
    name,
    type: 'log',
    range,
    domain: { data: 'rows', field },
    nice: false,
  });
  const axisOf = (scale, orient, text, values) => ({
    scale,
    orient,
    title: text,
    grid: true,
    labelFontSize: 13,
    titleFontSize: 14,
    format: ',~r',
    ...(values && { values }),
  });
  return {
    width: 640,
    height: 400,
    padding: 16,
    background: 'white',
    title: {
      text: `Attention with a modality bias, by ${title}`,
      subtitle,
      anchor: 'start',
      fontSize: 17,
      subtitleFontSize: 12,
      offset: 14,
    },
    data: [{ name: 'rows', values: rows }],
    scales: [
      log('x', 'width', 'x'),
      { ...log('y', 'height', 'ms'), nice: true },
      {
        name: 'colour',
        type: 'ordinal',
        domain: { data: 'rows', field: 'who' },
        range: { scheme: 'tableau10' },
      },
    ],
    axes: [
      axisOf('x', 'bottom', title, [...new Set(rows.map(({ x }) => x))]),
      axisOf('y', 'left', 'milliseconds, median'),
    ],
    legends: [
      {
        stroke: 'colour',
        symbolType: 'stroke',
        symbolStrokeWidth: 3,
        orient: 'bottom',
        direction: 'vertical',
        labelFontSize: 13,
        labelLimit: 400,
      },
    ],
    marks: [
      {
        type: 'group',
        from: { facet: { name: 'line', data: 'rows', groupby: 'who' } },
        marks: ['line', 'symbol'].map((type) => ({
          type,
          from: { data: 'line' },
          encode: {
            enter: {
              x: { scale: 'x', field: 'x' },
              y: { scale: 'y', field: 'ms' },
              stroke: { scale: 'colour', field: 'who' },
              ...(type === 'line'
                ? { strokeWidth: { value: 2 } }
                : { fill: { scale: 'colour', field: 'who' } }),
            },
          },
        })),
      },
    ],
  };
}

const { values: options } = parseArgs({
  options: { python: { type: 'string' }, rounds: { type: 'string', default: '5' } },
});
const vega = await import('vega');
const file = (path) => fileURLToPath(new URL(path, import.meta.url));
const own = measuredIsas().map((isa) =>
  startParticipant(isa, process.execPath, [file('cpu/own-worker.mjs')], { ATTENTION_BIAS_ISA: isa }),
);
const torch =
  options.python &&
  startParticipant('PyTorch', options.python, [file('peers/torch_cpu.py')], { OMP_WAIT_POLICY: 'PASSIVE' });
const entries = [
  ...own.map((participant) => ({ participant, way: 'own', label: `attention-bias, ${participant.name}` })),
  ...(torch
    ? ['built', 'given'].map((way) => ({ participant: torch, way, label: `PyTorch SDPA, bias ${way}` }))
    : []),
];
const folder = mkdtempSync(join(tmpdir(), 'attention-bias-grow-'));
const record = { date: new Date().toISOString().slice(0, 10), machine: machine(), base, plots: {} };
try {
  for (const [field, axis] of Object.entries(axes)) {
    const rows = [];
    for (const value of axis.values) {
      const setting = { ...base, [field]: value };
      const { item, tensors } = point(setting);
      const inputs = join(folder, 'inputs.safetensors');
      await makeWriter([item], tensors)(item, inputs);
      const run = { rounds: Number(options.rounds), threads: setting.threads, folder, inputs };
      const figures = await runCase(item, entries, run);
      figures.forEach((figure, i) => {
        if (figure.ms === undefined || figure.wrong)
          throw new Error(`${item.name}: ${figure.skip ?? 'wrong output'}`);
        const { ms, min, max } = figure;
        rows.push({ who: entries[i].label, x: axis.shown?.(value) ?? value, ms, min, max });
      });
      console.error(
        `${field} ${value}: ${rows
          .slice(-entries.length)
          .map(({ ms }) => ms.toFixed(1))
          .join(', ')} ms`,
      );
    }
    const name = axis.name ?? field;
    record.plots[name] = rows;
    const { keys } = sizes({});
    const fixed = Object.entries({ ...base, side: undefined, keys: field === 'side' ? undefined : keys });
    const rest = fixed.filter(([other, size]) => other !== field && size !== undefined);
    const subtitle = [
      `${record.machine.processor}, ${record.machine.cores} cores, float32`,
      rest
        .map(([other, size]) => `${other === 'dim' ? 'head dim' : other} ${size.toLocaleString('en')}`)
        .join(', '),
    ];
    const view = new vega.View(vega.parse(specification(axis, rows, subtitle)), { renderer: 'none' });
    const svg = await view.toSVG();
    await sharp(Buffer.from(svg), { density: 144 })
      .png()
      .toFile(file(`records/grow-${name}.png`));
  }
  writeFileSync(file('records/grow.json'), `${JSON.stringify(record, null, 1)}\n`);
} finally {
  await Promise.all(entries.map(({ participant }) => participant.close()));
  rmSync(folder, { recursive: true, force: true });
}
