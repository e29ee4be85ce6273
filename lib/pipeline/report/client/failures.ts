/** What failed, alike failures together; a click shows those rows. */
import { button, html, quoted } from './dom.js';
import { count } from './format.js';
import { failureGroups } from './statistics.js';
import type { State } from './state.js';

/** Groups that are listed; the rest are in the table. */
const MOST = 50;

export function failures(state: State, reveal: () => void): HTMLElement | undefined {
  const groups = failureGroups(state.rows);
  if (groups.length === 0) return undefined;
  const rows = groups.slice(0, MOST).map((group) =>
    html(
      'tr',
      {},
      html('td', { class: 'number' }, count(group.rows.length)),
      html('td', {}, html('code', {}, quoted(group.code))),
      html('td', {}, quoted(group.stage)),
      html('td', { class: 'message' }, quoted(group.message)),
      html(
        'td',
        {},
        button(
          'Show',
          () => {
            state.setFilter({ failure: group.id });
            state.select(group.rows[0]);
            reveal();
          },
          { 'aria-label': `Show the ${group.rows.length} with ${group.code} in ${group.stage}` },
        ),
      ),
    ),
  );
  return html(
    'section',
    { class: 'card', id: 'failures', 'aria-labelledby': 'failures-title' },
    html('header', {}, html('h2', { id: 'failures-title' }, 'Failures')),
    html(
      'div',
      { class: 'scroll' },
      html(
        'table',
        { class: 'failures' },
        html(
          'thead',
          {},
          html(
            'tr',
            {},
            ...['Count', 'Code', 'Stage', 'Message', ''].map((name) => html('th', { scope: 'col' }, name)),
          ),
        ),
        html('tbody', {}, ...rows),
      ),
    ),
    groups.length > MOST &&
      html('p', { class: 'about' }, `and ${count(groups.length - MOST)} kinds more, in the table`),
  );
}
