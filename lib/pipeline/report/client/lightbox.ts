/** A picture as large as the window. */
import type { PictureKind, Row } from '../data.js';
import { button, html, quoted } from './dom.js';
import { picture } from './pictures.js';

/** Shows it over the page, until a click or Escape. */
function open(row: Row, kind: PictureKind): void {
  const close = (): void => dialog.close();
  const dialog = html(
    'dialog',
    { class: 'lightbox', 'aria-label': row.key },
    picture(row, kind),
    html('p', {}, quoted(row.key), button('Close', close)),
  );
  dialog.addEventListener('click', close);
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

/** A picture that opens large. */
export function openable(row: Row, kind: PictureKind): HTMLElement {
  const label = kind === 'bev' ? 'Enlarge the picture from above' : 'Enlarge the camera pictures';
  return button(picture(row, kind), () => open(row, kind), { class: 'openable', 'aria-label': label });
}
