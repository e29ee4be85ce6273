/** How long something was at work: the union of overlapping spans, in milliseconds. */
export class BusyClock {
  #running = 0;
  #since = 0;
  #total = 0;

  enter(): void {
    if (this.#running++ === 0) this.#since = performance.now();
  }

  leave(): void {
    if (--this.#running === 0) this.#total += performance.now() - this.#since;
  }

  /** including a span that is not over yet */
  get ms(): number {
    return this.#total + (this.#running > 0 ? performance.now() - this.#since : 0);
  }
}
