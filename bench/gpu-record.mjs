// Joins what the parts of scripts/gpu-check left in a folder into one record, and prints a table of what was proven, what was
// reached, and whether each goal was met:
//
//   node bench/gpu-record.mjs FOLDER RECORD.json [--quick] [--profile]
//
// Exit code: 0 proven and all goals met; 1 something is wrong: a case of the conformance vectors, a sanitizer's finding, an
// output; 4 nothing is wrong, but a part was not run or not done, or a figure that a goal needs is missing; 5 all was run, and
// a goal was missed. --quick: what the short check leaves out is not missing, and goals don't count.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { judge } from './goals.mjs';

const { values: options, positionals } = parseArgs({
  options: { quick: { type: 'boolean', default: false }, profile: { type: 'boolean', default: false } },
  allowPositionals: true,
});
const [folder, path] = positionals;

const text = (name) =>
  existsSync(join(folder, name)) ? readFileSync(join(folder, name), 'utf8').trim() : '';
const lines = (name) => text(name).split('\n').filter(Boolean);
/** Lines of JSON; what a part was writing when its time was up is left out. */
const json = (name) =>
  lines(name).flatMap((line) => {
    try {
      return [JSON.parse(line)];
    } catch {
      return [];
    }
  });

/** Each part of the check: { part, status, seconds }, or { part, notRun }. */
const parts = json('parts.jsonl').map(({ part, notRun, status, start, end, limit }) =>
  notRun === undefined ? { part, status, start, end, limit, seconds: end - start } : { part, notRun },
);
const partNamed = (name) => parts.find(({ part }) => part === name) ?? { part: name, notRun: 'not begun' };
const ranOut = ({ status }) => status === 124 || status === 137;
const required = options.quick
  ? ['conformance', 'own']
  : [
      'conformance',
      'memcheck',
      'racecheck',
      'own',
      'peers',
      'again',
      ...(options.profile ? ['profile'] : []),
    ];

function unfinished({ notRun, status, limit }) {
  if (notRun !== undefined) return `not run: ${notRun}`;
  if (ranOut({ status })) return `not done within ${limit} s`;
  return undefined;
}

function conformance() {
  const results = json('conformance.jsonl');
  const cases = results.filter(({ name }) => name);
  const wrong = cases.filter(({ problems }) => problems.length > 0);
  const problems = wrong.map(
    ({ precision, name, problems: list }) => `${precision} ${name}: ${list.join('; ')}`,
  );
  const part = partNamed('conformance');
  const done = results.some((line) => line.done);
  if (!done && unfinished(part) === undefined)
    problems.push(`ended with ${part.status} before the last case: ${lines('conformance.err').at(-1) ?? ''}`);
  if (done && cases.length === 0) problems.push('no case was there');
  return { passed: cases.length - wrong.length, failed: wrong.length, done, problems };
}

const errorLine =
  /^(Invalid|Misaligned|Out-of|Error|Uninitialized|Barrier|Divergent|Program hit|Potential|Race|Fatal)/i;

/** A tool of compute-sanitizer: `state` is clean, wrong or missing, `result` says it with the first error or the reason. */
function sanitizer(tool) {
  const part = partNamed(tool);
  if (part.notRun !== undefined) return { state: 'missing', result: `not run: ${part.notRun}` };
  const log = lines(`${tool}.log`).map((line) => line.replace(/^=+ /, ''));
  const summaries = log.filter((line) => line.includes('SUMMARY: '));
  const finding = log.findIndex((line) => errorLine.test(line));
  const said = log.slice(Math.max(finding, 0)).slice(0, 4);
  const first = said
    .map((line) => line.trim())
    .join(' | ')
    .slice(0, 400);
  if (summaries.some((line) => !line.includes('SUMMARY: 0 '))) return { state: 'wrong', result: first };
  const why = unfinished(part);
  if (why !== undefined)
    return finding >= 0 ? { state: 'wrong', result: first } : { state: 'missing', result: why };
  const last = lines(`${tool}.err`).at(-1) ?? log.at(-1) ?? '';
  const ended = `ended with ${part.status}: ${last}`;
  if (summaries.length === 0) return { state: 'missing', result: `not run: ${ended}` };
  if (part.status !== 0) return { state: 'wrong', result: `no error found, but the program ${ended}` };
  const { passed = 0 } = json(`${tool}.jsonl`).find(({ done }) => done) ?? {};
  return passed > 0
    ? { state: 'clean', result: `clean, ${passed} cases` }
    : { state: 'missing', result: 'not run: the program ran no case' };
}

/** What a part's figures say is wrong; a part that ended badly without saying why is wrong too. */
function wrongFigures(part, figures) {
  const wrong = figures.flatMap(({ name, precision, peer, problems = [] }) =>
    problems.map((problem) => `${[name, precision, peer].filter(Boolean).join(', ')}: ${problem}`),
  );
  const { status, notRun } = partNamed(part);
  if (notRun === undefined && status !== 0 && !ranOut({ status }) && wrong.length === 0)
    wrong.push(`ended with ${status}: ${lines(`${part}.err`).at(-1) ?? ''}`);
  return wrong;
}

/** nvidia-smi's samples: { time in seconds, sm and memory clocks in MHz, temperature in °C, power in W }. */
const samples = lines('clocks.csv').flatMap((line) => {
  const [time, ...rest] = line.split(', ');
  const [sm, memory, celsius, watts] = rest.map(Number);
  const seconds = new Date(time).getTime() / 1000;
  return Number.isFinite(seconds) && Number.isFinite(sm) ? [{ seconds, sm, memory, celsius, watts }] : [];
});

function spread(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  return { least: sorted[0], median: sorted[Math.floor(sorted.length / 2)], most: sorted.at(-1) };
}

function clocks() {
  const within = ({ start, end }) =>
    samples.filter(({ seconds }) => seconds >= start - 0.5 && seconds <= end + 0.5);
  const during = parts
    .filter(({ notRun }) => notRun === undefined)
    .map((part) => {
      const seen = within(part);
      const columns = ['sm', 'memory', 'celsius', 'watts'];
      const spreads = columns.map((column) => [column, spread(seen.map((sample) => sample[column]))]);
      return [part.part, { samples: seen.length, ...Object.fromEntries(spreads) }];
    });
  return { before: samples[0] ?? null, after: samples.at(-1) ?? null, during: Object.fromEntries(during) };
}

/** The metrics that Nsight Compute gave of the attention kernel: { kernel, metric: 'value unit' }. */
function profile() {
  const rows = lines('profile.csv').filter((line) => line.startsWith('"'));
  const [names, units, ...kernels] = rows.map((row) => JSON.parse(`[${row}]`));
  if (!kernels?.length) return null;
  const wanted =
    /^(gpu__time_duration\.sum|(dram|lts|l1tex|sm)__throughput|sm__inst_executed_pipe_|sm__pipe_tensor|sm(sp)?__(issue_active|inst_issued)|sm__warps_active|launch__(registers|occupancy|waves)|smsp__average_warps_issue_stalled)/;
  return kernels.map((values) => {
    const metrics = names.flatMap((name, i) =>
      wanted.test(name) && values[i] !== '' ? [[name, `${values[i]} ${units[i]}`.trim()]] : [],
    );
    return { kernel: values[names.indexOf('Kernel Name')], ...Object.fromEntries(metrics) };
  });
}

const device = json('device.json')[0] ?? {};
const own = json('own.jsonl').filter(({ kind }) => kind === 'attention' || kind === 'bias');
const again = json('again.jsonl').filter(({ kind }) => kind === 'attention' || kind === 'bias');
const peers = json('peers.jsonl').filter(({ kind }) => kind === 'peer');
const peerHeader = json('peers.jsonl').find(({ kind }) => kind === 'header');
const proven = conformance();
const tools = ['memcheck', 'racecheck', 'synccheck', 'initcheck'];
const sanitizers = Object.fromEntries(tools.map((tool) => [tool, sanitizer(tool)]));
const goals = judge(own, peers).filter(({ why }) => !(options.quick && why));

const wrong = [
  ...proven.problems.map((problem) => `conformance: ${problem}`),
  ...tools
    .filter((tool) => sanitizers[tool].state === 'wrong')
    .map((tool) => `${tool}: ${sanitizers[tool].result}`),
  ...[
    ['own', own],
    ['again', again],
    ['peers', peers],
  ].flatMap(([part, figures]) => wrongFigures(part, figures).map((problem) => `${part}: ${problem}`)),
];
const missing = required.flatMap((name) => {
  const { state, result } = sanitizers[name] ?? {};
  if (state !== undefined) return state === 'missing' ? [`${name}: ${result}`] : [];
  const why = unfinished(partNamed(name));
  return why === undefined ? [] : [`${name}: ${why}`];
});
if (options.profile && !missing.some((line) => line.startsWith('profile')) && !profile())
  missing.push(`profile: ${lines('profile.err').at(-1) ?? 'no metrics'}`);
missing.push(...goals.filter(({ why }) => why).map(({ what, why }) => `${what}: ${why}`));
const missed = options.quick ? [] : goals.filter(({ met }) => met === false);
const onGpu = device.measured === 'gpu';

const record = {
  what: 'scripts/gpu-check: conformance, sanitizers, kernel times and PyTorch on one GPU',
  measured: onGpu ? 'on the GPU' : `NOT ON A GPU: ${device.measured ?? 'no device'}`,
  date: new Date().toISOString().slice(0, 10),
  version: device.version,
  commit: text('commit.txt') || null,
  gpu: text('gpu.csv'), // name, driver, memory, power limit, greatest clocks
  device,
  toolkit: text('toolkit.txt') || null,
  node: process.version,
  torch: peerHeader ?? null,
  wrong,
  missing,
  goals,
  conformance: proven,
  sanitizer: Object.fromEntries(tools.map((tool) => [tool, sanitizers[tool].result])),
  clocks: clocks(),
  parts: parts.map(({ start, end, ...rest }) => rest),
  own,
  again,
  peers,
  profile: profile(),
};
mkdirSync(dirname(path), { recursive: true });
writeFileSync(path, `${JSON.stringify(record, null, 1)}\n`);

/** Rows of cells in columns, those of the numbers in `right` aligned at their ends. */
function table(rows, right = []) {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => [...row[i]].length)));
  const pad = (cell, i) => {
    const space = ' '.repeat(widths[i] - [...cell].length);
    return right.includes(i) ? space + cell : cell + space;
  };
  return rows.map((row) => row.map(pad).join('  ').trimEnd()).join('\n');
}

const cell = (figure) => {
  if (!figure) return '';
  const { ms, notRun, problems = [] } = figure;
  if (problems.length > 0) return 'WRONG';
  if (ms !== undefined) return ms.toFixed(4);
  return notRun?.startsWith('not begun') ? 'not begun' : 'refused';
};

/** Cases in rows, precisions in columns. */
function ownTable(kind, title) {
  const figures = own.filter((figure) => figure.kind === kind);
  const [names, columns] = ['name', 'precision'].map((key) => [...new Set(figures.map((item) => item[key]))]);
  const find = (name, precision) =>
    figures.find((figure) => figure.name === name && figure.precision === precision);
  const rows = names.map((name) => [name, ...columns.map((precision) => cell(find(name, precision)))]);
  return rows.length === 0 ? [] : [table([[title, ...columns], ...rows], [1, 2, 3]), ''];
}

/** Cases in rows, each with its peers' times in one line; why a peer refused stands in the record. */
function peersTable() {
  const names = [...new Set(peers.map(({ name, precision }) => `${name}, ${precision}`))];
  const rows = names.map((title) => {
    const figures = peers.filter(({ name, precision }) => `${name}, ${precision}` === title);
    const known = figures.filter(({ ms, problems = [] }) => ms !== undefined || problems.length > 0);
    const others = figures
      .filter((figure) => !known.includes(figure))
      .map((item) => `${item.peer} ${cell(item)}`);
    return [title, [...known.map((item) => `${item.peer} ${cell(item)}`), ...others].join(', ')];
  });
  return rows.length === 0 ? [] : [table([['peers, ms', ''], ...rows]), ''];
}

const reached = ({ reached: value, unit }) =>
  value === undefined ? '-' : `${value.toFixed(unit === '×' ? 2 : 1)} ${unit}`;
function verdict({ met }) {
  if (met === undefined) return 'not measured';
  if (!onGpu) return 'not on a GPU';
  return met ? 'met' : 'MISSED';
}

/** How much the package's own times moved while the peers ran. */
function drift() {
  const ratios = again.flatMap(({ name, precision, ms }) => {
    const first = own.find((item) => item.name === name && item.precision === precision);
    return ms && first?.ms ? [ms / first.ms] : [];
  });
  const percent = (ratio) => `${(100 * (ratio - 1)).toFixed(1)} %`;
  if (ratios.length === 0) return 'own times were not taken again after the peers';
  return `own times again, after the peers: ${percent(Math.min(...ratios))} to ${percent(Math.max(...ratios))}`;
}

/** What makes figures of ours others than the goals mean. */
function notes() {
  const measured = own.filter(({ ms }) => ms !== undefined);
  return [
    ...(measured.some(({ precision, inputs }) => precision === 'bf16' && inputs === 'float32')
      ? ['bf16 read float32 tensors: this build takes no bfloat16 ones']
      : []),
    ...(measured.some(({ cold }) => cold === false) ? ['own runs did not begin with a cold cache'] : []),
  ];
}

const seen = record.clocks.during.own;
const banner = onGpu ? [] : [`*** ${record.measured}: no figure here is a GPU's ***`];
const output = [
  ...banner,
  ...peersTable(),
  ...ownTable('attention', 'own kernels, ms'),
  ...ownTable('bias', 'own dense bias, ms'),
  ...ownTable('operation', 'own gradients, multihead and deformable attention, ms'),
  drift(),
  ...notes(),
  '',
  `${record.gpu || device.name || 'no GPU'}`,
  `SM clock during own runs: ${seen?.sm ? `${seen.sm.least} to ${seen.sm.most} MHz` : 'not seen'}`,
  `conformance: ${proven.passed} passed, ${proven.failed} failed${proven.done ? '' : ', NOT DONE'}`,
  ...(options.quick ? [] : tools.map((tool) => `${tool}: ${sanitizers[tool].result}`)),
  '',
  table([['goal', '', 'reached', ''], ...goals.map((g) => [g.what, g.goal, reached(g), verdict(g)])], [1, 2]),
  '',
  ...wrong.slice(0, 12).map((line) => `WRONG    ${line}`.slice(0, 240)),
  ...(wrong.length > 12 ? [`WRONG    and ${wrong.length - 12} more, in the record`] : []),
  ...missing.slice(0, 12).map((line) => `MISSING  ${line}`.slice(0, 240)),
  ...(missing.length > 12 ? [`MISSING  ${missing.length - 12} more, in the record`] : []),
  ...banner,
  `record: ${path}`,
];
console.log(output.join('\n'));
if (wrong.length > 0) process.exitCode = 1;
else if (missing.length > 0 || !onGpu) process.exitCode = 4;
else if (missed.length > 0) process.exitCode = 5;
const verdicts = { 1: 'WRONG', 4: 'nothing wrong, but incomplete', 5: 'proven, but a goal was missed' };
const best = options.quick ? 'nothing wrong in the short check' : 'proven, and every goal met';
console.log(`result: ${verdicts[process.exitCode] ?? best}`);
