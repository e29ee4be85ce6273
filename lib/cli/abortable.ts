import { AttentionBiasError } from '../errors.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Calls `work` with a signal that Ctrl-C (SIGINT), SIGTERM and SIGHUP abort, so that it can take back what it has half done; then
 * the process ends by that same signal, as its parent expects. A second Ctrl-C ends it at once.
 */
export async function abortable<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let received: NodeJS.Signals | undefined;
  const abort = (signal: NodeJS.Signals): void => {
    received = signal;
    for (const name of SIGNALS) process.off(name, abort);
    controller.abort(new Error(signal));
  };
  for (const name of SIGNALS) process.on(name, abort);
  try {
    return await work(controller.signal);
  } catch (error) {
    if (received && error instanceof AttentionBiasError && error.code === 'ERR_ABORTED') {
      process.kill(process.pid, received);
      await new Promise((resolve) => setTimeout(resolve, 1000)); // the signal ends the process meanwhile
    }
    throw error;
  } finally {
    for (const name of SIGNALS) process.off(name, abort);
  }
}
