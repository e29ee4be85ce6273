/** The share of the attention on LiDAR and on cameras, frame after frame. */
import type { Row } from '../data.js';
import { html, svg } from './dom.js';
import { figure, nothing, px, xAxis, yAxis, type Area, type Canvas } from './figure.js';
import { count, percent } from './format.js';
import { linear, ticks, type Scale } from './scale.js';
import { mean } from './statistics.js';
import type { State } from './state.js';
import { tooltip } from './tooltip.js';

const HEIGHT = 264;
/** Of the line of marks of failed frames, below the shares. */
const RUG = 8;
/** A pointer this far from a frame, in pixels, still means it. */
const REACH = 12;

/** Frames that share a column of the picture: one, or as many as fall on a pixel. */
interface Bucket {
  readonly from: number;
  readonly lidar: number;
  readonly camera: number;
  readonly least: number;
  readonly most: number;
}

type Measured = Row & { readonly mass: NonNullable<Row['mass']> };

const measured = (rows: readonly Row[]): Measured[] =>
  rows.filter((row): row is Measured => row.mass !== undefined);

function bucketsOf(rows: readonly Measured[], first: number, per: number): Bucket[] {
  const buckets: Bucket[] = [];
  for (let i = 0; i < rows.length;) {
    const place = Math.floor((rows[i]!.index - first) / per);
    const members: Measured[] = [];
    for (; i < rows.length && Math.floor((rows[i]!.index - first) / per) === place; ++i)
      members.push(rows[i]!);
    const lidar = members.map(({ mass }) => mass.lidar);
    buckets.push({
      from: first + place * per,
      lidar: mean(lidar),
      camera: mean(members.map(({ mass }) => mass.camera)),
      least: Math.min(...lidar),
      most: Math.max(...lidar),
    });
  }
  return buckets;
}

/** The outline of columns between two heights; columns that touch make one shape, without a seam. */
function columnsPath(
  buckets: readonly Bucket[],
  per: number,
  x: Scale,
  low: (bucket: Bucket) => number,
  high: (bucket: Bucket) => number,
): string {
  let path = '';
  for (let i = 0; i < buckets.length;) {
    let end = i + 1;
    while (end < buckets.length && buckets[end]!.from === buckets[end - 1]!.from + per) ++end;
    const run = buckets.slice(i, end);
    path += `M${px(x(run[0]!.from))} ${px(high(run[0]!))}`;
    for (const bucket of run) path += `V${px(high(bucket))}H${px(x(bucket.from + per))}`;
    for (const bucket of [...run].reverse()) path += `V${px(low(bucket))}H${px(x(bucket.from))}`;
    path += 'Z';
    i = end;
  }
  return path;
}

export function massChart(state: State): HTMLElement {
  const [first, last] = [state.rows[0]?.index ?? 0, state.rows.at(-1)?.index ?? 0];
  let rows = measured(state.shown);
  let area: Area | undefined;
  let x: Scale = () => 0;
  let y: Scale = () => 0;
  const marker = svg('g', { class: 'marker' });

  /** The frame at a place, of those at hand the nearest in height. */
  function frameAt(left: number, top: number): Measured | undefined {
    if (!area) return undefined;
    const place = first + ((left - area.left) / (area.right - area.left)) * (last + 1 - first) - 0.5;
    const reach = Math.max(0.5, (REACH / (area.right - area.left)) * (last + 1 - first));
    let best: Measured | undefined;
    let least = Infinity;
    for (const row of rows) {
      const away = Math.abs(row.index - place);
      if (away > reach) continue;
      // Along the frames counts more: a column is one frame where there is room.
      const distance = Math.abs(x(row.index) - x(place)) * 4 + Math.abs(y(row.mass.lidar) - top);
      if (distance < least) [best, least] = [row, distance];
    }
    return best;
  }

  function mark(): void {
    const row = state.selected;
    marker.replaceChildren();
    if (!area || !row) return;
    const at = x(row.index + 0.5);
    marker.append(svg('line', { x1: at, x2: at, y1: area.top, y2: area.bottom + RUG }));
    if (row.mass) marker.append(svg('circle', { cx: at, cy: y(row.mass.lidar), r: 5 }));
  }

  function draw(canvas: Canvas): string {
    const { root, width, height } = canvas;
    rows = measured(state.shown);
    area = undefined;
    if (rows.length === 0) return nothing(canvas, 'no frames with attention mass');
    area = { left: 48, right: width - 10, top: 10, bottom: height - 44 - RUG };
    const plot = area;
    x = linear([first, last + 1], [plot.left, plot.right]);
    y = linear([0, 1], [plot.bottom, plot.top]);
    const per = Math.max(1, Math.ceil((last + 1 - first) / (plot.right - plot.left)));
    const buckets = bucketsOf(rows, first, per);
    const lidar = (bucket: Bucket): number => y(bucket.lidar);
    root.append(
      svg('path', { class: 'lidar area', d: columnsPath(buckets, per, x, () => plot.bottom, lidar) }),
      svg('path', {
        class: 'camera area',
        d: columnsPath(buckets, per, x, lidar, (bucket) => y(bucket.lidar + bucket.camera)),
      }),
      yAxis(plot, y, [0, 0.25, 0.5, 0.75, 1], (value) => percent(value, 0)),
    );
    if (per > 1) {
      const spans = buckets.map(({ from, least, most }) => {
        const at = px(x(Math.min(from + per / 2, last + 0.5)));
        return `M${at} ${px(y(least))}V${px(y(most))}`;
      });
      root.append(svg('path', { class: 'span', d: spans.join('') }));
    }
    const failed = state.shown.filter(({ failure }) => failure);
    root.append(
      svg('path', {
        class: 'failed rug',
        d: failed.map(({ index }) => `M${px(x(index + 0.5))} ${plot.bottom + 1}v${RUG - 2}`).join(''),
      }),
      xAxis(
        { ...plot, bottom: plot.bottom + RUG },
        (value) => x(value + 0.5),
        ticks(first, last, Math.max(2, (plot.right - plot.left) / 64), 1),
        count,
        'frame, by its place in the manifest',
      ),
      marker,
    );
    mark();
    const shares = rows.map(({ mass }) => mass.lidar);
    return (
      `${count(rows.length)} frames: on average ${percent(mean(shares))} of the attention on LiDAR, ` +
      `from ${percent(shares.reduce((a, b) => Math.min(a, b)))} to ${percent(shares.reduce((a, b) => Math.max(a, b)))}`
    );
  }

  const chart = figure({
    id: 'mass',
    title: 'Attention mass by modality',
    about:
      'Share of the attention of all queries on LiDAR and on image cells. Click a frame, or use the arrow keys, to select it.',
    legend: [
      { name: 'LiDAR', mark: 'lidar' },
      { name: 'Cameras', mark: 'camera' },
      { name: 'Failed', mark: 'failed' },
    ],
    height: () => HEIGHT,
    draw,
  });
  const { plot } = chart;
  plot.classList.add('clickable');
  tooltip(plot, (left, top) => {
    const row = frameAt(left, top);
    return (
      row && {
        title: row.key,
        lines: [
          { name: 'LiDAR', value: percent(row.mass.lidar), mark: 'lidar' },
          { name: 'Cameras', value: percent(row.mass.camera), mark: 'camera' },
        ],
      }
    );
  });
  plot.addEventListener('click', (event) => {
    const box = plot.getBoundingClientRect();
    const row = frameAt(event.clientX - box.left, event.clientY - box.top);
    if (row) state.select(row);
  });

  // The frames as a slider: what arrow keys do there is known.
  const slider = html('div', {
    class: 'slider',
    role: 'slider',
    tabindex: 0,
    'aria-label': 'Selected frame',
  });
  const say = (): void => {
    const row = state.selected;
    slider.setAttribute('aria-valuemin', String(first));
    slider.setAttribute('aria-valuemax', String(last));
    slider.setAttribute('aria-valuenow', String(row?.index ?? first));
    slider.setAttribute(
      'aria-valuetext',
      row ? `${row.key}: LiDAR ${percent(row.mass?.lidar)}, cameras ${percent(row.mass?.camera)}` : 'none',
    );
  };
  slider.addEventListener('keydown', (event) => {
    if (rows.length === 0) return;
    const selected = state.selected?.index ?? -1;
    const at = rows.findIndex(({ index }) => index >= selected);
    const now = at < 0 ? rows.length - 1 : at;
    const page = Math.max(1, Math.round(rows.length / 10));
    const steps: Readonly<Record<string, number>> = {
      ArrowRight: rows[now]!.index > selected ? now : now + 1,
      ArrowUp: rows[now]!.index > selected ? now : now + 1,
      ArrowLeft: now - 1,
      ArrowDown: now - 1,
      PageUp: now + page,
      PageDown: now - page,
      Home: 0,
      End: rows.length - 1,
    };
    const next = steps[event.key];
    if (next === undefined) return;
    event.preventDefault();
    state.select(rows[Math.min(rows.length - 1, Math.max(0, next))], false);
  });
  chart.card.replaceChild(slider, plot);
  slider.append(plot);
  state.onShown(chart.redraw);
  state.onSelected(() => {
    mark();
    say();
  });
  say();
  return chart.card;
}
