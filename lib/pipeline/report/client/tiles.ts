/** The figures at the top: of what is shown, when it changes. */
import type { PageMeta } from '../data.js';
import { html } from './dom.js';
import { count, digits, duration, percent } from './format.js';
import { mean, quantile, sorted, totalMs } from './statistics.js';
import type { State } from './state.js';

/** A number, and of what it is. */
function rate({ pace }: PageMeta): readonly [string, string] | undefined {
  if (!pace?.perSecond) return undefined;
  const { perSecond, processes } = pace;
  const [value, unit] = perSecond >= 1 ? [perSecond, 'a second'] : [perSecond * 60, 'a minute'];
  return [digits(value), processes > 1 ? `${unit}, mean of ${count(processes)} processes` : unit];
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
    const speed = rate(meta);
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
      ...(speed ? [tile('Rate', ...speed)] : []),
    );
  };
  state.onShown(draw);
  draw();
  return element;
}
