/** The share of the attention on each sensor by how far the query is from the LiDAR. */
import { svg } from './dom.js';
import { crisp, figure, nothing, px, xAxis, yAxis, type Area, type Canvas } from './figure.js';
import { count, digits, percent, short } from './format.js';
import { linear, type Scale } from './scale.js';
import { distanceBins, hasEdges, type DistanceBin } from './statistics.js';
import type { State } from './state.js';
import { tooltip } from './tooltip.js';

const HEIGHT = 264;
const GAP = 2;

export function distanceChart(state: State): HTMLElement {
  let bins: DistanceBin[] = [];
  let area: Area | undefined;
  let x: Scale = () => 0;
  let y: Scale = () => 0;
  const marker = svg('g', { class: 'marker' });

  /** The selected frame's own shares, over those of all. */
  function mark(): void {
    marker.replaceChildren();
    const distance = state.selected?.distance;
    if (!area || !distance || !hasEdges(distance, [...bins.map(({ from }) => from), bins.at(-1)!.to])) return;
    bins.forEach(({ from, to }, bin) => {
      const share = distance.lidar[bin];
      if (typeof share !== 'number') return;
      marker.append(
        svg('line', { x1: x(from) + GAP, x2: x(to) - GAP, y1: y(share), y2: y(share) }),
        svg('circle', { cx: (x(from) + x(to)) / 2, cy: y(share), r: 3.5 }),
      );
    });
  }

  function draw(canvas: Canvas): string {
    const { root, width, height } = canvas;
    bins = distanceBins(state.shown);
    area = undefined;
    if (bins.length === 0) return nothing(canvas, 'no frames with distances');
    area = { left: 48, right: width - 10, top: 26, bottom: height - 44 };
    const plot = area;
    x = linear([bins[0]!.from, bins.at(-1)!.to], [plot.left, plot.right]);
    y = linear([0, 1], [plot.bottom, plot.top]);
    let [lidar, camera, spread] = ['', '', ''];
    const column = (bin: DistanceBin, low: number, high: number): string =>
      `M${px(x(bin.from) + GAP / 2)} ${px(y(low))}V${px(y(high))}H${px(x(bin.to) - GAP / 2)}V${px(y(low))}Z`;
    for (const bin of bins.filter(({ queries }) => queries > 0)) {
      lidar += column(bin, 0, bin.lidar);
      camera += column(bin, bin.lidar, bin.lidar + bin.camera);
      const [middle, [least, most]] = [crisp((x(bin.from) + x(bin.to)) / 2), bin.spread];
      spread += `M${middle} ${px(y(least))}V${px(y(most))}M${middle - 4} ${px(y(least))}h8M${middle - 4} ${px(y(most))}h8`;
    }
    root.append(
      svg('path', { class: 'lidar area', d: lidar }),
      svg('path', { class: 'camera area', d: camera }),
      yAxis(plot, y, [0, 0.25, 0.5, 0.75, 1], (value) => percent(value, 0)),
      svg('path', { class: 'span', d: spread }),
      svg(
        'g',
        { class: 'counts' },
        svg('text', { x: plot.left - 6, y: plot.top - 9, 'text-anchor': 'end' }, 'queries'),
        ...bins.map(({ from, to, queries }) =>
          svg('text', { x: (x(from) + x(to)) / 2, y: plot.top - 9, 'text-anchor': 'middle' }, short(queries)),
        ),
      ),
      xAxis(
        plot,
        x,
        [...bins.map(({ from }) => from), bins.at(-1)!.to],
        (value) => digits(value),
        'distance from the LiDAR (m)',
      ),
      marker,
    );
    mark();
    return bins
      .filter(({ queries }) => queries > 0)
      .map(({ from, to, lidar: share }) => `${from} to ${to} m: LiDAR ${percent(share)}`)
      .join('; ');
  }

  const chart = figure({
    id: 'distance',
    title: 'Attention mass by distance',
    about:
      'Mean over the queries at that distance; whiskers hold the LiDAR share of 8 frames in 10. Dots: the selected frame.',
    legend: [
      { name: 'LiDAR', mark: 'lidar' },
      { name: 'Cameras', mark: 'camera' },
    ],
    height: () => HEIGHT,
    draw,
  });
  tooltip(chart.plot, (left) => {
    const bin = area && bins.find(({ from, to }) => left >= x(from) && left < x(to));
    if (!bin) return undefined;
    return {
      title: `${bin.from} to ${bin.to} m`,
      lines: [
        { name: 'LiDAR', value: percent(bin.lidar), mark: 'lidar' },
        { name: 'Cameras', value: percent(bin.camera), mark: 'camera' },
        { name: 'queries', value: count(bin.queries) },
      ],
    };
  });
  state.onShown(chart.redraw);
  state.onSelected(mark);
  return chart.card;
}
