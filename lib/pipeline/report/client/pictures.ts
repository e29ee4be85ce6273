/** Pictures of frames, decoded when they come into view. Each waits as base64 in an element of its own. */
import { pictureId, type PictureKind, type Row } from '../data.js';
import { html } from './dom.js';

const waiting = new WeakMap<Element, () => void>();

const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      waiting.get(target)?.();
    }
  },
  { rootMargin: '120px' },
);

/** The bytes of a picture; undefined where the page has none. The end of a large page may still be on its way. */
async function bytesOf(n: number, kind: PictureKind): Promise<Uint8Array<ArrayBuffer> | undefined> {
  for (;;) {
    const loading = document.readyState === 'loading';
    const element = document.getElementById(pictureId(n, kind));
    // What follows an element says that it is whole.
    if (element && (element.nextSibling || !loading))
      return Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
    if (!loading) return undefined;
    await new Promise(requestAnimationFrame);
  }
}

async function load(frame: HTMLElement, row: Row, kind: PictureKind, alt: string): Promise<void> {
  const bytes = await bytesOf(row.n, kind);
  if (!frame.isConnected) return;
  if (!bytes) {
    frame.classList.add('none');
    frame.replaceChildren(html('span', {}, 'no picture'));
    return;
  }
  const url = URL.createObjectURL(new Blob([bytes], { type: 'image/webp' }));
  const image = html('img', { src: url, alt, decoding: 'async', draggable: 'false' });
  const done = (): void => URL.revokeObjectURL(url);
  image.addEventListener('load', () => {
    frame.style.setProperty('aspect-ratio', `${image.naturalWidth} / ${image.naturalHeight}`);
    done();
  });
  image.addEventListener('error', () => {
    frame.classList.add('none');
    frame.replaceChildren(html('span', {}, 'a picture that does not decode'));
    done();
  });
  frame.replaceChildren(image);
}

const NAMES = { bev: 'Attention from above', cameras: 'Attention over the camera images' } as const;

/** A place for a picture, which it takes once it is in view. */
export function picture(row: Row, kind: PictureKind): HTMLElement {
  const frame = html('div', { class: `picture ${kind}` });
  if (!row.pictures) {
    frame.classList.add('none');
    frame.append(html('span', {}, 'no picture'));
    return frame;
  }
  waiting.set(frame, () => void load(frame, row, kind, `${NAMES[kind]}: ${row.key}`));
  observer.observe(frame);
  return frame;
}
