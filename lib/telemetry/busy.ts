/** How long something was at work: the union of overlapping spans, in milliseconds. */
export class BusyClock {
  #running = 0;
  #since = 0;
  #total = 0;

  /** `now`: milliseconds, for tests */
  constructor(readonly now: () => number = () => performance.now()) {}

  enter(): void {
    if (this.#running++ === 0) this.#since = this.now();
  }

  leave(): void {
    if (--this.#running === 0) this.#total += this.now() - this.#since;
  }

  /** how many are under way */
  get running(): number {
    return this.#running;
  }

  /** including a span that is not over yet */
  get ms(): number {
    return this.#total + (this.#running > 0 ? this.now() - this.#since : 0);
  }
}

const WINDOW_MS = 60_000;
const MARK_MS = 1_000;

/** The share of the last minute in which something was at work, or of the time since it was made where that is shorter. */
export class BusyShare {
  readonly #clock: BusyClock;
  /** what the clock said at moments of the last minute, a second apart or more; the first is where the window begins */
  readonly #marks: { at: number; ms: number }[];

  constructor(now?: () => number) {
    this.#clock = new BusyClock(now);
    this.#marks = [{ at: this.#clock.now(), ms: 0 }];
  }

  enter(): void {
    this.#mark();
    this.#clock.enter();
  }

  leave(): void {
    this.#clock.leave();
    this.#mark();
  }

  /** 0 to 1 */
  get ratio(): number {
    const { at, ms } = this.#mark();
    const [first] = this.#marks;
    return at > first!.at ? (ms - first!.ms) / (at - first!.at) : 0;
  }

  #mark(): { at: number; ms: number } {
    const marks = this.#marks;
    const mark = { at: this.#clock.now(), ms: this.#clock.ms };
    while (marks.length > 1 && marks[1]!.at <= mark.at - WINDOW_MS) marks.shift();
    if (mark.at - marks.at(-1)!.at >= MARK_MS) marks.push(mark);
    return mark;
  }
}
