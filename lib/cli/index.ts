import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import yargs from 'yargs';
import { AttentionBiasError, type ErrorCode } from '../errors.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { frameCommand } from './frame.js';
import { runCommand } from './run.js';
import { smokeCommand } from './smoke.js';

const USAGE_ERROR = 2;

/** 3: a device that is not there; 4: a file that can't be opened, read or written; 2: anything else that was asked wrong. */
export function exitCode(code: ErrorCode): number {
  if (code === 'ERR_DEVICE') return 3;
  return code === 'ERR_IO' ? 4 : USAGE_ERROR;
}

export function packageVersion(): string {
  const path = join(__dirname, '../../package.json');
  return (JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version;
}

/** One line: messages quote file names and contents, which may hold line breaks. */
const oneLine = (text: string): string => text.replace(/\s*[\r\n]+\s*/g, ' ');

/** Runs the command line and sets the process's exit code. */
export async function main(args: string[]): Promise<void> {
  const parser = yargs(args)
    .scriptName('attention-bias')
    .usage('$0 <command>\n\nAttention whose scores carry a bias: LiDAR-camera queries, Swin, DETR, ALiBi.')
    .command(runCommand)
    .command(frameCommand)
    .command(demoCommand)
    .command(smokeCommand)
    .command(doctorCommand)
    .completion('completion', 'print a shell completion script')
    .demandCommand(1, 'expected a command; attention-bias --help lists them')
    .strict()
    .recommendCommands()
    .version(packageVersion())
    .wrap(Math.min(110, process.stdout.columns || 110))
    .exitProcess(false)
    .fail((message, error) => {
      // yargs calls this for its own complaints (a message) and for what a handler throws (an error).
      throw (
        (error as Error | undefined) ??
        new AttentionBiasError('ERR_VALUE', `${message} (see attention-bias --help)`)
      );
    });
  try {
    await parser.parseAsync();
  } catch (error) {
    if (error instanceof AttentionBiasError) {
      process.stderr.write(`attention-bias: ${oneLine(error.message)}\n`);
      process.exitCode = exitCode(error.code);
    } else {
      process.stderr.write(
        `attention-bias: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
      );
      process.exitCode = 1;
    }
  }
}
