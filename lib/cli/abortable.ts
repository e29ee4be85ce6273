import { AttentionBiasError } from '../errors.js';

/**
 * Calls `work` with a signal that Ctrl-C (SIGINT) and SIGTERM abort, so that it can take back what it has half done; then
 * the process ends by that same signal, as its parent expects. A second Ctrl-C ends it at once.
 */
export async function abortable<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let received: NodeJS.Signals | undefined;
  const abort = (signal: NodeJS.Signals): void => {
    received = signal;
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
    controller.abort(new Error(signal));
  };
  process.on('SIGINT', abort);
  process.on('SIGTERM', abort);
  try {
    return await work(controller.signal);
  } catch (error) {
    if (received && error instanceof AttentionBiasError && error.code === 'ERR_ABORTED') {
      process.kill(process.pid, received);
      await new Promise((resolve) => setTimeout(resolve, 1000)); // the signal ends the process meanwhile
    }
    throw error;
  } finally {
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
  }
}
