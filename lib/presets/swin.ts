/**
 * Swin: Z. Liu, Y. Lin, Y. Cao, H. Hu, Y. Wei, Z. Zhang, S. Lin, B. Guo, "Swin Transformer: Hierarchical Vision Transformer
 * using Shifted Windows", ICCV 2021. What is here is Swin V2's as well (swin-v2.ts).
 *
 * All windows of all images are one batch, image after image, windows row by row: row b is window b mod nW.
 */
import { expected } from '../errors.js';
import type { TensorLike, TypedArray } from '../tensor.js';
import type { BiasTerm, ShiftedWindowTerm } from '../terms.js';
import { requireData, requireIntegers, requireShape, type HostArray, type Size } from './check.js';
import { relativePositionRows } from './relative-position.js';

/** How a feature map is cut into windows. */
export interface WindowLayout {
  /** [H, W] of the map in tokens, a multiple of the window */
  resolution: Size;
  /** [Mh, Mw] */
  window: Size;
  /** [sh, sw], each from 0 to below the window; default [0, 0]. Swin shifts every second block by half a window */
  shift?: Size | undefined;
}

type Pair = [number, number];

function checked({ resolution, window, shift = [0, 0] }: WindowLayout): Record<keyof WindowLayout, Pair> {
  const size = requireIntegers(window, 2, 1, 'window') as Pair;
  const map = requireIntegers(resolution, 2, 1, 'resolution') as Pair;
  const by = requireIntegers(shift, 2, 0, 'shift') as Pair;
  const list = (pair: Pair): string => `[${pair.join(', ')}]`;
  if (map[0] % size[0] !== 0 || map[1] % size[1] !== 0)
    throw expected('ERR_VALUE', `a multiple of the window ${list(size)}`, 'resolution', list(map));
  if (by[0] >= size[0] || by[1] >= size[1])
    throw expected('ERR_VALUE', `less than the window ${list(size)}`, 'shift', list(by));
  return { resolution: map, window: size, shift: by };
}

/**
 * The window and shift that a Swin block takes on a map: where the map is no larger than the window along an axis, the window
 * is the map and nothing is shifted along it.
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function swinWindow({ resolution, window, shift = [0, 0] }: WindowLayout): Required<WindowLayout> {
  const map = requireIntegers(resolution, 2, 1, 'resolution') as Pair;
  const size = requireIntegers(window, 2, 1, 'window') as Pair;
  const by = requireIntegers(shift, 2, 0, 'shift') as Pair;
  const fits = map.map((length, axis) => length <= size[axis]!);
  const layout: Required<WindowLayout> = {
    resolution: map,
    window: [fits[0] ? map[0] : size[0], fits[1] ? map[1] : size[1]],
    shift: [fits[0] ? 0 : by[0], fits[1] ? 0 : by[1]],
  };
  return checked(layout);
}

/** Calls `copy` with the row of a token in the map and in the windows, for each token of `images` maps. */
function eachToken(
  layout: Record<keyof WindowLayout, Pair>,
  images: number,
  copy: (inMap: number, inWindows: number) => void,
): void {
  const [height, width] = layout.resolution;
  const [rows, columns] = layout.window;
  const [down, right] = layout.shift;
  let inWindows = 0;
  for (let image = 0; image < images; ++image) {
    for (let top = 0; top < height; top += rows) {
      for (let left = 0; left < width; left += columns) {
        for (let y = top; y < top + rows; ++y) {
          for (let x = left; x < left + columns; ++x) {
            // The shifted map holds at (y, x) what the map holds at (y + down, x + right), round its borders.
            const from = (image * height + ((y + down) % height)) * width + ((x + right) % width);
            copy(from, inWindows++);
          }
        }
      }
    }
  }
}

/**
 * Cyclic shift by −shift, then windows: what goes into a Swin block's attention.
 *
 * @param map [B, H, W, C], of any dtype, in host memory
 * @param layout without `resolution`, which is the map's
 * @returns [B·nW, Mh·Mw, C], a new array
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE
 */
export function windowPartition<A extends TypedArray>(
  map: HostArray<A>,
  { window, shift }: Omit<WindowLayout, 'resolution'>,
): HostArray<A> {
  const { data, shape } = requireData(map, ['B', 'H', 'W', 'C'], 'map');
  const [images, height, width, channels] = shape as [number, number, number, number];
  const layout = checked({ resolution: [height, width], window, shift });
  const windows = data.slice() as A;
  eachToken(layout, images, (from, to) => {
    windows.set(data.subarray(from * channels, (from + 1) * channels), to * channels);
  });
  const tokens = layout.window[0] * layout.window[1];
  return { data: windows, shape: [(images * height * width) / tokens, tokens, channels] };
}

/**
 * Undoes `windowPartition`: windows to a map, then cyclic shift by +shift.
 *
 * @param windows [B·nW, Mh·Mw, C], of any dtype, in host memory
 * @returns [B, H, W, C], a new array
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE
 */
export function windowReverse<A extends TypedArray>(windows: HostArray<A>, args: WindowLayout): HostArray<A> {
  const layout = checked(args);
  const [height, width] = layout.resolution;
  const tokens = layout.window[0] * layout.window[1];
  const count = (height * width) / tokens;
  const { data, shape } = requireData(windows, [`B·${count}`, tokens, 'C'], 'windows');
  const [rows, , channels] = shape as [number, number, number];
  if (rows % count !== 0)
    throw expected('ERR_SHAPE', `a multiple of ${count} windows`, 'windows', String(rows));
  const map = data.slice() as A;
  eachToken(layout, rows / count, (to, from) => {
    map.set(data.subarray(from * channels, (from + 1) * channels), to * channels);
  });
  return { data: map, shape: [rows / count, height, width, channels] };
}

/** Arguments of `swinTerms`. */
export interface SwinArgs extends WindowLayout {
  /**
   * float32 [(2Mh−1)(2Mw−1), heads]: `relative_position_bias_table` of a Swin checkpoint, or what `swinV2Table` makes;
   * default: no relative position bias
   */
  table?: TensorLike | undefined;
  /** between tokens that are no neighbours in the image; default −100 */
  value?: number | undefined;
}

/**
 * The bias of a Swin block's attention over windows [B·nW, heads, Mh·Mw, D]: the relative position table, and where the map
 * is shifted −100 between tokens that are no neighbours in the image.
 *
 * @throws AttentionBiasError ERR_VALUE, ERR_SHAPE
 */
export function swinTerms({ table, value, ...args }: SwinArgs): BiasTerm[] {
  const { resolution, window, shift } = checked(args);
  const terms: BiasTerm[] = [];
  if (table !== undefined) {
    requireShape(table, [relativePositionRows(window, false), 'heads'], 'table');
    terms.push({ type: 'relativePosition', window, table });
  }
  if (shift[0] > 0 || shift[1] > 0) {
    const mask: ShiftedWindowTerm = { type: 'shiftedWindow', resolution, window, shift };
    if (value !== undefined) mask.value = value;
    terms.push(mask);
  }
  return terms;
}
