/** The log of long commands, as processes that end on a sudden write it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { logFile, openLog, readable, type LogOptions } from '../lib/pipeline/log.js';
import { expectError } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'log-'));
afterAll(() => rmSync(folder, { recursive: true }));

const parsed = (text: string): Record<string, unknown>[] =>
  text.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line) as Record<string, unknown>]));

/** Runs `body` in a process of its own, with `log` open. */
function child(options: LogOptions, body: string) {
  const log = JSON.stringify(join(__dirname, '../dist/pipeline/log.js'));
  const program = `const log = require(${log}).openLog(${JSON.stringify(options)}); ${body}`;
  return spawnSync(process.execPath, ['-e', program], { encoding: 'utf8' });
}

test.each(['process.exit(3)', 'process.kill(process.pid, "SIGKILL")'])('no line is lost by %s', (end) => {
  const file = join(folder, end.length.toString(), 'logs/a.jsonl');
  const { stderr } = child({ file }, `for (let i = 0; i < 5000; ++i) log.info({ i }, 'item'); ${end};`);
  const inFile = parsed(readFileSync(file, 'utf8'));
  expect(inFile.map(({ i }) => i)).toEqual(Array.from({ length: 5000 }, (_, i) => i));
  expect(parsed(stderr)).toEqual(inFile);
  expect(inFile[0]).toEqual({ level: 30, time: expect.any(Number) as number, msg: 'item', i: 0 });
});

test('the level is that of stderr; the file has info and above', () => {
  const file = join(folder, 'levels.jsonl');
  const all = `for (const level of ['debug', 'info', 'warn', 'error']) log[level](level)`;
  const messages = (text: string): unknown[] => parsed(text).map(({ msg }) => msg);
  const of = (level: LogOptions['level']): unknown[] => messages(child({ level, file }, all).stderr);
  expect(of('debug')).toEqual(['debug', 'info', 'warn', 'error']);
  expect(messages(readFileSync(file, 'utf8'))).toEqual(['debug', 'info', 'warn', 'error'].slice(1));
  rmSync(file);
  expect(of('error')).toEqual(['error']);
  expect(messages(readFileSync(file, 'utf8'))).toEqual(['info', 'warn', 'error']);
  rmSync(file);
  expect(of('silent')).toEqual([]);
  expect(messages(readFileSync(file, 'utf8'))).toEqual(['info', 'warn', 'error']);
  expect(messages(child({}, all).stderr)).toEqual(['info', 'warn', 'error']);
  expect(messages(child({ level: 'silent' }, all).stderr)).toEqual([]);
});

test('a full disk costs the log, not the run', () => {
  const { status, stderr, stdout } = child(
    { file: '/dev/full', level: 'warn' },
    `log.info('lost'); setImmediate(() => { log.warn('on stderr'); console.log('done'); })`,
  );
  expect({ status, stdout }).toEqual({ status: 0, stdout: 'done\n' });
  expect(parsed(stderr).map(({ msg }) => msg)).toEqual(['the log file is given up', 'on stderr']);
});

test('a file that cannot be opened is said', async () => {
  await expectError(() => openLog({ file: '/dev/null/logs/a.jsonl' }), 'ERR_IO', 'a log file', 'ENOTDIR');
});

test('on a terminal a line is words', () => {
  const time = new Date(2026, 10, 29, 12, 1, 7).getTime();
  const fields = { key: '0001', ok: false, error: { code: 'ERR_IO', message: 'no\u001b[31m' } };
  expect(readable(JSON.stringify({ level: 40, time, msg: 'item failed', ...fields }))).toBe(
    '12:01:07 warn  item failed  key=0001  ok=false  error={"code":"ERR_IO","message":"no\\u001b[31m"}\n',
  );
});

test('a process has a file of its own in the logs of a run', () => {
  const at = new Date(Date.UTC(2026, 10, 29, 12, 1, 7, 9));
  expect(logFile('out', at)).toMatch(/^out\/logs\/[A-Za-z0-9._-]+-\d+-20261129T120107Z\.jsonl$/);
  expect(logFile('out', at)).toContain(`-${process.pid}-`);
});
