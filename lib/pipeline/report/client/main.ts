/** The page: its data is in it, and it asks nobody for more. */
import { APP_ID, META_ID, ROWS_CLASS, type PageMeta, type Row } from '../data.js';
import { columnsOf } from './columns.js';
import { detail } from './detail.js';
import { distanceChart } from './distance-chart.js';
import { button, html, quoted } from './dom.js';
import { failures } from './failures.js';
import { filters } from './filters.js';
import { gallery } from './gallery.js';
import { count } from './format.js';
import { massChart } from './mass-chart.js';
import { stagesChart } from './stages-chart.js';
import { createState, type State } from './state.js';
import { table } from './table.js';
import { tiles } from './tiles.js';
import { weightsChart } from './weights-chart.js';

function header(meta: PageMeta): HTMLElement {
  const { shards } = meta;
  const words =
    meta.kind === 'frames'
      ? `${count(meta.items)} frames`
      : `${count(meta.items)} items` +
        (shards ? `, ${count(shards.finished)} of ${count(shards.total)} shards finished` : '');
  return html(
    'header',
    { class: 'top' },
    html('div', {}, html('h1', {}, quoted(meta.title)), html('p', {}, `attention-bias report · ${words}`)),
    meta.facts.length > 0 &&
      html(
        'details',
        {},
        html('summary', {}, 'About this run'),
        html(
          'dl',
          { class: 'facts' },
          ...meta.facts.map(([name, value]) =>
            html('div', {}, html('dt', {}, quoted(name)), html('dd', {}, quoted(value))),
          ),
        ),
      ),
    ...meta.notes.map((note) => html('p', { class: 'note', role: 'note' }, quoted(note))),
  );
}

/** The rows, as a table or as pictures. */
function frames(state: State): HTMLElement {
  const views = { table: table(state), pictures: gallery(state) };
  const { fields, shown } = filters(state);
  const choices = (['table', 'pictures'] as const).map((name) => {
    const choose = (): void => {
      for (const [other, view] of Object.entries(views)) view.element.hidden = other !== name;
      for (const choice of choices) choice.setAttribute('aria-pressed', String(choice === chosen));
      views[name].update();
    };
    const chosen = button(name === 'table' ? 'Table' : 'Pictures', choose, {
      'aria-pressed': String(name === 'table'),
    });
    return chosen;
  });
  return html(
    'section',
    { class: 'card', id: 'frames', 'aria-labelledby': 'frames-title' },
    html(
      'header',
      {},
      html('h2', { id: 'frames-title' }, 'Frames ', shown),
      state.rows.some(({ pictures }) => pictures) &&
        html('div', { class: 'choice', role: 'group', 'aria-label': 'View' }, ...choices),
    ),
    fields,
    views.table.element,
    views.pictures.element,
  );
}

function start(): void {
  const meta = JSON.parse(document.getElementById(META_ID)!.textContent) as PageMeta;
  const rows: Row[] = [];
  for (const block of document.querySelectorAll(`.${ROWS_CLASS}`)) {
    for (const row of JSON.parse(block.textContent) as Row[]) rows.push(row);
    block.remove(); // its text is needed no more
  }
  const state = createState(rows, { column: columnsOf(rows)[0]!, descending: false });
  const list = frames(state);
  const main = html(
    'main',
    {},
    html(
      'div',
      { class: 'charts' },
      massChart(state),
      distanceChart(state),
      stagesChart(state),
      weightsChart(state),
    ),
    failures(state, () => list.scrollIntoView({ block: 'start' })) ?? '',
    list,
  );
  document
    .getElementById(APP_ID)!
    .replaceChildren(
      header(meta),
      tiles(meta, state),
      html('div', { class: 'columns' }, main, detail(state)),
    );
  state.select(rows.find(({ failure }) => !failure) ?? rows[0], false);
  // What a test measures: everything above has been painted once.
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark('report-painted')));
}

start();
