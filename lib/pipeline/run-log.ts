/** The lines that a process writes of a run into OUT/logs: one an item and one a shard, with their times. */
import type { Logger } from 'pino';

import type { ItemOutcome } from './items.js';
import { logFile, openLog, type LogLevel } from './log.js';
import type { ShardResult } from './run.js';

export interface RunLog {
  /** the whole log, for other lines */
  readonly logger: Logger;
  item(shard: number, outcome: ItemOutcome): void;
  shard(result: ShardResult): void;
}

/**
 * Opens the log of a run, in a file of this process's own.
 *
 * @param level the least level of the lines on stderr
 * @throws AttentionBiasError ERR_IO where the file can't be opened
 */
export function openRunLog(out: string, level: LogLevel | undefined): RunLog {
  const logger = openLog({ level, file: logFile(out) });
  return {
    logger,
    item(shard, outcome) {
      const { key, index } = outcome.item;
      const line = { key, index, shard, ok: outcome.ok, ms: outcome.ms };
      if (outcome.ok) {
        logger.info(line, 'item');
      } else {
        const { code, message } = outcome.error;
        logger.warn({ ...line, stage: outcome.stage, error: { code, message } }, 'item');
      }
    },
    shard({ index, items, failed, skipped, ms }) {
      logger.info({ shard: index, items, failed, skipped, ms }, 'shard');
    },
  };
}
