/** Tables of relative positions over a window: what Swin (V1, V2) and BEiT share. */
import { requireIntegers, type Size } from './check.js';

/** Rows of a table: (2·Mh−1)·(2·Mw−1), and 3 for a class token. */
export function relativePositionRows([height, width]: Size, clsToken: boolean): number {
  return (2 * height - 1) * (2 * width - 1) + (clsToken ? 3 : 0);
}

/** Which row of a relative-position table each pair of tokens takes. */
export interface RelativePositionIndex {
  /** [N, N], row-major: the table's row for query q and key k */
  readonly data: Int32Array<ArrayBuffer>;
  /** [N, N], N = Mh·Mw, and one more with a class token */
  readonly shape: readonly [number, number];
}

/**
 * The index that Swin and BEiT keep beside their tables, to read a checkpoint's bias or to check one. The term
 * `relativePosition` needs no index: it computes the same rows from the window.
 *
 * @param window [Mh, Mw] in tokens
 * @param clsToken token 0 is the class token; the last three rows are cls→token, token→cls and cls→cls
 * @throws AttentionBiasError ERR_VALUE
 */
export function relativePositionIndex(window: Size, clsToken = false): RelativePositionIndex {
  const [height, width] = requireIntegers(window, 2, 1, 'window') as [number, number];
  const rows = relativePositionRows([height, width], clsToken);
  const first = clsToken ? 1 : 0;
  const tokens = height * width + first;
  const data = new Int32Array(tokens * tokens);
  for (let q = 0; q < tokens; ++q) {
    for (let k = 0; k < tokens; ++k) {
      data[q * tokens + k] = row(q - first, k - first);
    }
  }
  return { data, shape: [tokens, tokens] };

  function row(q: number, k: number): number {
    if (q < 0) return k < 0 ? rows - 1 : rows - 3;
    if (k < 0) return rows - 2;
    const [yq, xq, yk, xk] = [Math.floor(q / width), q % width, Math.floor(k / width), k % width];
    return (yq - yk + height - 1) * (2 * width - 1) + (xq - xk + width - 1);
  }
}
