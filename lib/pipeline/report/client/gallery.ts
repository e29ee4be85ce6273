/** The rows as pictures from above. Only those in view are in the document. */
import type { Row } from '../data.js';
import { button, eachFrame, html, quoted } from './dom.js';
import { percent } from './format.js';
import { picture } from './pictures.js';
import type { State } from './state.js';
import type { View } from './table.js';

const [LEAST_WIDTH, GAP, CAPTION] = [132, 10, 46];
const SPARE_LINES = 1;

export function gallery(state: State): View {
  const sheet = html('div', { class: 'sheet', role: 'list' });
  const element = html('div', { class: 'gallery', hidden: true }, sheet);
  /** What is in the document, so that pictures which stay are not decoded again. */
  const cards = new Map<Row, HTMLElement>();

  function card(row: Row): HTMLElement {
    const share = html('span', { class: 'share' });
    share.style.setProperty('--share', `${(row.mass?.lidar ?? 0) * 100}%`);
    const caption = row.failure
      ? html('span', { class: 'failed' }, quoted(row.failure.code))
      : html('span', {}, row.mass ? `LiDAR ${percent(row.mass.lidar, 0)}` : row.kind);
    const open = button(picture(row, 'bev'), () => state.select(row), { class: 'card-button' });
    open.append(html('span', { class: 'caption' }, quoted(row.key), caption), row.mass ? share : '');
    return html('div', { role: 'listitem', class: 'frame-card' }, open);
  }

  function draw(): void {
    if (element.hidden) return;
    const rows = state.ordered;
    const width = element.clientWidth - 2 * GAP;
    const columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
    const side = (width - (columns - 1) * GAP) / columns;
    const tall = side + CAPTION + GAP;
    const firstLine = Math.max(0, Math.floor(element.scrollTop / tall) - SPARE_LINES);
    const lastLine = Math.ceil((element.scrollTop + element.clientHeight) / tall) + SPARE_LINES;
    const [first, last] = [firstLine * columns, Math.min(rows.length, lastLine * columns)];
    const wanted = new Set(rows.slice(first, last));
    for (const [row, card] of cards) {
      if (wanted.has(row)) continue;
      card.remove();
      cards.delete(row);
    }
    rows.slice(first, last).forEach((row, i) => {
      const place = first + i;
      let it = cards.get(row);
      if (!it) cards.set(row, (it = card(row)));
      it.setAttribute('aria-setsize', String(rows.length));
      it.setAttribute('aria-posinset', String(place + 1));
      it.classList.toggle('selected', row === state.selected);
      it.style.setProperty('width', `${side}px`);
      it.style.setProperty('height', `${tall - GAP}px`);
      const [left, top] = [(place % columns) * (side + GAP), Math.floor(place / columns) * tall];
      it.style.setProperty('transform', `translate(${left}px, ${top}px)`);
      // In their order, for the keyboard; one that is there already keeps its focus.
      if (sheet.children[i] !== it) sheet.insertBefore(it, sheet.children[i] ?? null);
    });
    sheet.style.setProperty('height', `${Math.ceil(rows.length / columns) * tall}px`);
  }

  const drawSoon = eachFrame(draw);
  element.addEventListener('scroll', drawSoon, { passive: true });
  new ResizeObserver(drawSoon).observe(element);
  state.onOrdered(() => {
    element.scrollTop = 0;
    drawSoon();
  });
  state.onSelected(drawSoon);
  return { element, update: draw };
}
