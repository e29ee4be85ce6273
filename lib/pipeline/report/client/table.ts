/** The table of rows. Only those in view are in the document. */
import type { Row } from '../data.js';
import { columnsOf, type Column } from './columns.js';
import { button, eachFrame, html, quoted } from './dom.js';
import type { State } from './state.js';

export const ROW_HEIGHT = 34;
/** Rows that are kept above and below what is in view. */
const SPARE = 12;

const rowId = (row: Row): string => `row-${row.n}`;

function cellOf(row: Row, column: Column): HTMLTableCellElement {
  const cell = html('td', { class: `${column.numeric ? 'number' : ''} ${column.id}` });
  const text = column.text(row);
  if (column.id === 'key') cell.append(quoted(text, { title: text }));
  else if (column.id === 'status')
    cell.append(html('span', { class: row.failure ? 'failed' : 'done' }, quoted(text)));
  else cell.append(text);
  const share = column.bar?.share(row);
  if (share !== undefined) {
    cell.classList.add('bar', column.bar!.sensor);
    cell.style.setProperty('--fraction', String(Math.min(1, Math.max(0, share))));
  }
  return cell;
}

export interface View {
  readonly element: HTMLElement;
  /** Draws again, as when it comes into view. */
  readonly update: () => void;
}

export function table(state: State, columns: readonly Column[] = columnsOf(state.rows)): View {
  const headers = new Map<Column, HTMLTableCellElement>();
  const head = html('tr', { 'aria-rowindex': 1 });
  for (const column of columns) {
    const { sort } = { sort: button(quoted(column.label), () => sortBy(column), { title: column.about }) };
    const header = html(
      'th',
      { scope: 'col', class: `${column.numeric ? 'number' : ''} ${column.id}` },
      sort,
    );
    headers.set(column, header);
    head.append(header);
  }
  const body = html('tbody');
  const grid = html(
    'table',
    { class: 'rows', role: 'grid', tabindex: 0, 'aria-label': 'Frames' },
    html(
      'colgroup',
      {},
      ...columns.map(({ width, id }) => {
        const col = html('col', { class: id });
        col.style.setProperty('width', `${width}px`);
        return col;
      }),
    ),
    html('thead', {}, head),
    body,
  );
  grid.style.setProperty('width', `max(100%, ${columns.reduce((sum, { width }) => sum + width, 0)}px)`);
  const element = html('div', { class: 'table', tabindex: -1 }, grid);

  function sortBy(column: Column): void {
    const { sort } = state;
    const same = sort.column.id === column.id;
    // Numbers are asked for by their greatest, names from A; the place in the manifest from the first.
    const descending = same ? !sort.descending : column.numeric && column.id !== 'index';
    state.setSort({ column, descending });
  }

  const filler = (height: number): HTMLTableRowElement | false => {
    if (height <= 0) return false;
    const cell = html('td', { colspan: columns.length });
    cell.style.setProperty('height', `${height}px`);
    return html('tr', { class: 'filler', 'aria-hidden': 'true' }, cell);
  };

  function draw(): void {
    const rows = state.ordered;
    const first = Math.max(0, Math.floor(element.scrollTop / ROW_HEIGHT) - SPARE);
    const last = Math.min(
      rows.length,
      Math.ceil((element.scrollTop + element.clientHeight) / ROW_HEIGHT) + SPARE,
    );
    const drawn = rows.slice(first, last).map((row, i) => {
      const tr = html(
        'tr',
        {
          id: rowId(row),
          'aria-rowindex': first + i + 2,
          'aria-selected': row === state.selected ? 'true' : 'false',
        },
        ...columns.map((column) => cellOf(row, column)),
      );
      if (row.failure) tr.classList.add('failed');
      tr.addEventListener('click', () => state.select(row));
      return tr;
    });
    const parts = [
      filler(first * ROW_HEIGHT),
      ...drawn,
      filler((rows.length - Math.max(first, last)) * ROW_HEIGHT),
    ];
    body.replaceChildren(...parts.filter((part) => part !== false));
    if (rows.length === 0)
      body.append(
        html('tr', {}, html('td', { class: 'none', colspan: columns.length }, 'No row is like that.')),
      );
    grid.setAttribute('aria-rowcount', String(rows.length + 1));
    mark();
  }

  function mark(): void {
    const { selected } = state;
    for (const row of body.querySelectorAll('[aria-selected="true"]'))
      row.setAttribute('aria-selected', 'false');
    const row = selected && document.getElementById(rowId(selected));
    row?.setAttribute('aria-selected', 'true');
    if (row) grid.setAttribute('aria-activedescendant', row.id);
    else grid.removeAttribute('aria-activedescendant');
  }

  function markSort(): void {
    for (const [column, header] of headers) {
      if (column.id !== state.sort.column.id) header.removeAttribute('aria-sort');
      else header.setAttribute('aria-sort', state.sort.descending ? 'descending' : 'ascending');
    }
  }

  /** Scrolls as little as brings a row into view. */
  function bring(row: Row): void {
    const at = state.ordered.indexOf(row);
    if (at < 0) return;
    const room = element.clientHeight - ROW_HEIGHT; // below the header
    const top = at * ROW_HEIGHT;
    if (top < element.scrollTop) element.scrollTop = top;
    else if (top + ROW_HEIGHT > element.scrollTop + room) element.scrollTop = top + ROW_HEIGHT - room;
  }

  grid.addEventListener('keydown', (event) => {
    if (event.target !== grid) return;
    const rows = state.ordered;
    if (rows.length === 0) return;
    const now = state.selected ? rows.indexOf(state.selected) : -1;
    const page = Math.max(1, Math.floor(element.clientHeight / ROW_HEIGHT) - 2);
    const steps: Readonly<Record<string, number>> = {
      ArrowDown: now + 1,
      ArrowUp: now - 1,
      PageDown: now + page,
      PageUp: now - page,
      Home: 0,
      End: rows.length - 1,
    };
    const next = steps[event.key];
    if (event.key === 'Enter' && now >= 0) {
      state.select(rows[now]);
    } else if (next !== undefined) {
      event.preventDefault();
      state.select(rows[Math.min(rows.length - 1, Math.max(0, next))], false);
    }
  });

  const drawSoon = eachFrame(draw);
  element.addEventListener('scroll', drawSoon, { passive: true });
  new ResizeObserver(drawSoon).observe(element);
  state.onOrdered(() => {
    markSort();
    element.scrollTop = 0;
    drawSoon();
  });
  state.onSelected((row) => {
    if (row) bring(row);
    draw();
  });
  markSort();
  return { element, update: draw };
}
