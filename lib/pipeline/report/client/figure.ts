/** A chart's card: title, legend, and an SVG that is drawn anew when its width or its data changes. */
import { eachFrame, html, svg } from './dom.js';
import type { Scale } from './scale.js';

/** The inner rectangle of a chart. */
export interface Area {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
}

export interface Canvas {
  readonly root: SVGSVGElement;
  readonly width: number;
  readonly height: number;
}

export interface LegendEntry {
  readonly name: string;
  /** the class of its mark */
  readonly mark: string;
}

export interface FigureOptions {
  readonly id: string;
  readonly title: string;
  /** how to read it */
  readonly about: string;
  readonly legend?: readonly LegendEntry[];
  readonly height: (width: number) => number;
  /** Fills the empty SVG; returns what the picture says, for those who can't see it. */
  readonly draw: (canvas: Canvas) => string;
}

export interface Figure {
  readonly card: HTMLElement;
  /** the element about the SVG, which takes the pointer and the keys */
  readonly plot: HTMLElement;
  readonly redraw: () => void;
}

export function figure({ id, title, about, legend = [], height, draw }: FigureOptions): Figure {
  const plot = html('div', { class: 'plot' });
  const card = html(
    'section',
    { class: 'card', id, 'aria-labelledby': `${id}-title` },
    html(
      'header',
      {},
      html('h2', { id: `${id}-title` }, title),
      legend.length > 0 &&
        html(
          'ul',
          { class: 'legend' },
          ...legend.map(({ name, mark }) => html('li', {}, html('span', { class: `mark ${mark}` }), name)),
        ),
    ),
    html('p', { class: 'about' }, about),
    plot,
  );
  let width = 0;
  const paint = (): void => {
    if (width <= 0) return;
    const tall = height(width);
    const root = svg('svg', { width, height: tall, viewBox: `0 0 ${width} ${tall}`, role: 'img' });
    root.setAttribute('aria-label', draw({ root, width, height: tall }));
    plot.replaceChildren(root);
  };
  new ResizeObserver((entries) => {
    const now = Math.floor(entries.at(-1)!.contentRect.width);
    if (now === width) return;
    width = now;
    paint();
  }).observe(plot);
  return { card, plot, redraw: eachFrame(paint) };
}

/** What stands where a chart has nothing to show. */
export function nothing({ root, width, height }: Canvas, words: string): string {
  root.append(svg('text', { class: 'empty', x: width / 2, y: height / 2, 'text-anchor': 'middle' }, words));
  return words;
}

/** Horizontal lines with labels at the left. */
export function yAxis(
  area: Area,
  scale: Scale,
  values: readonly number[],
  label: (value: number) => string,
): SVGGElement {
  return svg(
    'g',
    { class: 'axis' },
    ...values.flatMap((value) => {
      const y = crisp(scale(value));
      return [
        svg('line', { x1: area.left, x2: area.right, y1: y, y2: y }),
        svg('text', { x: area.left - 6, y: y + 4, 'text-anchor': 'end' }, label(value)),
      ];
    }),
  );
}

/** Ticks with labels below, and what they are, with its unit. */
export function xAxis(
  area: Area,
  scale: Scale,
  values: readonly number[],
  label: (value: number) => string,
  name: string,
): SVGGElement {
  return svg(
    'g',
    { class: 'axis' },
    ...values.flatMap((value) => {
      const x = crisp(scale(value));
      return [
        svg('line', { x1: x, x2: x, y1: area.bottom, y2: area.bottom + 4 }),
        svg('text', { x, y: area.bottom + 17, 'text-anchor': 'middle' }, label(value)),
      ];
    }),
    svg('line', {
      class: 'base',
      x1: area.left,
      x2: area.right,
      y1: crisp(area.bottom),
      y2: crisp(area.bottom),
    }),
    svg(
      'text',
      { class: 'axis-name', x: (area.left + area.right) / 2, y: area.bottom + 35, 'text-anchor': 'middle' },
      name,
    ),
  );
}

/** The middle of the pixel, where a line of one pixel is sharp. */
export const crisp = (value: number): number => Math.round(value - 0.5) + 0.5;

/** For paths: no more digits than a screen shows. */
export const px = (value: number): string => String(Math.round(value * 100) / 100);
