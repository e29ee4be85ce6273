import { BusyShare } from './busy.js';
import type { Operation, TelemetryEvent } from './events.js';

/** The operations that count as attention. */
const attention: ReadonlySet<Operation> = new Set([
  'attention',
  'attentionBackward',
  'multihead',
  'deformable',
  'deformableBackward',
]);

/** Device operations under way, counted from their events. */
export class WorkClocks {
  readonly #under = new Set<TelemetryEvent>();
  readonly #share = new BusyShare();

  begin(event: TelemetryEvent): void {
    if (event.kind !== 'operation') return;
    this.#under.add(event);
    if (attention.has(event.operation)) this.#share.enter();
  }

  /** An event whose begin was not seen changes nothing. */
  end(event: TelemetryEvent): void {
    if (!this.#under.delete(event) || event.kind !== 'operation') return;
    if (attention.has(event.operation)) this.#share.leave();
  }

  get running(): number {
    return this.#under.size;
  }

  /** the share of the last minute with an attention operation under way, 0 to 1 */
  get busy(): number {
    return this.#share.ratio;
  }
}
