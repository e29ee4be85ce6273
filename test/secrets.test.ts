/** A password that somebody gives the command line is in nothing that it says, whatever else is wrong. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';

import { withoutPasswords } from '../lib/errors.js';
import { connectRedis, disconnectRedis } from '../lib/pipeline/queue/redis.js';
import { hasRedis, redisServer, type RedisServer } from './redis-server.js';
import { errorOf } from './support.js';

const SECRET = 'correct-horse';
const main = join(__dirname, '../dist/cli/main.js');
const folder = mkdtempSync(join(tmpdir(), 'attention-bias-secrets-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const manifest = join(folder, 'jobs.jsonl');
writeFileSync(join(folder, 'job.json'), JSON.stringify({ op: 'bias', shape: [1, 1, 2, 2], bias: [] }));
writeFileSync(manifest, '{"job": "job.json"}\n');

/** All that a command says and writes. */
function everything(args: readonly string[], env: Record<string, string> = {}): string {
  const { stdout, stderr, status } = spawnSync(process.execPath, [main, ...args], {
    encoding: 'utf8',
    env: { ...process.env, ...env },
  });
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  const texts = files.map((entry) => readFileSync(join(entry.parentPath, entry.name), 'latin1'));
  return [stdout, stderr, `exit code ${String(status)}`, ...texts].join('\n');
}

test.each([
  [`redis://bob:${SECRET}@host:6379/2`, 'redis://bob:***@host:6379/2'],
  [`redis://:${SECRET}@host`, 'redis://:***@host'],
  [`rediss://bob:${SECRET}@x@y/z@host`, 'rediss://bob:***@host'],
  [`redis:/bob:${SECRET}@host`, 'redis:/bob:***@host'],
  [`redis://host/?password=${SECRET}&db=1`, 'redis://host/?password=***&db=1'],
  [`redis://host/?db=1&sentinelPassword=${SECRET}`, 'redis://host/?db=1&sentinelPassword=***'],
  [`two: redis://a:${SECRET}@h and redi://b:${SECRET}@i`, 'two: redis://a:***@h and redi://b:***@i'],
  [`redis+tls://bob:${SECRET}@host`, 'redis+tls://bob:***@host'],
  [`redis-sentinel://bob:${SECRET}@host`, 'redis-sentinel://bob:***@host'],
  [`redi://bob:${SECRET}@host`, 'redi://bob:***@host'],
  [`Reids://bob:${SECRET}@host`, 'Reids://bob:***@host'],
  [`redis:bob:${SECRET}@host`, 'redis:bob:***@host'],
  [`redis//bob:${SECRET}@host`, 'redis//bob:***@host'],
  [`redis://${SECRET}@host`, 'redis://***@host'],
  [`tedis://bob:${SECRET}@x@host/a@b`, 'tedis://bob:***@host/a@b'],
  [`"redis://bob:${SECRET}@host"`, '"redis://bob:***@host"'],
  ['file:///data/a@b/x.json', undefined],
  ['file:///data/a@b/c.json and /mnt/x:y@z and https://host/a:b@c', undefined],
  ['root:/data/a@b, redis/a@b.json, node_modules/ioredis@6.0.0/index.js:3:4, git@host:a/b', undefined],
  ['a@b redis://host:6379', undefined],
  ['expected a, b@c or d:e for /some/path but received "x"', undefined],
  ['redis://127.0.0.1:1 is fine', undefined],
])('%s is shown as %s', (text, shown) => {
  expect(withoutPasswords(text)).toBe(shown ?? text);
});

test.each(['redis:/', 'redis://a:', 'a://', 'a://b:', 'redis+a', '?pass', 'a://b:c@', 'redis:@', ' @'])(
  'takes time in proportion to the text, of a million characters of %j',
  (part) => {
    const ms = (length: number): number => {
      const text = part.repeat(length / part.length);
      const begin = performance.now();
      for (const end of ['', '/@']) withoutPasswords(text + end); // an @ at the end, or none
      return performance.now() - begin;
    };
    ms(1e5); // compiled
    expect(ms(1e6)).toBeLessThan(30 * Math.max(ms(1e5), 10));
  },
);

test('a password that a message is cut in has none of it shown', () => {
  const long = `redis://bob:${'x'.repeat(2500)}@host`;
  const said = everything([`${long} ${'y'.repeat(1440)} redis://bob:${SECRET}@host`]);
  expect(said).toContain('redis://bob:***@host');
  expect(said).not.toContain(SECRET.slice(0, 4));
});

const url = `redis://bob:${SECRET}@127.0.0.1:1`;

test.each<[string, string[], string]>([
  ['a server that does not answer', ['worker', '--redis', url], 'redis://bob:***@127.0.0.1:1'],
  ['as a parameter', ['worker', '--redis', `redis://127.0.0.1:1/?password=${SECRET}`], 'password=***'],
  ['of a run', ['pipeline', manifest, '--out', join(folder, 'out'), '--redis', url], 'redis://bob:***@'],
  ['with a slip in the URL', ['worker', '--redis', `redi://bob:${SECRET}@host`], 'for --redis but received'],
  ['without the option before it', ['worker', '--redis', 'redis://127.0.0.1:1', url], 'Unknown argument'],
  ['without a command', [url], 'Unknown argument'],
  ['as an unknown option', ['worker', '--redis', url, `--queue-url=${url}`], 'Unknown argument'],
])('%s: no password is said', (_, args, words) => {
  const said = everything(args);
  expect(said).toContain(words);
  expect(said).not.toContain(SECRET);
});

(hasRedis ? describe : describe.skip)('with a redis-server that wants a password', () => {
  let redis: RedisServer;
  let host: string;

  beforeAll(async () => {
    redis = await redisServer();
    host = redis.url.slice('redis://'.length);
    const admin = await connectRedis(redis.url);
    await admin.config('SET', 'requirepass', SECRET);
    await disconnectRedis(admin);
  });
  afterAll(() => redis.remove());

  test('a wrong one is in no message, nor in what caused it', async () => {
    for (const wrong of [`redis://:${SECRET}1@${host}`, `redis://bob:${SECRET}1@${host}`]) {
      const error = await errorOf(() => connectRedis(wrong));
      expect(error.message).toContain('WRONGPASS');
      expect(inspect(error, { depth: 10, showHidden: true })).not.toContain(SECRET);
    }
  });

  test('the right one is in no log, status or file of a run', () => {
    const out = join(folder, 'run');
    const right = `redis://:${SECRET}@${host}`;
    const levels = ['--log-level', 'trace'];
    const enqueued = everything([
      'pipeline',
      manifest,
      '--out',
      out,
      '--redis',
      right,
      '--detach',
      ...levels,
    ]);
    const worked = everything(['worker', '--redis', right, '--once', ...levels, '--device', 'cpu']);
    const detached = ['pipeline', manifest, '--out', out, '--redis', redis.url, '--detach', '--json'];
    const fromEnvironment = everything(detached, { ATTENTION_BIAS_REDIS_PASSWORD: SECRET });
    for (const said of [enqueued, worked, fromEnvironment]) {
      expect(said).toContain('exit code 0');
      expect(said).not.toContain(SECRET);
    }
    expect(worked).toContain('shard done');
  });
});
