/** The selected frame: pictures, figures, and what failed. Beside the charts, or a sheet from below on a phone. */
import type { Row } from '../data.js';
import { button, html, quoted, type Child } from './dom.js';
import { count, duration, percent } from './format.js';
import { openable } from './lightbox.js';
import { totalMs } from './statistics.js';
import { COLOURS } from './stages-chart.js';
import type { State } from './state.js';

/** Names and shares with a bar each. */
function bars(title: string, entries: readonly (readonly [string, number, string, string])[]): Child {
  if (entries.length === 0) return false;
  const most = Math.max(...entries.map(([, value]) => value), Number.MIN_VALUE);
  return html(
    'div',
    { class: 'bars' },
    html('h3', {}, title),
    html(
      'dl',
      {},
      ...entries.map(([name, value, words, mark]) => {
        const bar = html('span', { class: `fill ${mark}` });
        bar.style.setProperty('width', `${(value / most) * 100}%`);
        return html(
          'div',
          {},
          html('dt', {}, quoted(name)),
          html('dd', {}, html('span', { class: 'track' }, bar), html('b', {}, words)),
        );
      }),
    ),
  );
}

function facts(row: Row): HTMLElement {
  const entries: readonly (readonly [string, Child])[] = [
    ['File', row.source !== '' && quoted(row.source)],
    ['Place', count(row.index)],
    ['Queries', row.queries !== undefined && count(row.queries)],
    ['On boxes', row.onBoxes !== undefined && count(row.onBoxes)],
    ['Seen by a camera', row.seenByACamera !== undefined && count(row.seenByACamera)],
    ['See no key', row.blind !== undefined && count(row.blind)],
    ['LiDAR points', row.lidarPoints !== undefined && count(row.lidarPoints)],
    [
      'Mean weights',
      row.trust && `LiDAR ${row.trust.lidar.toFixed(3)}, cameras ${row.trust.camera.toFixed(3)}`,
    ],
  ];
  return html(
    'dl',
    { class: 'facts' },
    ...entries.flatMap(([name, value]) =>
      value === false || value === undefined
        ? []
        : [html('div', {}, html('dt', {}, name), html('dd', {}, value))],
    ),
  );
}

function contents(row: Row): Child[] {
  const { failure, mass, cameras = [], ms = {} } = row;
  const total = totalMs(row);
  return [
    failure &&
      html(
        'div',
        { class: 'failure', role: 'note' },
        html('p', {}, html('code', {}, quoted(failure.code)), ' in ', quoted(failure.stage)),
        html('p', {}, quoted(failure.message)),
      ),
    row.pictures && openable(row, 'bev'),
    row.pictures && openable(row, 'cameras'),
    row.pictures &&
      html(
        'p',
        { class: 'about' },
        'Attention by colour, LiDAR points grey, boxes green, queries white, the car red.',
      ),
    mass &&
      bars('Attention mass', [
        ['LiDAR', mass.lidar, percent(mass.lidar), 'lidar'],
        ...(cameras.length > 0
          ? cameras.map(([name, share]) => [name, share, percent(share), 'camera'] as const)
          : [['Cameras', mass.camera, percent(mass.camera), 'camera'] as const]),
      ]),
    bars(
      total === undefined ? 'Time' : `Time: ${duration(total)}`,
      Object.entries(ms)
        .filter(([stage]) => stage !== 'total')
        .map(([stage, time], i) => [stage, time, duration(time), `stage-${i % COLOURS}`]),
    ),
    facts(row),
  ];
}

export function detail(state: State): HTMLElement {
  const title = html('h2', { id: 'detail-title', tabindex: -1 });
  const body = html('div', { class: 'detail-body' });
  const step = (by: number): void => {
    const rows = state.ordered;
    if (rows.length === 0) return;
    const now = state.selected ? rows.indexOf(state.selected) : -1;
    state.select(rows[Math.min(rows.length - 1, Math.max(0, now + by))]);
  };
  const close = (): void => element.classList.remove('open');
  const element = html(
    'aside',
    { class: 'card detail', 'aria-labelledby': 'detail-title' },
    html(
      'header',
      {},
      title,
      html(
        'div',
        { class: 'buttons' },
        button('‹', () => step(-1), { 'aria-label': 'Previous in the table' }),
        button('›', () => step(1), { 'aria-label': 'Next in the table' }),
        button('×', close, { 'aria-label': 'Close', class: 'close' }),
      ),
    ),
    body,
  );
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') close();
  });
  const draw = (row: Row | undefined, chosen: boolean): void => {
    title.replaceChildren(row ? quoted(row.key, { title: row.key }) : 'No frame is selected');
    body.replaceChildren(
      ...(row
        ? contents(row)
            .filter((child) => child !== false && child !== undefined && child !== null)
            .map((child) => (typeof child === 'number' ? String(child) : child))
        : []),
    );
    body.scrollTop = 0;
    if (chosen) element.classList.add('open');
  };
  state.onSelected(draw);
  draw(state.selected, false);
  return element;
}
