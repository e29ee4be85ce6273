/**
 * Which of a run's shards a process does: part i of n does the shards whose number leaves the rest i when it is divided by n. Parts
 * need to know nothing of each other, and the parts of another division may work on the same folder later.
 */
import { AttentionBiasError, expected } from '../errors.js';

export interface Part {
  /** from 0 */
  readonly index: number;
  readonly count: number;
  /** what said so: --shard, or names of environment variables; undefined where nothing did and the part is the whole */
  readonly source: string | undefined;
}

type Environment = Readonly<Record<string, string | undefined>>;

/** The number of parts of a Kubernetes job, which its pods are not told by Kubernetes. */
const COUNT_VARIABLE = 'ATTENTION_BIAS_SHARD_COUNT';
const MAX_COUNT = 1_000_000;

function integer(text: string | undefined, name: string): number {
  const value = /^\d{1,9}$/.test(text ?? '') ? Number(text) : undefined;
  if (value !== undefined) return value;
  const received = text === undefined || text === '' ? 'nothing' : JSON.stringify(text.slice(0, 40));
  throw expected('ERR_VALUE', 'an integer of at least 0', name, received);
}

function part(index: number, count: number, source: string): Part {
  if (count < 1 || count > MAX_COUNT)
    throw expected('ERR_VALUE', `a number of parts from 1 to ${MAX_COUNT}`, source, String(count));
  if (index >= count)
    throw expected('ERR_VALUE', `a part from 0 to ${count - 1} of ${count}`, source, String(index));
  return { index, count, source };
}

/** Reads `i/n`; ERR_VALUE for anything else. */
export function parsePart(text: string): Part {
  const match = /^(\d{1,9})\/(\d{1,9})$/.exec(text);
  if (!match) throw expected('ERR_VALUE', 'i/n, as in 0/8,', '--shard', JSON.stringify(text.slice(0, 40)));
  return part(Number(match[1]), Number(match[2]), '--shard');
}

const isSet = (env: Environment, name: string): boolean => (env[name] ?? '') !== '';

/** A task of a SLURM array. Its numbers need not begin at 0, and may have steps. */
function slurmPart(env: Environment): Part | undefined {
  const id = 'SLURM_ARRAY_TASK_ID';
  if (!isSet(env, id)) return undefined;
  const [countName, minName] = ['SLURM_ARRAY_TASK_COUNT', 'SLURM_ARRAY_TASK_MIN'];
  const count = integer(env[countName], countName);
  const first = integer(env[minName], minName);
  const task = integer(env[id], id);
  const step = isSet(env, 'SLURM_ARRAY_TASK_STEP')
    ? integer(env.SLURM_ARRAY_TASK_STEP, 'SLURM_ARRAY_TASK_STEP')
    : 1;
  const index = (task - first) / step;
  if (!Number.isInteger(index) || index < 0 || index >= count) {
    const what = `a task of an array without gaps (or --shard ${id}/n, with n of the whole array)`;
    throw expected('ERR_VALUE', what, id, `${task}, of ${count} from ${first} on`);
  }
  return part(index, count, `${id}, ${countName} and ${minName}`);
}

/** A pod of a Kubernetes job in Indexed mode. */
function kubernetesPart(env: Environment): Part | undefined {
  const name = 'JOB_COMPLETION_INDEX';
  if (!isSet(env, name)) return undefined;
  const index = integer(env[name], name);
  if (!isSet(env, COUNT_VARIABLE)) {
    const what = `the job's completions (Kubernetes does not tell its pods: set ${COUNT_VARIABLE} beside ${name}, or --shard i/n)`;
    throw expected('ERR_VALUE', what, COUNT_VARIABLE, 'nothing');
  }
  return part(index, integer(env[COUNT_VARIABLE], COUNT_VARIABLE), `${name} and ${COUNT_VARIABLE}`);
}

/** A process of torchrun, or of what sets the same variables. */
function rankPart(env: Environment): Part | undefined {
  if (!isSet(env, 'RANK')) return undefined;
  return part(integer(env.RANK, 'RANK'), integer(env.WORLD_SIZE, 'WORLD_SIZE'), 'RANK and WORLD_SIZE');
}

/**
 * The part that this process does: as the option says, else as the environment does, else all.
 *
 * @param option `i/n`
 * @throws AttentionBiasError ERR_VALUE: an option or a variable that makes no sense; variables of two kinds that both divide
 */
export function partOf(option: string | undefined, env: Environment = process.env): Part {
  if (option !== undefined) return parsePart(option);
  const found = [slurmPart(env), kubernetesPart(env), rankPart(env)].filter((one) => one !== undefined);
  const dividing = found.filter(({ count }) => count > 1);
  if (dividing.length > 1) {
    const sources = dividing
      .map(({ source, index, count }) => `${source} (${index}/${count})`)
      .join(' beside ');
    throw new AttentionBiasError(
      'ERR_VALUE',
      `expected one division into parts but received ${sources}: say which with --shard i/n`,
    );
  }
  return dividing[0] ?? found[0] ?? { index: 0, count: 1, source: undefined };
}

/** Whether a part does a shard. */
export const includes = ({ index, count }: Part, shard: number): boolean => shard % count === index;
