/**
 * The grids of a frame, as CMT and MoME have them on nuScenes: bird's-eye-view cells of 0.6 m, image cells of 16×16 pixels
 * of the lower 640 rows at a width of 1600. Keys are the BEV cells, then each camera's cells, row by row.
 */
export const POINT_CLOUD_RANGE = [-54, -54, -5, 54, 54, 3] as const;
/** [rows, columns] = [y, x] of the bird's-eye view */
export const BEV_SHAPE = [180, 180] as const;
export const BEV_CELLS = BEV_SHAPE[0] * BEV_SHAPE[1];
/** [height, width] of the network's input image in pixels */
export const INPUT_SHAPE = [640, 1600] as const;
export const STRIDE = 16;
/** [rows, columns] of a camera's feature map */
export const FEATURE_SHAPE = [INPUT_SHAPE[0] / STRIDE, INPUT_SHAPE[1] / STRIDE] as const;
export const CAMERA_CELLS = FEATURE_SHAPE[0] * FEATURE_SHAPE[1];
export const HEADS = 8;
export const HEAD_DIM = 32;
export const CHANNELS = HEADS * HEAD_DIM;

/** Radii of the spatial term, in cells: 5×5 BEV cells and 15×15 image cells are touched, MoME's windows. */
export const RADIUS = { bev: 3, camera: 8 };
/** Sides of the windows of local attention (LAM), in cells. */
export const WINDOW = { bev: 5, camera: 15 };

/** How an image becomes the network's input: scaled by `scale`, then the rows from `top` on (negative: padded above). */
export function inputTransform([height, width]: readonly [number, number]): {
  scale: number;
  scaledHeight: number;
  top: number;
} {
  const scale = INPUT_SHAPE[1] / width;
  const scaledHeight = Math.max(1, Math.round(height * scale));
  return { scale, scaledHeight, top: scaledHeight - INPUT_SHAPE[0] };
}

/** lidar2img for pixels of the network's input instead of the file's. */
export function inputMatrix(
  lidar2img: readonly number[],
  imageShape: readonly [number, number],
): Float32Array {
  const { scale, scaledHeight, top } = inputTransform(imageShape);
  const matrix = Float64Array.from(lidar2img);
  for (let column = 0; column < 4; ++column) {
    const [u, v, depth] = [matrix[column]!, matrix[4 + column]!, matrix[8 + column]!];
    matrix[column] = u * scale;
    matrix[4 + column] = (v * scaledHeight) / imageShape[0] - top * depth;
  }
  return new Float32Array(matrix);
}

/** The BEV cell of a point in metres, or −1 outside the range (heights included). */
export function bevCell(x: number, y: number, z: number): number {
  const [x0, y0, z0, x1, y1, z1] = POINT_CLOUD_RANGE;
  if (!(x >= x0 && x < x1 && y >= y0 && y < y1 && z >= z0 && z < z1)) return -1;
  const column = Math.floor(((x - x0) / (x1 - x0)) * BEV_SHAPE[1]);
  const row = Math.floor(((y - y0) / (y1 - y0)) * BEV_SHAPE[0]);
  return row * BEV_SHAPE[1] + column;
}
