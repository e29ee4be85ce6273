/** Memory that is read into again and again. Fresh memory costs a page fault every 4 KB, more than reading the bytes does. */
import { allocate, type Allocate } from '../formats/io.js';

/** Smaller buffers come from the heap, where nothing is to be saved. */
const LEAST_BYTES = 2 ** 20;

export class ReusedMemory {
  /** what is not in use, in the order in which it was given back */
  readonly #free = new Set<ArrayBuffer>();
  #freeBytes = 0;

  /** @param mostFreeBytes what may lie here unused */
  constructor(readonly mostFreeBytes: number) {}

  /** Memory of that size: zeros, or what was read into it before. ERR_MEMORY */
  readonly take: Allocate = (bytes, name) => {
    for (const buffer of this.#free) {
      if (buffer.byteLength !== bytes) continue;
      this.#drop(buffer);
      return buffer;
    }
    return allocate(bytes, name);
  };

  /** Takes back memory that nobody reads any more. What was given back first goes where it gets too much. */
  give(buffer: ArrayBuffer): void {
    // A buffer of length 0 is small, or was transferred to another thread.
    if (buffer.byteLength < LEAST_BYTES || this.#free.has(buffer)) return;
    this.#free.add(buffer);
    this.#freeBytes += buffer.byteLength;
    for (const first of this.#free) {
      if (this.#freeBytes <= this.mostFreeBytes) break;
      this.#drop(first);
    }
  }

  #drop(buffer: ArrayBuffer): void {
    this.#free.delete(buffer);
    this.#freeBytes -= buffer.byteLength;
  }
}
