/** The one tooltip of the page: it follows the pointer over charts. What it says is also in their labels. */
import { html, quoted } from './dom.js';

/** A line of a tooltip: a name and a value, in the colour of a class. */
export interface Line {
  readonly name: string;
  readonly value: string;
  readonly mark?: string;
}

export interface Tip {
  readonly title: string;
  readonly lines: readonly Line[];
}

const element = html('div', { class: 'tip', 'aria-hidden': 'true', hidden: true });

function show({ title, lines }: Tip, x: number, y: number): void {
  if (!element.isConnected) document.body.append(element);
  element.replaceChildren(
    quoted(title, { class: 'tip-title' }),
    ...lines.map(({ name, value, mark }) =>
      html(
        'div',
        {},
        html('span', { class: `mark ${mark ?? ''}` }),
        html('span', {}, name),
        html('b', {}, value),
      ),
    ),
  );
  element.hidden = false;
  const { width, height } = element.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
  element.style.setProperty('left', `${Math.max(4, left)}px`);
  element.style.setProperty('top', `${Math.max(4, Math.min(y + 16, innerHeight - height - 4))}px`);
}

/** Shows what `at` says of the pointer's place in `target`, in pixels from its top left. */
export function tooltip(target: Element, at: (x: number, y: number) => Tip | undefined): void {
  target.addEventListener('pointermove', (event) => {
    const { clientX, clientY } = event as PointerEvent;
    const box = target.getBoundingClientRect();
    const tip = at(clientX - box.left, clientY - box.top);
    if (tip) show(tip, clientX, clientY);
    else element.hidden = true;
  });
  for (const type of ['pointerleave', 'pointercancel'])
    target.addEventListener(type, () => (element.hidden = true));
}
