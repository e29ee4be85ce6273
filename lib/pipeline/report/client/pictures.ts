/** Pictures of frames, decoded when they come into view. Each waits as base64 in an element of its own. */
import { pictureId, type PictureKind, type Row } from '../data.js';
import { html, quoted } from './dom.js';

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

const NAMES = { bev: 'Attention from above', cameras: 'Attention over the camera images' } as const;

/** All cameras side by side, in their order, cut apart: each with its name. */
function tilesOf(strip: HTMLImageElement, cameras: readonly string[], key: string): HTMLElement {
  const [width, height] = [Math.floor(strip.naturalWidth / cameras.length), strip.naturalHeight];
  const tiles = cameras.map((name, i) => {
    const tile = html('canvas', { width, height, role: 'img', 'aria-label': `${name}: ${key}` });
    tile.getContext('2d')?.drawImage(strip, i * width, 0, width, height, 0, 0, width, height);
    return html('span', { class: 'view' }, tile, quoted(name));
  });
  return html('span', { class: 'views' }, ...tiles);
}

async function load(frame: HTMLElement, row: Row, kind: PictureKind): Promise<void> {
  const bytes = await bytesOf(row.n, kind);
  if (!frame.isConnected) return;
  const none = (words: string): void => {
    frame.classList.add('none');
    frame.replaceChildren(html('span', {}, words));
  };
  if (!bytes) {
    none('no picture');
    return;
  }
  const url = URL.createObjectURL(new Blob([bytes], { type: 'image/webp' }));
  const image = html('img', { src: url, alt: `${NAMES[kind]}: ${row.key}`, draggable: 'false' });
  try {
    await image.decode();
    const cameras = row.cameras?.map(([name]) => name) ?? [];
    if (kind === 'cameras' && cameras.length > 0) frame.replaceChildren(tilesOf(image, cameras, row.key));
    else frame.replaceChildren(image);
    frame.classList.add('there');
  } catch {
    none('a picture that does not decode');
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** A place for a picture, which it takes once it is in view. */
export function picture(row: Row, kind: PictureKind): HTMLElement {
  const frame = html('div', { class: `picture ${kind}` });
  if (!row.pictures) {
    frame.classList.add('none');
    frame.append(html('span', {}, 'no picture'));
    return frame;
  }
  waiting.set(frame, () => void load(frame, row, kind));
  observer.observe(frame);
  return frame;
}
