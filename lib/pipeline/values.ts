/** What a pipeline knows of the values that pass through it: their bytes, and the native memory of those that come to nothing. */
import { bytesOf, madeTensors, Tensor } from '../tensor.js';

/** Values hold their arrays and tensors this deep at most: { gradients: { terms: [{ segments: [{ weights }] }] } }. */
const DEPTH = 6;

function isPlain(value: object): boolean {
  if (Array.isArray(value)) return true;
  // By tag, not by prototype: an object of another realm is as good.
  return Object.prototype.toString.call(value) === '[object Object]';
}

/**
 * The bytes of the text, buffers, typed arrays and Tensors in a value: itself, or the entries of plain objects, arrays and maps;
 * each buffer counted once.
 */
export function byteSize(value: unknown): number {
  const seen = new Set<unknown>();
  const visit = (value: unknown, depth: number): number => {
    if (typeof value === 'string') return 2 * value.length;
    if (typeof value !== 'object' || value === null || depth > DEPTH || seen.has(value)) return 0;
    seen.add(value);
    if (value instanceof Tensor) return bytesOf(value);
    if (ArrayBuffer.isView(value)) {
      const counted = seen.has(value.buffer);
      seen.add(value.buffer);
      return counted ? 0 : value.byteLength;
    }
    const entries =
      value instanceof Map || value instanceof Set
        ? value.values()
        : isPlain(value)
          ? Object.values(value)
          : undefined;
    if (entries) return [...entries].reduce((sum: number, entry) => sum + visit(entry, depth + 1), 0);
    const { byteLength, size } = value as { byteLength?: unknown; size?: unknown }; // an ArrayBuffer, a Blob
    return typeof byteLength === 'number' ? byteLength : typeof size === 'number' ? size : 0;
  };
  return visit(value, 0);
}

/**
 * Frees what a value that nobody will get holds: itself where it is disposable, or the Tensors among the entries of plain
 * objects and arrays that were made within `made`. Tensors from elsewhere, such as weights that all items share, stay.
 */
export async function disposeValue(value: unknown, made: WeakSet<object>): Promise<void> {
  const visit = (value: unknown, depth: number): void => {
    if (typeof value !== 'object' || value === null || depth > DEPTH) return;
    if (value instanceof Tensor) {
      if (made.has(value)) value.dispose();
    } else if (isPlain(value)) Object.values(value).forEach((entry) => visit(entry, depth + 1));
  };
  if (typeof value === 'object' && value !== null && !(value instanceof Tensor)) {
    const { [Symbol.dispose]: dispose, [Symbol.asyncDispose]: disposeLater } = value as Partial<
      Disposable & AsyncDisposable
    >;
    if (typeof disposeLater === 'function') return disposeLater.call(value);
    if (typeof dispose === 'function') {
      dispose.call(value);
      return;
    }
  }
  visit(value, 0);
}

/** Calls `work`, and notes in `made` the Tensors that devices make within it. */
export const noting = <T>(made: WeakSet<object>, work: () => T): T => madeTensors.run(made, work);
