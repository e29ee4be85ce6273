// A worker whose shards are files of a few known bytes, and which its parent drives by messages. Arguments: the Redis URL,
// the milliseconds of a lock, and "drain" to end with the queue. Run options: out, and lists of shards: hold (begun, they
// wait for the message "go"), fail (they throw).
'use strict';
const { existsSync } = require('node:fs');
const { join } = require('node:path');
const { writeAtomically } = require('../../dist/formats/atomic.js');
const { redisQueue } = require('../../dist/pipeline/queue/bullmq.js');

const say = (message) => process.connected && process.send(message);

async function runTask({ run, shard }, { signal }) {
  const { out, hold = [], fail = [] } = run.options;
  const file = join(out, `${shard}.txt`);
  if (existsSync(file)) return { items: 2, failed: 0, skipped: true, ms: 1 };
  if (fail.includes(shard)) throw new Error(`shard ${shard} fails on purpose`);
  if (hold.includes(shard)) {
    await new Promise((resolve, reject) => {
      process.on('message', (message) => message === 'go' && resolve());
      signal.addEventListener('abort', () => reject(signal.reason));
    });
  }
  await writeAtomically(file, [Buffer.from(`shard ${shard}`)]);
  return { items: 2, failed: shard === 3 ? 1 : 0, skipped: false, ms: 1 };
}

async function main() {
  const [url, lockMs, mode] = process.argv.slice(2);
  const queue = await redisQueue({
    url,
    lockMs: Number(lockMs),
    onLost: () => say({ type: 'lost' }),
    onBack: () => say({ type: 'back' }),
  });
  const stop = new AbortController();
  const abandon = new AbortController();
  process.on('SIGTERM', () => (stop.signal.aborted ? abandon : stop).abort(new Error('SIGTERM')));
  stop.signal.addEventListener('abort', () => say({ type: 'stopping' }));
  try {
    const onEvent = (event) => say({ ...event, ...(event.error && { error: event.error.message }) });
    await queue.work(runTask, {
      drain: mode === 'drain',
      stop: stop.signal,
      abandon: abandon.signal,
      onEvent,
    });
  } catch (error) {
    say({ type: 'ended', code: error.code, message: error.message });
  }
  await queue.close();
  process.disconnect?.();
}
main();
