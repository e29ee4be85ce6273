// The weights of a frame's queries from above, a column a failure: with the fixed bias, and with the trained router.
import sharp from 'sharp';

import { INPUT_SHAPE } from '../../dist/frame/geometry.js';

const PANEL = 400; // pixels
const GAP = 12;
const [LEFT, TOP, LEGEND] = [44, 92, 92];
/** Metres that a panel shows to each side of the car; what is farther out is left out. */
const REACH = 45;

/** w_lidar − w_camera at which a colour is full. */
const FULL = 0.5;
const [CAMERA, EQUAL, LIDAR] = [
  [64, 156, 255],
  [236, 236, 236],
  [255, 140, 26],
];
const LOST = { lidar: '#ff4d5e', cameras: '#b58cff' };

const at = (x, y) => [(x / REACH + 1) * (PANEL / 2), (1 - y / REACH) * (PANEL / 2)];
const pathOf = (points) => points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ');

function colourOf(difference) {
  const share = Math.min(1, Math.abs(difference) / FULL);
  const end = difference > 0 ? LIDAR : CAMERA;
  return `rgb(${EQUAL.map((value, c) => Math.round(value + (end[c] - value) * share)).join(',')})`;
}

const text = (x, y, words, size, more = '') =>
  `<text x="${x}" y="${y}" font-family="DejaVu Sans, Arial, sans-serif" font-size="${size}" fill="#e8e8e8" ${more}>${words}</text>`;

/** A panel's corner pieces lie beyond its frame; the frame cuts them off. */
const FAR = 120; // metres

const wedge = (from, to, apex = [0, 0]) => {
  const steps = 24;
  const arc = Array.from({ length: steps + 1 }, (_, i) => {
    const angle = from + ((to - from) * i) / steps;
    return at(apex[0] + FAR * Math.cos(angle), apex[1] + FAR * Math.sin(angle));
  });
  return `M${pathOf([at(...apex), ...arc])} Z`;
};

/** What is seen by a camera: between the headings of its first and last column, on the ground far out. */
function viewWedge(matrix) {
  const seen = [];
  for (let degree = -180; degree < 540; ++degree) {
    const angle = (degree * Math.PI) / 180;
    const [x, y] = [30 * Math.cos(angle), 30 * Math.sin(angle)];
    const [u, , depth] = [0, 4, 8].map((row) => matrix[row] * x + matrix[row + 1] * y + matrix[row + 3]);
    if (depth > 0 && u >= 0 && u < depth * INPUT_SHAPE[1]) seen.push(degree);
    else if (seen.length > 0 && degree > 180) break;
    else if (degree <= 180) seen.length = 0;
  }
  return wedge((seen[0] * Math.PI) / 180, (seen.at(-1) * Math.PI) / 180);
}

function lostAreas({ lidar, cameras }, matrices, id) {
  const areas = [];
  const whole = `M0,0 H${PANEL} V${PANEL} H0 Z`;
  if (lidar?.sector) {
    const [heading, width] = lidar.sector;
    areas.push(['lidar', wedge(heading - width / 2, heading + width / 2)]);
  } else if (lidar?.beyond !== undefined) {
    const [x, y] = at(0, 0);
    const r = (lidar.beyond / REACH) * (PANEL / 2);
    const hole = r > 0 ? `M${x - r},${y} a${r},${r} 0 1,0 ${2 * r},0 a${r},${r} 0 1,0 ${-2 * r},0 Z` : '';
    areas.push(['lidar', `${whole} ${hole}`]);
  }
  if (cameras?.length === matrices.length) areas.push(['cameras', whole]);
  else for (const view of cameras ?? []) areas.push(['cameras', viewWedge(matrices[view])]);
  return areas
    .map(
      ([sensor, path]) =>
        `<path d="${path}" fill-rule="evenodd" fill="url(#${sensor})" stroke="${LOST[sensor]}" stroke-width="2" stroke-opacity="0.9" clip-path="url(#${id})"/>`,
    )
    .join('');
}

/** A panel: what is left of the sweep, what is lost, and the queries. */
function panel({ sample, weights }, x, y, id) {
  const { sweep, lost, proposals, scored, scene } = sample;
  const shapes = [`<clipPath id="${id}"><rect width="${PANEL}" height="${PANEL}"/></clipPath>`];
  shapes.push(`<rect width="${PANEL}" height="${PANEL}" fill="#14161a"/>`);
  let points = '';
  for (let i = 0; i < sweep.count * sweep.columns; i += sweep.columns) {
    const [px, py] = at(sweep.points[i], sweep.points[i + 1]);
    if (px > 0 && px < PANEL && py > 0 && py < PANEL) points += `M${px.toFixed(1)},${py.toFixed(1)}h.8`;
  }
  shapes.push(`<path d="${points}" stroke="#70757d" stroke-width="0.8"/>`);
  shapes.push(lostAreas(lost, scene.matrices, id));
  proposals.forEach(({ point }, q) => {
    if (Math.max(Math.abs(point[0]), Math.abs(point[1])) > REACH) return;
    const [px, py] = at(point[0], point[1]).map((value) => value.toFixed(1));
    const difference = weights[q] - weights[weights.length / 2 + q];
    shapes.push(
      scored[q]
        ? `<circle cx="${px}" cy="${py}" r="4.2" fill="${colourOf(difference)}" stroke="#000" stroke-width="1"/>`
        : `<path d="M${px},${py} m-3,-3 l6,6 m0,-6 l-6,6" stroke="#9a9a9a" stroke-width="1.4"/>`,
    );
  });
  const [carX, carY] = at(0, 0);
  shapes.push(`<path d="M${carX},${carY - 7} l5,14 h-10 z" fill="#ffffff" stroke="#000"/>`);
  shapes.push(`<rect width="${PANEL}" height="${PANEL}" fill="none" stroke="#50555c"/>`);
  return `<g transform="translate(${x},${y})">${shapes.join('')}</g>`;
}

const hatch = (id, colour, turn) =>
  `<pattern id="${id}" width="9" height="9" patternUnits="userSpaceOnUse" patternTransform="rotate(${turn})"><rect width="9" height="9" fill="${colour}" fill-opacity="0.10"/><rect width="1.2" height="9" fill="${colour}" fill-opacity="0.55"/></pattern>`;

function legend(y) {
  const bar = 340;
  const stops = [-1, 0, 1].map(
    (side, i) => `<stop offset="${i / 2}" stop-color="${colourOf(side * FULL)}"/>`,
  );
  const [x, box] = [LEFT + 300, 22];
  const key = (left, id, words) =>
    `<rect x="${left}" y="${y}" width="${box}" height="${box}" fill="url(#${id})" stroke="${LOST[id]}" stroke-width="2"/>` +
    text(left + box + 10, y + 17, words, 17);
  const after = x + bar;
  return [
    `<linearGradient id="scale">${stops.join('')}</linearGradient>`,
    text(x - 16, y + 17, 'query, by w_lidar − w_camera', 17, 'text-anchor="end"'),
    `<rect x="${x}" y="${y}" width="${bar}" height="${box}" fill="url(#scale)"/>`,
    text(x, y + 44, `−${FULL}: cameras`, 15),
    text(x + bar / 2, y + 44, '0: alike', 15, 'text-anchor="middle"'),
    text(after, y + 44, `LiDAR: +${FULL}`, 15, 'text-anchor="end"'),
    key(after + 60, 'lidar', 'LiDAR lost'),
    key(after + 220, 'cameras', 'camera lost'),
    `<path d="M${after + 396},${y + 11} m-6,-6 l12,12 m0,-12 l-12,12" stroke="#9a9a9a" stroke-width="2.2"/>`,
    text(after + 414, y + 17, 'query that neither sensor reads: not scored', 17),
    `<path d="M${after + 850},${y + 2} l6,18 h-12 z" fill="#fff"/>`,
    text(after + 866, y + 17, `the car, ahead is up; a side is ${2 * REACH} m; grey: LiDAR points`, 17),
  ].join('');
}

/** @param columns { failure, sample, fixed, trained } each, the last two with weights [2, Q] */
export async function weightsPicture(columns) {
  const width = LEFT + columns.length * (PANEL + GAP) + GAP;
  const below = TOP + 2 * (PANEL + GAP) + 8;
  const rows = [
    ['fixed', 'fixed bias'],
    ['trained', 'trained router'],
  ];
  const shapes = [hatch('lidar', LOST.lidar, 45), hatch('cameras', LOST.cameras, -45)];
  const of = columns[0].sample.scene.name;
  shapes.push(text(LEFT, 36, `Which sensor does each query trust? (${of}, not trained on)`, 24));
  columns.forEach(({ failure, sample, ...runs }, i) => {
    const x = LEFT + i * (PANEL + GAP);
    shapes.push(text(x + PANEL / 2, TOP - 14, failure, 20, 'text-anchor="middle"'));
    rows.forEach(([run], row) => {
      const part = { sample, weights: runs[run].weights };
      shapes.push(panel(part, x, TOP + row * (PANEL + GAP), `p${i}${row}`));
    });
  });
  rows.forEach(([, words], row) => {
    const middle = TOP + row * (PANEL + GAP) + PANEL / 2;
    shapes.push(
      text(0, 0, words, 20, `text-anchor="middle" transform="translate(28,${middle}) rotate(-90)"`),
    );
  });
  shapes.push(legend(below));
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${below + LEGEND - 24}"><rect width="100%" height="100%" fill="#1d2026"/>${shapes.join('')}</svg>`;
  // A sweep is one path of hundreds of kilobytes.
  return sharp(Buffer.from(svg), { unlimited: true }).png().toBuffer();
}
