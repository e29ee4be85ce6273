// The CPU's benchmark: this package and its peers on the same work, in turns.
//
//   npm run bench -- [--case NAME…] [--rounds 7] [--threads N] [--python PATH] [--small] [--gate] [--record]
//
// Words on stderr, the record as JSON on stdout. Exit code 1: a wrong output, or with --gate a goal missed by more than a run
// moves; 2: a wrong option.
import { mkdirSync, realpathSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { reportText } from './report.mjs';
import { caseNames, measure } from './run.mjs';

const require = createRequire(import.meta.url);
const { abortable } = require('../../dist/cli/abortable.js');

class UsageError extends Error {}

function count(text, name, most) {
  const value = /^\d{1,4}$/.test(text) ? Number(text) : NaN;
  if (value >= 1 && value <= most) return value;
  throw new UsageError(
    `expected an integer from 1 to ${most} for --${name} but received ${JSON.stringify(text)}`,
  );
}

function parse(args) {
  let values, positionals;
  try {
    ({ values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: {
        case: { type: 'string', multiple: true, default: [] },
        rounds: { type: 'string' },
        threads: { type: 'string' },
        python: { type: 'string' },
        small: { type: 'boolean', default: false },
        gate: { type: 'boolean', default: false },
        record: { type: 'boolean', default: false },
      },
    }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const known = caseNames();
  const names = [...values.case, ...positionals];
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    const list = known.map((name) => JSON.stringify(name)).join(', ');
    throw new UsageError(`expected one of ${list} for --case but received ${JSON.stringify(unknown)}`);
  }
  const { small, gate, record, python } = values;
  return {
    names,
    rounds: count(values.rounds ?? (small ? '1' : '7'), 'rounds', 1000),
    threads: count(values.threads ?? String(Math.min(availableParallelism(), 1024)), 'threads', 1024),
    python,
    small,
    gate,
    record,
  };
}

/** The file's name says when and on what. */
function recordPath({ date, machine, small }) {
  const name = `${machine.processor} ${machine.cores} cores${small ? ' small' : ''}`;
  const slug = name
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');
  return new URL(`../records/${date}-${slug}.json`, import.meta.url);
}

/** Runs with the command line's arguments until a signal aborts it; returns the exit code. */
export async function main(args, signal) {
  let options;
  try {
    options = parse(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`bench: ${error.message}\n`);
    return 2;
  }
  const record = await measure({ ...options, signal, say: (name) => process.stderr.write(`${name} …\n`) });
  process.stderr.write(`\n${reportText(record)}`);
  const text = `${JSON.stringify(record, null, 1)}\n`;
  process.stdout.write(text);
  if (options.record) {
    const path = recordPath(record);
    mkdirSync(new URL('.', path), { recursive: true });
    writeFileSync(path, text);
  }
  const wrong = record.figures.some((figure) => figure.wrong || (figure.way === 'own' && failed(figure)));
  const below = options.gate && record.goals.some(({ near }) => near === false);
  return wrong || below ? 1 : 0;
}

/** bfloat16 arithmetic is not everywhere; all else of the package's own must run. */
const failed = ({ case: name, skip }) => skip !== undefined && !name.includes('bf16');

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = await abortable((signal) => main(process.argv.slice(2), signal));
}
