/** How much queries trust each sensor: histograms of the router's weights. */
import type { BySensor } from '../data.js';
import { svg } from './dom.js';
import { figure, nothing, px, xAxis, yAxis, type Area, type Canvas } from './figure.js';
import { digits, percent } from './format.js';
import { linear, ticks, type Scale } from './scale.js';
import { weightShares } from './statistics.js';
import type { State } from './state.js';
import { tooltip } from './tooltip.js';

/** Heights: one beside the other, and one above the other. */
const [BESIDE, ABOVE] = [316, 212];
/** Width from which the two histograms stand side by side. */
const WIDE = 460;

const SENSORS = [
  { sensor: 'lidar', name: 'LiDAR' },
  { sensor: 'camera', name: 'Cameras' },
] as const;

interface Panel {
  readonly area: Area;
  readonly sensor: keyof BySensor<unknown>;
  readonly name: string;
}

const panelsOf = (width: number): Panel[] =>
  SENSORS.map(({ sensor, name }, i) => {
    const wide = width >= WIDE;
    const [left, right] = wide ? [(i * width) / 2, ((i + 1) * width) / 2] : [0, width];
    const [top, tall] = wide ? [0, BESIDE] : [i * ABOVE, ABOVE];
    return {
      sensor,
      name,
      area: { left: left + 48, right: right - 10, top: top + 24, bottom: top + tall - 44 },
    };
  });

export function weightsChart(state: State): HTMLElement {
  let shares: BySensor<number[]> | undefined;
  let panels: Panel[] = [];
  const marker = svg('g', { class: 'marker' });
  let y: (area: Area) => Scale = () => () => 0;

  function mark(): void {
    marker.replaceChildren();
    const own = state.selected && weightShares([state.selected]);
    if (!own || own.lidar.length !== shares?.lidar.length) return;
    for (const { area, sensor } of panels) {
      const x = linear([0, own[sensor].length], [area.left, area.right]);
      const path = own[sensor].map((share, bin) => {
        const at = px(Math.max(area.top, y(area)(share))); // a frame's own may be above all others'
        return `${bin === 0 ? `M${px(x(0))} ${at}` : `V${at}`}H${px(x(bin + 1))}`;
      });
      marker.append(svg('path', { d: path.join('') }));
    }
  }

  function draw(canvas: Canvas): string {
    const { root, width } = canvas;
    shares = weightShares(state.shown);
    panels = [];
    if (!shares) return nothing(canvas, 'no frames with weights');
    const all = shares;
    panels = panelsOf(width);
    const most = Math.max(...all.lidar, ...all.camera) || 1;
    const top = Math.min(1, most * 1.15);
    const steps = ticks(0, top, 4);
    y = (area) => linear([0, top], [area.bottom, area.top]);
    for (const { area, sensor, name } of panels) {
      const bins = all[sensor];
      const x = linear([0, bins.length], [area.left, area.right]);
      const columns = bins.map((share, bin) =>
        share > 0
          ? `M${px(x(bin) + 0.5)} ${px(area.bottom)}V${px(y(area)(share))}H${px(x(bin + 1) - 0.5)}V${px(area.bottom)}Z`
          : '',
      );
      root.append(
        yAxis(area, y(area), steps, (value) => percent(value, steps[1]! < 0.01 ? 1 : 0)),
        svg('path', { class: `${sensor} area`, d: columns.join('') }),
        xAxis(
          area,
          linear([0, 1], [area.left, area.right]),
          [0, 0.25, 0.5, 0.75, 1],
          (value) => digits(value),
          'weight',
        ),
        svg('text', { class: 'panel-name', x: area.left, y: area.top - 9 }, `${name}: share of the queries`),
      );
    }
    root.append(marker);
    mark();
    return SENSORS.map(({ sensor, name }) => {
      const bins = all[sensor];
      const middle = bins.reduce((sum, share, bin) => sum + (share * (bin + 0.5)) / bins.length, 0);
      return `${name}: mean weight about ${middle.toFixed(2)}`;
    }).join('; ');
  }

  const chart = figure({
    id: 'weights',
    title: 'Modality weights',
    about: 'How much the queries trust each sensor, from 0 to 1. Line: the selected frame.',
    height: (width) => (width >= WIDE ? BESIDE : 2 * ABOVE),
    draw,
  });
  tooltip(chart.plot, (left, top) => {
    for (const { area, sensor, name } of panels) {
      if (left < area.left || left >= area.right || top < area.top || top > area.bottom) continue;
      const bins = shares![sensor];
      const bin = Math.floor(((left - area.left) / (area.right - area.left)) * bins.length);
      const edge = (i: number): string => digits(i / bins.length);
      return {
        title: `weight ${edge(bin)} to ${edge(bin + 1)}`,
        lines: [{ name: `${name}: queries`, value: percent(bins[bin]), mark: sensor }],
      };
    }
    return undefined;
  });
  state.onShown(chart.redraw);
  state.onSelected(mark);
  return chart.card;
}
