/** The optional peers that speak to Redis, and the connection to it. */
import { createRequire } from 'node:module';
import type { Redis, RedisOptions } from 'ioredis';

import { AttentionBiasError, expected, withoutPasswords } from '../../errors.js';

const load = createRequire(__filename);

/** ERR_VALUE with what to install, where a peer is not there. */
function peer(name: string): unknown {
  try {
    return load(name) as unknown;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw cause;
    throw new AttentionBiasError(
      'ERR_VALUE',
      `a queue on Redis needs the package ${name}. Run: npm install bullmq ioredis`,
      { cause },
    );
  }
}

export const loadBullmq = (): typeof import('bullmq') => peer('bullmq') as typeof import('bullmq');
const loadIoredis = (): typeof import('ioredis') => peer('ioredis') as typeof import('ioredis');

/** Milliseconds before the nth attempt to reconnect: 50, 100, … 5,000. */
const reconnectDelay = (attempt: number): number => Math.min(50 * 2 ** (attempt - 1), 5000);

export interface ConnectionEvents {
  /** the server is gone; the connection is tried again until it is back */
  readonly onLost?: ((error: Error | undefined) => void) | undefined;
  readonly onBack?: (() => void) | undefined;
}

/**
 * Connects to a Redis server. Once connected, commands wait through its restarts.
 *
 * @param url redis://[user:password@]host[:port][/database], or rediss:// for TLS. A password that is not in it is taken from
 *   ATTENTION_BIAS_REDIS_PASSWORD, which no list of processes shows.
 * @throws AttentionBiasError ERR_VALUE for another URL, ERR_IO when no server answers
 */
export async function connectRedis(url: string, events: ConnectionEvents = {}): Promise<Redis> {
  const parsed = URL.canParse(url) ? new URL(url) : undefined;
  if (!parsed || !['redis:', 'rediss:'].includes(parsed.protocol) || parsed.hostname === '') {
    // With a slip in it, it may hold a password all the same.
    const received = url.includes('@') ? `…@${url.slice(url.lastIndexOf('@') + 1)}` : url;
    throw expected('ERR_VALUE', 'redis://host:port or rediss://host:port', '--redis', received);
  }
  const { Redis } = loadIoredis();
  let connected = false;
  const password = parsed.password === '' ? process.env.ATTENTION_BIAS_REDIS_PASSWORD : undefined;
  const options: RedisOptions = {
    lazyConnect: true,
    maxRetriesPerRequest: null, // as BullMQ's workers need it: a command waits until the server is back
    retryStrategy: (attempt) => (connected ? reconnectDelay(attempt) : null),
    ...(password === undefined ? {} : { password }),
  };
  const redis = new Redis(url, options);
  let lastError: Error | undefined;
  redis.on('error', (error) => (lastError = error));
  try {
    await redis.connect();
    await redis.ping(); // says what connecting does not: that a password is missing
  } catch (cause) {
    redis.disconnect();
    const words = (lastError ?? (cause as Error)).message;
    const error = expected('ERR_IO', 'a Redis server that answers', withoutPasswords(parsed.href), words);
    error.cause = cause;
    throw error;
  }
  connected = true;
  let lost = false;
  redis.on('close', () => {
    if (!lost) events.onLost?.(lastError);
    lost = true;
  });
  redis.on('ready', () => {
    lastError = undefined;
    if (lost) events.onBack?.();
    lost = false;
  });
  return redis;
}

/** Ends the connection; what still waits for a server that is gone is given up. */
export async function disconnectRedis(redis: Redis): Promise<void> {
  if (redis.status === 'ready') await redis.quit().catch(() => undefined);
  else redis.disconnect();
}
