/** How long each stage takes, and where the time of a run goes. */
import { svg } from './dom.js';
import { crisp, figure, nothing, px, xAxis, type Area, type Canvas } from './figure.js';
import { count, duration, percent } from './format.js';
import { decades, logarithmic, type Scale } from './scale.js';
import { quantile, stageTimes, type StageTimes } from './statistics.js';
import type { State } from './state.js';
import { tooltip } from './tooltip.js';

/** Of the bar of all stages, with its name above. */
const BAR = { top: 20, height: 18 };
const FIRST_ROW = BAR.top + BAR.height + 22;
const AXIS = 44;
/** Width from which names and numbers stand beside the boxes, not above them. */
const WIDE = 460;
export const COLOURS = 8;

const rowHeight = (width: number): number => (width >= WIDE ? 32 : 46);

interface Summary extends StageTimes {
  readonly share: number;
  /** the 5th, 25th, 50th, 75th and 95th of 100 */
  readonly at: readonly [number, number, number, number, number];
}

function summaries(times: readonly StageTimes[]): Summary[] {
  const all = times.reduce((sum, stage) => sum + stage.sum, 0);
  return times.map((stage) => {
    const at = (p: number): number => quantile(stage.times, p);
    return {
      ...stage,
      share: all > 0 ? stage.sum / all : 0,
      at: [at(0.05), at(0.25), at(0.5), at(0.75), at(0.95)],
    };
  });
}

export function stagesChart(state: State): HTMLElement {
  let stages: Summary[] = [];
  let hit: (x: number, y: number) => Summary | undefined = () => undefined;
  const colour = (i: number): string => `stage-${i % COLOURS}`;

  function drawBar(root: SVGSVGElement, width: number): void {
    root.append(
      svg('text', { class: 'panel-name', x: 0, y: 12 }, 'where the time goes, all frames together'),
    );
    let left = 0;
    stages.forEach(({ share }, i) => {
      const wide = share * width;
      root.append(
        svg('rect', {
          class: colour(i),
          x: px(left),
          y: BAR.top,
          width: px(Math.max(0, wide - (wide > 3 ? 1 : 0))),
          height: BAR.height,
        }),
      );
      left += wide;
    });
  }

  function drawRow(
    root: SVGSVGElement,
    stage: Summary,
    i: number,
    middle: number,
    area: Area,
    x: Scale,
    wide: boolean,
  ): void {
    const [p5, p25, p50, p75, p95] = stage.at;
    const most = stage.times.at(-1)!;
    const line = crisp(middle);
    const label = wide ? middle + 4 : middle - 14;
    const numbers = `${duration(p50)} · ${percent(stage.share, stage.share < 0.1 ? 1 : 0)}`;
    root.append(
      svg('rect', { class: colour(i), x: 0, y: label - 9, width: 10, height: 10, rx: 2 }),
      svg('text', { class: 'stage-name', x: 16, y: label }, stage.stage.slice(0, wide ? 14 : 24)),
      svg(
        'text',
        { class: 'stage-numbers', x: wide ? area.right + 118 : area.right, y: label, 'text-anchor': 'end' },
        numbers,
      ),
      svg('path', { class: 'whisker', d: `M${px(x(p5))} ${line}H${px(x(p95))}` }),
      svg('rect', {
        class: `box ${colour(i)}`,
        x: px(x(p25)),
        y: middle - 7,
        width: px(Math.max(2, x(p75) - x(p25))),
        height: 14,
        rx: 2,
      }),
      svg('path', { class: 'median', d: `M${px(x(p50))} ${middle - 7}v14` }),
      svg('circle', { class: 'most', cx: px(x(most)), cy: middle, r: 2.5 }),
    );
  }

  function draw(canvas: Canvas): string {
    const { root, width, height } = canvas;
    stages = summaries(stageTimes(state.shown));
    hit = () => undefined;
    if (stages.length === 0) return nothing(canvas, 'no times: no log of these items');
    const wide = width >= WIDE;
    const tall = rowHeight(width);
    const area: Area = wide
      ? { left: 124, right: width - 124, top: FIRST_ROW, bottom: height - AXIS }
      : { left: 6, right: width - 8, top: FIRST_ROW, bottom: height - AXIS };
    // From below the shortest to above the longest, and never less than a decade.
    const least = Math.max(1e-3, Math.min(...stages.map(({ times }) => times.find((time) => time > 0) ?? 1)));
    const most = Math.max(...stages.map(({ times }) => times.at(-1)!), least);
    const [from, to] = [least / 1.25, Math.max(most * 1.25, least * 10)];
    const x = logarithmic([from, to], [area.left, area.right]);
    drawBar(root, width);
    const powers = decades(from, to, (area.right - area.left) / 52);
    root.append(
      svg(
        'g',
        { class: 'axis' },
        ...powers.map((value) => {
          const at = crisp(x(value));
          return svg('line', { x1: at, x2: at, y1: area.top - 6, y2: area.bottom });
        }),
      ),
    );
    const middleOf = (i: number): number => area.top + (i + 0.5) * tall + (wide ? 0 : 8);
    stages.forEach((stage, i) => drawRow(root, stage, i, middleOf(i), area, x, wide));
    root.append(xAxis(area, x, powers, duration, 'time of a frame (logarithmic)'));
    hit = (left, top) => {
      if (top >= BAR.top && top < BAR.top + BAR.height) {
        let end = 0;
        return stages.find(({ share }) => left < (end += share * width));
      }
      return stages[Math.floor((top - area.top) / tall)];
    };
    return stages
      .map(({ stage, at, share }) => `${stage}: median ${duration(at[2])}, ${percent(share)} of the time`)
      .join('; ');
  }

  const chart = figure({
    id: 'stages',
    title: 'Stage times',
    about:
      'Box: the middle half of the frames; line: 5th to 95th percentile; bar: median; dot: the longest. ' +
      'Numbers: median, and share of the time of all stages. Stages of different frames overlap in a run.',
    height: (width) => FIRST_ROW + AXIS + Math.max(3, stageTimes(state.shown).length) * rowHeight(width),
    draw,
  });
  tooltip(chart.plot, (left, top) => {
    const stage = hit(left, top);
    return (
      stage && {
        title: stage.stage,
        lines: [
          { name: 'median', value: duration(stage.at[2]) },
          { name: '5th to 95th percentile', value: `${duration(stage.at[0])} to ${duration(stage.at[4])}` },
          { name: 'longest', value: duration(stage.times.at(-1)) },
          { name: `sum over ${count(stage.times.length)}`, value: duration(stage.sum) },
          { name: 'share', value: percent(stage.share) },
        ],
      }
    );
  });
  state.onShown(chart.redraw);
  return chart.card;
}
