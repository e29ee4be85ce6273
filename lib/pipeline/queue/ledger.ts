/**
 * What Redis keeps of runs beside the jobs of their shards: which shards are finished, failed items, the last shards' times.
 * Everything here can be said twice without effect, as a shard may be finished twice.
 */
import type { Redis } from 'ioredis';

import { RATE_WINDOW, type Computed, type QueuedRun, type ShardOutcome } from './queue.js';

/** Runs that nobody has touched for so long are forgotten. */
const KEPT_SECONDS = 30 * 24 * 3600;

// The clock is Redis's: machines' own differ.
const FINISH = `
local first = redis.call('SETBIT', KEYS[1], ARGV[1], 1) == 0
if tonumber(ARGV[3]) > 0 then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
else redis.call('HDEL', KEYS[2], ARGV[1]) end
if first and ARGV[5] == '0' then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('LPUSH', KEYS[3], ARGV[2] .. ' ' .. ARGV[4] .. ' ' .. string.format('%.0f', now))
  redis.call('LTRIM', KEYS[3], 0, ${RATE_WINDOW - 1})
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ${KEPT_SECONDS}) end
`;

export interface LedgerEntry {
  readonly run: QueuedRun;
  /** Unix milliseconds, Redis's clock */
  readonly enqueued: number;
  /** one bit a shard, the first in the highest bit of byte 0 */
  readonly bits: Buffer;
  readonly done: number;
  readonly failedItems: number;
  readonly recent: readonly Computed[];
}

export const hasBit = (bits: Buffer, index: number): boolean =>
  ((bits[index >> 3] ?? 0) & (0x80 >> (index & 7))) !== 0;

export interface Ledger {
  add(run: QueuedRun): Promise<void>;
  finish(id: string, shard: number, outcome: ShardOutcome): Promise<void>;
  /** Forgets what is finished. */
  restart(id: string): Promise<void>;
  /** Forgets that shards with failed items are finished. */
  reopen(id: string): Promise<void>;
  get(id: string): Promise<LedgerEntry | undefined>;
  /** ids in the order of their enqueueing */
  list(): Promise<string[]>;
  /** Unix milliseconds, Redis's clock */
  now(): Promise<number>;
}

// ioredis declares numbers and gives text.
const milliseconds = ([seconds, microseconds]: readonly unknown[]): number =>
  Number(seconds) * 1000 + Math.floor(Number(microseconds) / 1000);

function parseComputed(line: string): Computed {
  const [items = 0, ms = 0, end = 0] = line.split(' ').map(Number);
  return { items, ms, end };
}

export function openLedger(redis: Redis, queue: string): Ledger {
  const runs = `attention-bias:${queue}:runs`;
  const key = (id: string, part: string): string => `attention-bias:${queue}:${id}:${part}`;
  const parts = (id: string): [string, string, string] => [
    key(id, 'done'),
    key(id, 'failed-items'),
    key(id, 'recent'),
  ];
  const now = async (): Promise<number> => milliseconds(await redis.time());

  return {
    now,
    async add(run) {
      const at = await now();
      await redis
        .multi()
        .zadd(runs, 'NX', at, run.id)
        .set(key(run.id, 'run'), JSON.stringify(run), 'EX', KEPT_SECONDS)
        .exec();
    },
    async finish(id, shard, { items, failed, ms, skipped }) {
      const numbers = [shard, items, failed, Math.round(ms), skipped ? 1 : 0];
      await redis.eval(FINISH, 4, ...parts(id), key(id, 'run'), ...numbers);
    },
    async restart(id) {
      await redis.del(...parts(id));
    },
    async reopen(id) {
      const [done, failedItems] = parts(id);
      const reopened = redis.multi();
      for (const shard of await redis.hkeys(failedItems)) {
        reopened.setbit(done, shard, 0).hdel(failedItems, shard);
      }
      await reopened.exec();
    },
    async get(id) {
      const [done, failedItems, recent] = parts(id);
      const [json, bits, count, failed, lines, enqueued] = await Promise.all([
        redis.get(key(id, 'run')),
        redis.getBuffer(done),
        redis.bitcount(done),
        redis.hvals(failedItems),
        redis.lrange(recent, 0, -1),
        redis.zscore(runs, id),
      ]);
      if (json === null) {
        await redis.zrem(runs, id);
        return undefined;
      }
      return {
        run: JSON.parse(json) as QueuedRun,
        enqueued: Number(enqueued),
        bits: bits ?? Buffer.alloc(0),
        done: count,
        failedItems: failed.reduce((sum, n) => sum + Number(n), 0),
        recent: lines.map(parseComputed),
      };
    },
    list: () => redis.zrange(runs, 0, '-1'),
  };
}
