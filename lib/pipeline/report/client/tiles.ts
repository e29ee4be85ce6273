/** The figures at the top: of what is shown, when it changes. */
import type { PageMeta } from '../data.js';
import { html } from './dom.js';
import { count, digits, duration, percent } from './format.js';
import { mean, quantile, sorted, totalMs } from './statistics.js';
import type { State } from './state.js';

function rate({ busyMs, processes }: PageMeta, items: number): string | undefined {
  if (!busyMs || items === 0) return undefined;
  const perSecond = (items / busyMs) * 1000;
  const many = processes !== undefined && processes > 1 ? ` on each of ${processes}` : '';
  return perSecond >= 1
    ? `${digits(perSecond)} a second${many}`
    : `${digits(perSecond * 60)} a minute${many}`;
}

export function tiles(meta: PageMeta, state: State): HTMLElement {
  const element = html('dl', { class: 'tiles' });
  const tile = (name: string, value: string, more?: string, mark = ''): HTMLElement =>
    html(
      'div',
      { class: `tile ${mark}` },
      html('dt', {}, name),
      html('dd', {}, value, html('small', {}, more)),
    );
  const draw = (): void => {
    const { rows, shown } = state;
    const failed = shown.filter(({ failure }) => failure).length;
    const masses = shown.flatMap(({ mass }) => (mass ? [mass] : []));
    const times = sorted(shown.flatMap((row) => totalMs(row) ?? []));
    const all = shown.length === rows.length ? '' : ` of ${count(rows.length)}`;
    const speed = rate(meta, rows.length);
    element.replaceChildren(
      tile(
        rows.some(({ kind }) => kind === 'job') ? 'Items' : 'Frames',
        count(shown.length),
        all || undefined,
      ),
      tile(
        'Failed',
        count(failed),
        failed > 0 ? percent(failed / shown.length) : undefined,
        failed > 0 ? 'bad' : '',
      ),
      tile(
        'On LiDAR',
        percent(masses.length ? mean(masses.map(({ lidar }) => lidar)) : NaN),
        'of the attention',
        'lidar',
      ),
      tile(
        'On cameras',
        percent(masses.length ? mean(masses.map(({ camera }) => camera)) : NaN),
        'of the attention',
        'camera',
      ),
      tile(
        'Time a frame',
        duration(quantile(times, 0.5)),
        times.length ? `median; 95th ${duration(quantile(times, 0.95))}` : undefined,
      ),
      ...(speed === undefined
        ? []
        : [tile('Rate', speed.replace(/ (a|on) .*/, ''), speed.replace(/^\S+ /, ''))]),
    );
  };
  state.onShown(draw);
  draw();
  return element;
}
