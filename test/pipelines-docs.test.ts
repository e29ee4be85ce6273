/**
 * The commands of docs/pipelines.md, run as they are written. What they would find elsewhere is made here: `npx` finds this
 * build, `sbatch` and `kubectl` start tasks as SLURM and Kubernetes do, with the same environment, and the device is the CPU.
 */
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';

import { temporaryFolder } from './formats/temporary.js';
import { writeJobs } from './pipeline-run.js';

const root = join(__dirname, '..');
const text = readFileSync(join(root, 'docs/pipelines.md'), 'utf8');

/** The blocks of a language in a section. */
function blocks(section: string, language: string): string[] {
  const [, body] = new RegExp(`^## ${section}\\n(.*?)(?=^## |(?![^]))`, 'ms').exec(text) ?? [];
  if (body === undefined) throw new Error(`docs/pipelines.md has no section ${section}`);
  return [...body.matchAll(new RegExp(`^\`\`\`${language}\\n(.*?)^\`\`\`$`, 'gms'))].map(
    ([, block]) => block!,
  );
}

/** More than three shards of the default size, so that the first four parts have work. */
const ITEMS = 200;
/** The tasks of an array of 16 that are started: those that have a shard, and one that has none. */
const TASKS = '0 1 2 3 15';

const tools = {
  npx: `[ "$1" = attention-bias ] && shift && exec node ${join(root, 'dist/cli/main.js')} "$@"`,
  sbatch: `
for argument; do
  case "$previous $argument" in
    *' --array='0-*) count=$(( \${argument##*-} + 1 ));;
    '--wrap '*) command=$argument;;
  esac
  previous=$argument
done
for task in ${TASKS}; do
  SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$count SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_STEP=1 bash -euc "$command"
done`,
  kubectl: `
case "$1" in
  apply)
    command=$(sed -n 's/^ *\\[\\(npx, .*\\)\\]$/\\1/p' "$3" | tr -d ,)
    name=$(sed -n 's/^ *- name: \\([A-Z_]*\\) .*/\\1/p' "$3")
    value=$(sed -n "s/^ *value: '\\(.*\\)'/\\1/p" "$3")
    [ "$value" = "$(sed -n 's/^ *completions: //p' "$3")" ]
    for task in ${TASKS}; do env "$name=$value" JOB_COMPLETION_INDEX=$task $command; done;;
  exec) shift 3; exec "$@";;
esac`,
};

/** Runs scripts in a folder with frames.jsonl, with the tools above. Their words and data come back together. */
async function inFolder(test: (run: (script: string) => string, folder: string) => void): Promise<void> {
  await using folder = await temporaryFolder();
  const bin = join(folder.path, 'bin');
  mkdirSync(bin);
  for (const [name, script] of Object.entries(tools)) {
    writeFileSync(join(bin, name), `#!/bin/bash -eu\nprevious=\n${script}\n`);
    chmodSync(join(bin, name), 0o755);
  }
  renameSync(await writeJobs(folder.path, ITEMS), join(folder.path, 'frames.jsonl'));
  const clean = Object.entries(process.env).filter(
    ([name]) => !/^(SLURM_|JOB_|RANK$|WORLD_SIZE$)/.test(name),
  );
  test((script) => {
    const { status, stdout } = spawnSync('bash', ['-euo', 'pipefail', '-c', `exec 2>&1\n${script}`], {
      cwd: folder.path,
      env: { ...Object.fromEntries(clean), PATH: `${bin}:${process.env.PATH}` },
      encoding: 'utf8',
    });
    if (status !== 0) throw new Error(`${script}\nended with ${status}: ${stdout}`);
    return stdout;
  }, folder.path);
}

/** No GPU here, and no volume. */
const here = (block: string, folder: string): string =>
  block.replace(/(--device[ ,]+)cuda(:\$gpu)?/g, '$1cpu').replaceAll('/data', folder);

const done = /4 of 4 shards, 200 of 200 items/;

test('a plan', () =>
  inFolder((run) => {
    const [plan] = blocks('What it would take', 'sh');
    expect(run(plan!)).toMatch(/500,?000/);
  }));

test('one GPU server: four processes, and one', () =>
  inFolder((run, folder) => {
    const [four, one] = blocks('One GPU server', 'sh');
    expect(run(here(four!, folder))).toMatch(done);
    rmSync(join(folder, 'shards'), { recursive: true });
    run(here(one!, folder));
    expect(run('npx attention-bias pipeline --out shards --status')).toMatch(done);
  }));

test('SLURM', () =>
  inFolder((run, folder) => {
    const [block] = blocks('SLURM', 'sh');
    expect(run(here(block!, folder))).toMatch(done);
  }));

test('Kubernetes', () =>
  inFolder((run, folder) => {
    const [job] = blocks('Kubernetes', 'yaml');
    const [block] = blocks('Kubernetes', 'sh');
    writeFileSync(join(folder, 'frames.yaml'), here(job!, folder));
    expect(run(here(block!, folder))).toMatch(done);
  }));

test('from Node', () =>
  inFolder((run, folder) => {
    const [program] = blocks('From Node', 'ts');
    const target = ts.ScriptTarget.ES2022;
    const { outputText } = ts.transpileModule(program!, {
      compilerOptions: { target, module: ts.ModuleKind.ESNext },
    });
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(root, join(folder, 'node_modules/attention-bias'));
    writeFileSync(join(folder, 'program.mjs'), outputText);
    run('node program.mjs');
    expect(run('npx attention-bias pipeline --out shards --status')).toMatch(done);
  }));
