import type { Box } from './scene.js';

/** Corners of a box in metres: bottom, then top, each from front left round by the back. */
export function boxCorners({ center, size, yaw }: Box): (readonly [number, number, number])[] {
  const [length, width, height] = size;
  const [c, s] = [Math.cos(yaw), Math.sin(yaw)];
  const corner = (forward: number, left: number, up: number): readonly [number, number, number] => [
    center[0] + forward * length * c - left * width * s,
    center[1] + forward * length * s + left * width * c,
    center[2] + up * height,
  ];
  const round: [number, number][] = [
    [0.5, 0.5],
    [-0.5, 0.5],
    [-0.5, -0.5],
    [0.5, -0.5],
  ];
  return [-0.5, 0.5].flatMap((up) => round.map(([forward, left]) => corner(forward, left, up)));
}
