const WINDOW_MS = 60_000;
const MARK_MS = 1_000;

/** How much of the time something was under way, however many ran at once. Times are milliseconds of one clock. */
export class BusyClock {
  #running = 0;
  #since = 0;
  #busyMs = 0;
  /** how busy it had been at moments of the last minute, a second apart or more; the first is the window's begin */
  readonly #marks: { at: number; busyMs: number }[];

  constructor(private readonly now: () => number = () => performance.now()) {
    this.#marks = [{ at: now(), busyMs: 0 }];
  }

  /** how many are under way */
  get running(): number {
    return this.#running;
  }

  begin(): void {
    const at = this.now();
    this.#mark(at);
    if (this.#running++ === 0) this.#since = at;
  }

  end(): void {
    const at = this.now();
    if (--this.#running === 0) this.#busyMs += at - this.#since;
    this.#mark(at);
  }

  /** The share of the last minute, or of the time since the clock was made where that is shorter; 0 to 1. */
  ratio(): number {
    const at = this.now();
    this.#mark(at);
    const [first] = this.#marks;
    const span = at - first!.at;
    return span > 0 ? (this.#busyUntil(at) - first!.busyMs) / span : 0;
  }

  #busyUntil(at: number): number {
    return this.#busyMs + (this.#running > 0 ? at - this.#since : 0);
  }

  #mark(at: number): void {
    const marks = this.#marks;
    while (marks.length > 1 && marks[1]!.at <= at - WINDOW_MS) marks.shift();
    if (at - marks.at(-1)!.at >= MARK_MS) marks.push({ at, busyMs: this.#busyUntil(at) });
  }
}
