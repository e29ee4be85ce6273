import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { CommandModule } from 'yargs';

import { abortable } from './abortable.js';

interface BenchOptions {
  case: string[];
  rounds: string | undefined;
  threads: string | undefined;
  python: string | undefined;
  small: boolean;
  gate: boolean;
}

/** bench/cpu/main.mjs, which is not compiled: `npm run bench` runs it too. */
interface BenchModule {
  /** takes the command line's arguments, returns the exit code */
  main: (args: string[], signal: AbortSignal) => Promise<number>;
}

export const benchCommand: CommandModule<object, BenchOptions> = {
  command: 'bench',
  describe: 'time the CPU backend, and PyTorch in turns with it (minutes); a table on stderr, JSON on stdout',
  builder: (yargs) =>
    yargs
      .option('case', {
        type: 'string',
        array: true,
        default: [],
        requiresArg: true,
        describe: 'cases by name; default: all',
      })
      .option('rounds', {
        type: 'string',
        requiresArg: true,
        describe: 'runs of each participant; default 7, or 1',
      })
      .option('threads', {
        type: 'string',
        requiresArg: true,
        describe: 'of each participant; default: all cores',
      })
      .option('python', {
        type: 'string',
        requiresArg: true,
        describe: 'a Python with torch, for PyTorch to take part',
      })
      .option('small', {
        type: 'boolean',
        default: false,
        describe: 'small sizes: whether it works, no times',
      })
      .option('gate', {
        type: 'boolean',
        default: false,
        describe: 'exit code 1 where a goal is missed by 10 %',
      }),
  handler: async ({ case: names, rounds, threads, python, small, gate }) => {
    const url = pathToFileURL(join(__dirname, '..', '..', 'bench', 'cpu', 'main.mjs')).href;
    const { main } = (await import(url)) as BenchModule;
    const values = { rounds, threads, python };
    const options = [
      ...names.map((name) => `--case=${name}`),
      ...Object.entries(values).flatMap(([name, value]) =>
        value === undefined ? [] : [`--${name}=${value}`],
      ),
      ...(small ? ['--small'] : []),
      ...(gate ? ['--gate'] : []),
    ];
    process.exitCode = await abortable((signal) => main(options, signal));
  },
};
