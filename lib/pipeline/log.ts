/**
 * The log of commands that run for long: pino's JSON lines on stderr, or words for a person where that is a terminal.
 * Every line is written before the call returns, so that none is lost when the process ends, however it ends.
 */
import { mkdirSync, openSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, join } from 'node:path';
import { destination, pino, type DestinationStream, type Level, type Logger } from 'pino';
import type { Options } from 'yargs';

import { ioError } from '../formats/io.js';

export type LogLevel = Level | 'silent';

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const;

export const logOptions = {
  'log-level': {
    choices: logLevels,
    requiresArg: true,
    describe: 'least level of lines on stderr: default info, on a terminal warn',
  },
} as const satisfies Record<string, Options>;

export interface LogOptions {
  /** the least level that is written to stderr; default `info`, or `warn` on a terminal, where a bar tells the rest */
  level?: LogLevel | undefined;
  /** a file that takes every line of level `info` and above as JSON, whatever `level` says; made with its folder, appended to */
  file?: string | undefined;
}

const NAMES: Readonly<Record<number, string>> = pino.levels.labels;

/** A line of pino's in words: `12:01:07 warn  item failed  key=0001 code=ERR_IO`. */
export function readable(line: string): string {
  const { level, time, msg, ...rest } = JSON.parse(line) as Record<string, unknown>;
  const fields = Object.entries(rest).map(([name, value]) => {
    const text = typeof value === 'string' && /^[^\s"\p{C}]+$/u.test(value) ? value : JSON.stringify(value);
    return `${name}=${text}`;
  });
  const at = new Date(Number(time)).toTimeString().slice(0, 8);
  const name = NAMES[Number(level)] ?? String(level);
  const words = typeof msg === 'string' ? msg : '';
  return `${at} ${name.padEnd(5)} ${[words, ...fields].filter((part) => part !== '').join('  ')}\n`;
}

function terminal(): DestinationStream {
  return { write: (line) => process.stderr.write(readable(line)) };
}

/**
 * Opens the log of this process. Lines hold `level` (pino's numbers), `time` (milliseconds since 1970), `msg` and what the
 * caller adds.
 *
 * @throws AttentionBiasError ERR_IO for a file that can't be opened. One that can't be written to later, on a full disk, is
 *   given up with a line on stderr: a run does not end for its log.
 */
export function openLog({ level, file }: LogOptions = {}): Logger {
  const { isTTY } = process.stderr;
  const least = level ?? (isTTY ? 'warn' : 'info');
  const stderr = isTTY ? terminal() : destination({ fd: 2, sync: true });
  const options = { base: null, level: least };
  if (file === undefined) return pino(options, stderr);
  const onStderr = least === 'silent' ? [] : [{ level: least, stream: stderr }];
  const both = pino.multistream([...onStderr, { level: 'info' as const, stream: openFile(file, stderr) }]);
  const levels = pino.levels.values;
  const first = (levels[least] ?? Infinity) < levels.info! ? least : 'info';
  return pino({ ...options, level: first }, both);
}

function openFile(path: string, stderr: DestinationStream): DestinationStream {
  let fd: number;
  try {
    mkdirSync(dirname(path), { recursive: true });
    fd = openSync(path, 'a');
  } catch (cause) {
    throw ioError('a log file that can be written', path, cause);
  }
  const stream = destination({ fd, sync: true });
  let inUse = true;
  stream.on('error', (error: Error) => {
    if (!inUse) return; // it tries what it still holds once more
    inUse = false;
    stream.write = () => false;
    pino({ base: null }, stderr).error({ file: path, error: error.message }, 'the log file is given up');
  });
  return stream;
}

/** Where this process logs a run into `folder`: one file a process, so that machines that share the folder don't meet. */
export function logFile(folder: string, start = new Date()): string {
  const host = hostname().replace(/[^A-Za-z0-9.-]/g, '_') || 'host';
  const at = start
    .toISOString()
    .replace(/[-:]/g, '')
    .replace(/\.\d+Z$/, 'Z');
  return join(folder, 'logs', `${host}-${process.pid}-${at}.jsonl`);
}
