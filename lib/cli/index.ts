import yargs from 'yargs';
import { AttentionBiasError, visible, withoutPasswords, type ErrorCode } from '../errors.js';
import { ioError } from '../formats/io.js';
import { benchCommand } from './bench.js';
import { demoCommand } from './demo.js';
import { doctorCommand } from './doctor.js';
import { frameCommand } from './frame.js';
import { pipelineCommand } from './pipeline.js';
import { reportCommand } from './report.js';
import { runCommand } from './run.js';
import { smokeCommand } from './smoke.js';
import { workerCommand } from './worker.js';
import { packageVersion } from '../version.js';

const USAGE_ERROR = 2;

/**
 * 3: a device that is not there; 4: a file that can't be opened, read or written; 1: what this machine lacks otherwise; 2:
 * anything that was asked wrong.
 */
export function exitCode(code: ErrorCode): number {
  if (code === 'ERR_DEVICE') return 3;
  if (code === 'ERR_MEMORY') return 1;
  return code === 'ERR_IO' ? 4 : USAGE_ERROR;
}

const MAX_LINE = 2000;

/** One line of a sensible length: messages quote names and contents of files, which may hold anything. */
function oneLine(text: string): string {
  const line = visible(
    withoutPasswords(text)
      .slice(0, 2 * MAX_LINE)
      .replace(/\s*[\r\n]+\s*/g, ' '),
  );
  return line.length > MAX_LINE ? `${line.slice(0, MAX_LINE)} …` : line;
}

/** Runs the command line and sets the process's exit code. */
export async function main(args: string[]): Promise<void> {
  const parser = yargs(args)
    .scriptName('attention-bias')
    .usage('$0 <command>\n\nAttention whose scores carry a bias: LiDAR-camera queries, Swin, DETR, ALiBi.')
    .command(runCommand)
    .command(frameCommand)
    .command(demoCommand)
    .command(pipelineCommand)
    .command(smokeCommand)
    .command(reportCommand)
    .command(doctorCommand)
    .command(benchCommand)
    .command(workerCommand)
    .completion('completion', 'print a shell completion script')
    .demandCommand(1, 'expected a command; attention-bias --help lists them')
    .strict()
    .recommendCommands()
    .version(packageVersion())
    .wrap(Math.min(110, process.stdout.columns || 110))
    .locale('en')
    .parserConfiguration({ 'dot-notation': false, 'duplicate-arguments-array': false })
    .exitProcess(false)
    .fail((message, error) => {
      // yargs calls this for its own complaints (a message, or an error of its own kind) and for what a handler throws.
      const thrown = error as Error | undefined;
      if (thrown && thrown.name !== 'YError') throw thrown;
      throw new AttentionBiasError('ERR_VALUE', `${message} (see attention-bias --help)`);
    });
  // A reader that has seen enough, as in `attention-bias doctor | head -1`, is no error.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.stderr.write(
      `attention-bias: ${oneLine(ioError('an output that can be written', 'stdout', error).message)}\n`,
    );
    process.exitCode = exitCode('ERR_IO');
  });
  try {
    await parser.parseAsync();
  } catch (error) {
    if (error instanceof AttentionBiasError) {
      process.stderr.write(`attention-bias: ${oneLine(error.message)}\n`);
      process.exitCode = exitCode(error.code);
    } else {
      const words = error instanceof Error ? (error.stack ?? error.message) : String(error);
      process.stderr.write(`attention-bias: ${withoutPasswords(words)}\n`);
      process.exitCode = 1;
    }
  }
}
