// Runs this package and PyTorch in turns on one machine, and writes what came out to bench/records:
//
//   node bench/compare.mjs --python VENV/bin/python [--rounds 5] [--threads 2] [--record NAME]
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    python: { type: 'string', default: 'python3' },
    rounds: { type: 'string', default: '5' },
    threads: { type: 'string', default: '2' },
    record: { type: 'string' },
  },
});

function measure(command, args, env = {}) {
  const { status, stdout, stderr } = spawnSync(command, [...args, '--threads', values.threads], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout);
}

/** The processor as the kernel knows it: cloud machines often hide the model's name. */
function processor() {
  const text = readFileSync('/proc/cpuinfo', 'utf8');
  const field = (name) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(text)?.[1];
  return `${field('model name')} (family ${field('cpu family')}, model ${field('model')})`;
}

const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];

const own = ['x86-64-v4', 'x86-64-v3'];
const runs = { peer: [], ...Object.fromEntries(own.map((isa) => [isa, []])) };
for (let round = 0; round < Number(values.rounds); ++round) {
  runs.peer.push(measure(values.python, ['bench/peers/torch_cpu.py']));
  for (const isa of own)
    runs[isa].push(measure(process.execPath, ['bench/cmt.mjs'], { ATTENTION_BIAS_ISA: isa }));
  console.error(`round ${round + 1} of ${values.rounds}`);
}

const peer = (field) => median(runs.peer.map((run) => run[field]));
const record = {
  what: 'attention 1×8×900×56,400×32, float32, two-segment modality bias; medians of interleaved rounds',
  date: new Date().toISOString().slice(0, 10),
  machine: {
    processor: processor(),
    cores: availableParallelism(),
    memory_gib: Math.round(totalmem() / 2 ** 30),
  },
  threads: Number(values.threads),
  rounds: Number(values.rounds),
  node: process.version,
  peer: runs.peer[0].peer,
  sdpa_bias_given_ms: peer('sdpa_bias_given_ms'),
  sdpa_build_bias_ms: peer('sdpa_build_bias_ms'),
  attention_bias: own.map((isa) => {
    const ms = median(runs[isa].map((run) => run.attention_ms));
    return {
      isa,
      ms,
      extra_mib: Math.max(...runs[isa].map((run) => run.extra_mib)),
      faster_than_bias_given: peer('sdpa_bias_given_ms') / ms,
      faster_than_build_bias: peer('sdpa_build_bias_ms') / ms,
    };
  }),
  raw: runs,
};
const text = `${JSON.stringify(record, null, 1)}\n`;
if (values.record) writeFileSync(new URL(`records/${values.record}.json`, import.meta.url), text);
console.log(text);
