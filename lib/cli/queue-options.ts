/** What the commands that meet on a queue share. */
import type { Options } from 'yargs';

import { DEFAULT_QUEUE } from '../pipeline/queue/bullmq.js';

export const queueOption = {
  type: 'string',
  default: DEFAULT_QUEUE,
  requiresArg: true,
  describe: 'name of the queue on that server',
} as const satisfies Options;

export const redisDescription =
  'redis://[user:password@]host[:port][/database] of the queue, rediss:// with TLS; a password may be in ATTENTION_BIAS_REDIS_PASSWORD';
