/**
 * Queues of shards: in process, and on a real Redis with workers that are killed, stopped, held and cut off. Their shards are
 * files of a few known bytes (process/queue-worker.cjs).
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { AttentionBiasError } from '../lib/errors.js';
import { redisQueue } from '../lib/pipeline/queue/bullmq.js';
import { embeddedQueue } from '../lib/pipeline/queue/embedded.js';
import { followRun } from '../lib/pipeline/queue/follow.js';
import {
  rate,
  runId,
  type EnqueueOptions,
  type QueuedRun,
  type RunStatus,
  type ShardQueue,
  type ShardTask,
  type WorkEvent,
} from '../lib/pipeline/queue/queue.js';
import { hasRedis, redisServer, type RedisServer } from './redis-server.js';
import { errorOf, expectError } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'attention-bias-queue-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let runs = 0;
function newRun(shards: number, options: Record<string, unknown> = {}): QueuedRun {
  const out = join(folder, `run-${++runs}`);
  mkdirSync(out);
  // Shards of two items, but the last, of one.
  return {
    id: runId('key', out),
    manifest: join(folder, 'manifest.jsonl'),
    out,
    items: 2 * shards - 1,
    shardSize: 2,
    shards,
    version: '1.0.0',
    options: { out, ...options },
  };
}

const numbers = ({ shards, items }: RunStatus) => ({
  ...shards,
  items: items.done,
  failedItems: items.failed,
});
const allDone = (shards: number, failedItems = 0) => ({
  ...{ total: shards, waiting: 0, active: 0, retrying: 0, done: shards, failed: 0 },
  items: 2 * shards - 1,
  failedItems,
});

test('the rate is that of the last shards, and falls while none ends', () => {
  const recent = [1000, 2000, 3000].map((end) => ({ items: 10, ms: 1000, end }));
  expect(rate(recent, 3000)).toBe(10);
  expect(rate(recent, 6000)).toBe(5);
  expect(rate([], 6000)).toBeNull();
});

describe('in process', () => {
  const outcome = { items: 2, failed: 0, skipped: false, ms: 1 };
  const quick: EnqueueOptions = { attempts: 3, backoffMs: 1 };

  test('shards are done in order, as many at a time as asked; a second enqueueing adds nothing', async () => {
    const queue = embeddedQueue();
    const run = newRun(7);
    expect(await queue.enqueue(run)).toBe(7);
    expect(await queue.enqueue(run)).toBe(7);
    const begun: number[] = [];
    let running = 0;
    let most = 0;
    const task = async ({ shard }: ShardTask) => {
      begun.push(shard);
      most = Math.max(most, ++running);
      await new Promise(setImmediate);
      --running;
      return outcome;
    };
    await queue.work(task, { drain: true, concurrency: 3 });
    expect({ begun, most }).toEqual({ begun: [0, 1, 2, 3, 4, 5, 6], most: 3 });
    expect(numbers((await queue.status(run.id)).runs[0]!)).toEqual(allDone(7));
    // A finished run is looked through once more.
    expect(await queue.enqueue(run)).toBe(7);
    await queue.work(task, { drain: true });
    expect(begun).toHaveLength(14);
  });

  test('a shard that throws is tried again, then failed, and the others are done', async () => {
    const queue = embeddedQueue();
    const run = newRun(4);
    await queue.enqueue(run, quick);
    const events: WorkEvent[] = [];
    const task = ({ shard, attempt }: ShardTask) =>
      shard === 1 || (shard === 2 && attempt === 1)
        ? Promise.reject(new Error(`no ${shard}`))
        : Promise.resolve(outcome);
    await queue.work(task, { drain: true, onEvent: (event) => events.push(event) });
    const failed = events.flatMap((e) =>
      e.type === 'failed' ? [[e.task.shard, e.task.attempt, e.last]] : [],
    );
    expect(failed.sort()).toEqual([
      [1, 1, false],
      [1, 2, false],
      [1, 3, true],
      [2, 1, false],
    ]);
    const [status] = (await queue.status()).runs;
    expect(status).toMatchObject({
      shards: { done: 3, failed: 1, waiting: 0 },
      failures: [{ shard: 1, attempts: 3, message: 'no 1' }],
      secondsLeft: 0,
    });
    // Enqueued again, what failed is tried again.
    expect(await queue.enqueue(run, quick)).toBe(1);
    await queue.work(() => Promise.resolve(outcome), { drain: true });
    expect(numbers((await queue.status(run.id)).runs[0]!)).toEqual(allDone(4));
  });

  test('stop finishes the shard under way, abandon gives it back', async () => {
    const queue = embeddedQueue();
    const run = newRun(3);
    await queue.enqueue(run);
    const stop = new AbortController();
    const stopped = (): Promise<typeof outcome> => {
      stop.abort();
      return new Promise((resolve) => setImmediate(() => resolve(outcome)));
    };
    await queue.work(stopped, { stop: stop.signal });
    expect((await queue.status()).runs[0]!.shards).toMatchObject({ done: 1, waiting: 2 });
    const abandon = new AbortController();
    const given: number[] = [];
    const work = queue.work(
      ({ shard }, { signal }) => {
        given.push(shard);
        return new Promise((_, reject) => {
          signal.addEventListener('abort', () => reject(new Error('aborted')));
          abandon.abort();
        });
      },
      { abandon: abandon.signal },
    );
    await expectError(() => work, 'ERR_ABORTED', 'abandoned');
    expect((await queue.status()).runs[0]!.shards).toMatchObject({ done: 1, waiting: 2, active: 0 });
    await queue.work(
      ({ shard }) => {
        given.push(shard);
        return Promise.resolve(outcome);
      },
      { drain: true },
    );
    expect(given).toEqual([1, 1, 2]);
  });

  test('a machine whose device is gone takes no further shard', async () => {
    const queue = embeddedQueue();
    await queue.enqueue(newRun(3), quick);
    const broken = () => Promise.reject(new AttentionBiasError('ERR_DEVICE', 'no device'));
    await expectError(() => queue.work(broken, { drain: true }), 'ERR_DEVICE', 'no device');
    await queue.close();
  });
});

test.each([
  ['http://localhost', 'ERR_VALUE', 'redis://host:port'],
  ['redis://:secret@127.0.0.1:1', 'ERR_IO', 'redis://:***@127.0.0.1:1'],
  ['redi://user:secret@127.0.0.1:1', 'ERR_VALUE', 'received …@127.0.0.1:1'],
  ['redis:/user:secret@127.0.0.1', 'ERR_VALUE', 'received …@127.0.0.1'],
])('%s is refused, and its password not shown', async (url, code, words) => {
  await expectError(() => redisQueue({ url }), code as 'ERR_VALUE', words);
  const { message } = await errorOf(() => redisQueue({ url }));
  expect(message).not.toContain('secret');
});

(hasRedis ? describe : describe.skip)('on Redis (redis-server)', () => {
  const LOCK_MS = 400;
  const quick: EnqueueOptions = { attempts: 3, backoffMs: 20 };
  let redis: RedisServer;
  let queue: ShardQueue;
  const children = new Set<ChildProcess>();

  beforeAll(async () => {
    redis = await redisServer();
    queue = await redisQueue({ url: redis.url });
  });
  afterEach(() => {
    for (const child of children) child.kill('SIGKILL');
    children.clear();
  });
  afterAll(async () => {
    await queue.close();
    await redis.remove();
  });

  type Said = Record<string, unknown> & { type: string; task?: ShardTask };
  interface Worker {
    readonly said: Said[];
    /** the first message, said or yet to come, that fits */
    heard(type: string, shard?: number): Promise<Said>;
    send(message: string): void;
    kill(signal: NodeJS.Signals): void;
    exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  }
  function worker(mode?: 'drain'): Worker {
    const program = join(__dirname, 'process/queue-worker.cjs');
    const child = fork(program, [redis.url, String(LOCK_MS), mode ?? 'wait']);
    children.add(child);
    const said: Said[] = [];
    child.on('message', (message) => said.push(message as Said));
    const exited = once(child, 'exit').then(() => ({ code: child.exitCode, signal: child.signalCode }));
    return {
      said,
      exited,
      async heard(type, shard) {
        const fits = (m: Said) =>
          m.type === type && (shard === undefined || (m.task?.shard ?? m.shard) === shard);
        for (;;) {
          const found = said.find(fits);
          if (found) return found;
          await once(child, 'message');
        }
      },
      send: (message) => child.send(message),
      kill: (signal) => child.kill(signal),
    };
  }

  /** What an undisturbed run writes: each shard once, with its bytes. */
  function expectFiles(run: QueuedRun, except: number[] = []): void {
    const files = Object.fromEntries(
      readdirSync(run.out).map((name) => [name, readFileSync(join(run.out, name), 'utf8')]),
    );
    const shards = Array.from({ length: run.shards }, (_, i) => i).filter((i) => !except.includes(i));
    expect(files).toEqual(Object.fromEntries(shards.map((i) => [`${i}.txt`, `shard ${i}`])));
  }

  const follow = (run: QueuedRun, onRefill?: () => void): Promise<RunStatus> =>
    followRun(queue, run, { intervalMs: 50, onRefill, ...quick });

  test('several workers do a run; enqueued twice, nothing is done twice', async () => {
    const run = newRun(40);
    expect(await queue.enqueue(run, quick)).toBe(40);
    expect(await queue.enqueue(run, quick)).toBe(40);
    expect((await queue.status(run.id)).runs[0]).toMatchObject({
      ...{ id: run.id, out: run.out, manifest: run.manifest, itemsPerSecond: null, secondsLeft: null },
      shards: { total: 40, waiting: 40, active: 0, retrying: 0, done: 0, failed: 0 },
      items: { total: 79, done: 0, failed: 0 },
    });
    const workers = [worker('drain'), worker('drain')];
    const status = await follow(run);
    expect(await Promise.all(workers.map((w) => w.exited))).toEqual([
      { code: 0, signal: null },
      { code: 0, signal: null },
    ]);
    expect(numbers(status)).toEqual(allDone(40, 1));
    expect(status.itemsPerSecond).toBeGreaterThan(0);
    const done = workers.flatMap(({ said }) => said.filter(({ type }) => type === 'done'));
    expect(done.map(({ task }) => task!.shard).sort((a, b) => a - b)).toEqual(
      Array.from({ length: 40 }, (_, i) => i),
    );
    expectFiles(run);
    // Once more: workers look at every shard and compute none.
    expect(await queue.enqueue(run, quick)).toBe(40);
    const again = worker('drain');
    expect(numbers(await follow(run))).toMatchObject({ done: 40 });
    await again.exited;
    expect(
      again.said.filter(({ outcome }) => (outcome as { skipped: boolean } | undefined)?.skipped),
    ).toHaveLength(40);
  });

  test('kill -9 in mid-shard: another worker gets it', async () => {
    const run = newRun(5, { hold: [2] });
    const victim = worker();
    await queue.enqueue(run, quick);
    await victim.heard('begin', 2);
    expect((await queue.status(run.id)).runs[0]!.shards).toMatchObject({ active: 1, done: 2, waiting: 2 });
    victim.kill('SIGKILL');
    await victim.exited;
    const heir = worker('drain');
    const status = follow(run);
    await heir.heard('begin', 2);
    heir.send('go');
    expect(numbers(await status)).toEqual(allDone(5, 1));
    await heir.exited;
    expect(heir.said.map(({ type }) => type)).toContain('redelivered');
    expectFiles(run);
  });

  test('Redis is restarted in mid-run', async () => {
    const run = newRun(6, { hold: [1, 4] });
    await queue.enqueue(run, quick);
    const one = worker('drain');
    await one.heard('begin', 1);
    await redis.stop();
    await one.heard('lost');
    one.send('go'); // the shard's file is written while Redis is away
    await redis.start();
    await one.heard('back');
    const status = follow(run);
    await one.heard('begin', 4);
    one.send('go');
    expect(numbers(await status)).toEqual(allDone(6, 1));
    expect(await one.exited).toEqual({ code: 0, signal: null });
    expectFiles(run);
  });

  test('a Redis that comes back empty is filled again by who waits for the run', async () => {
    const run = newRun(6, { hold: [3] });
    await queue.enqueue(run, quick);
    const one = worker();
    await one.heard('begin', 3);
    await redis.stop();
    redis.wipe();
    await redis.start();
    let refills = 0;
    const status = follow(run, () => ++refills);
    await one.heard('back');
    one.send('go');
    expect(numbers(await status)).toEqual(allDone(6, 1));
    expect(refills).toBeGreaterThan(0);
    expectFiles(run);
  });

  test('two workers on one shard: one cut off for longer than its lock, one that took over', async () => {
    const run = newRun(3, { hold: [1] });
    await queue.enqueue(run, quick);
    const first = worker();
    await first.heard('begin', 1);
    first.kill('SIGSTOP');
    const second = worker();
    await second.heard('begin', 1);
    first.kill('SIGCONT');
    // Both have it now, and both finish it.
    first.send('go');
    second.send('go');
    await Promise.all([first.heard('done', 1), second.heard('done', 1)]);
    expect(numbers(await follow(run))).toEqual(allDone(3));
    expectFiles(run);
    for (const each of [first, second]) each.kill('SIGTERM');
    expect(await Promise.all([first.exited, second.exited])).toEqual([
      { code: 0, signal: null },
      { code: 0, signal: null },
    ]);
  });

  test('a shard that throws every time is tried three times, then shown; the others are done', async () => {
    const run = newRun(5, { fail: [2] });
    await queue.enqueue(run, quick);
    const one = worker('drain');
    const status = await follow(run);
    await one.exited;
    expect(status).toMatchObject({
      shards: { total: 5, waiting: 0, active: 0, retrying: 0, done: 4, failed: 1 },
      secondsLeft: 0,
      failures: [{ shard: 2, attempts: 3, message: 'shard 2 fails on purpose' }],
    });
    const failed = one.said.filter(({ type }) => type === 'failed');
    expect(failed.map(({ task, last }) => [task!.shard, task!.attempt, last])).toEqual([
      [2, 1, false],
      [2, 2, false],
      [2, 3, true],
    ]);
    expectFiles(run, [2]);
    // Enqueued again, it alone is tried again.
    expect(await queue.enqueue(run, quick)).toBe(1);
    expect((await queue.status(run.id)).runs[0]!.shards).toMatchObject({ waiting: 1, done: 4, failed: 0 });
    const other = worker('drain');
    await other.exited;
    expect(other.said.filter(({ type }) => type === 'begin').map(({ task }) => task!.attempt)).toEqual([
      1, 2, 3,
    ]);
  });

  test('SIGTERM: the shard under way is finished, and no other begun', async () => {
    const run = newRun(5, { hold: [1] });
    await queue.enqueue(run, quick);
    const one = worker();
    await one.heard('begin', 1);
    one.kill('SIGTERM');
    one.send('go');
    expect(await one.exited).toEqual({ code: 0, signal: null });
    expect((await queue.status(run.id)).runs[0]!.shards).toMatchObject({ done: 2, waiting: 3, active: 0 });
    const rest = worker('drain');
    expect(numbers(await follow(run))).toEqual(allDone(5, 1));
    await rest.exited;
    expectFiles(run);
  });

  test('a second SIGTERM: the shard under way goes back at once', async () => {
    const run = newRun(3, { hold: [0] });
    await queue.enqueue(run, quick);
    const one = worker();
    await one.heard('begin', 0);
    one.kill('SIGTERM');
    await one.heard('stopping'); // signals that come together are one
    one.kill('SIGTERM');
    expect(await one.heard('ended')).toMatchObject({ code: 'ERR_ABORTED' });
    await one.exited;
    expect((await queue.status(run.id)).runs[0]!.shards).toMatchObject({ done: 0, waiting: 3, active: 0 });
    const rest = worker('drain');
    // It is the next to be taken, and no attempt was counted.
    expect(await rest.heard('begin')).toMatchObject({ task: { shard: 0, attempt: 1 } });
    rest.send('go');
    expect(numbers(await follow(run))).toEqual(allDone(3));
    await rest.exited;
    expectFiles(run);
  });
});
