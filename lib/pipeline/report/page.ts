/** The page's HTML, as it is written: rows first, then the code that shows them, then the pictures. */
import { createHash } from 'node:crypto';

import { APP_ID, META_ID, pictureId, ROWS_CLASS, type PageMeta, type PictureKind, type Row } from './data.js';
import { pageScript } from './script.js';
import { STYLE } from './style.js';

export interface Picture {
  /** the place of its row */
  readonly n: number;
  readonly kind: PictureKind;
  /** WebP */
  readonly bytes: Uint8Array;
}

/** What a page is made of; rows and pictures are asked for once each, in this order. */
export interface Source {
  readonly meta: PageMeta;
  readonly rows: () => AsyncIterable<readonly Row[]>;
  readonly pictures: () => AsyncIterable<Picture>;
}

/** What sources need beside their folder. */
export interface SourceContext {
  /** of this package */
  readonly version: string;
  /** whether the page has pictures of the n-th of so many frames */
  readonly keeps: (n: number, of: number) => boolean;
  readonly signal?: AbortSignal | undefined;
}

/** JSON that no HTML parser sees an end of a script in. */
const scriptJson = (value: unknown): string => JSON.stringify(value).replace(/</g, '\\u003c');

const ENTITIES: Readonly<Record<string, string>> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };

const escaped = (text: string): string => text.replace(/[&<>"]/g, (character) => ENTITIES[character]!);

const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/**
 * Nothing is fetched from anywhere, and no script or style runs but the page's own two: even markup that got into the page
 * would do nothing.
 */
const policy = (style: string, script: string): string =>
  `default-src 'none'; img-src blob: data:; style-src ${hashOf(style)}; script-src ${hashOf(script)}; ` +
  "base-uri 'none'; form-action 'none'";

const head = (meta: PageMeta, script: string): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy(STYLE, script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<meta name="generator" content="attention-bias ${escaped(meta.version)}">
<link rel="icon" href="data:,">
<title>${escaped(meta.title)} · attention-bias report</title>
<style>${STYLE}</style>
</head>
<body>
<noscript>This page shows its data by JavaScript, which is in it: nothing is loaded.</noscript>
<div id="${APP_ID}"></div>
<script type="application/json" id="${META_ID}">${scriptJson(meta)}</script>
`;

/** The bytes of the page, part after part. */
export async function* pageOf(source: Source): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  const script = await pageScript();
  if (/<\/script|<!--/i.test(script) || /<\/style/i.test(STYLE))
    throw new Error('code that would end its element');
  yield encoder.encode(head(source.meta, script));
  for await (const rows of source.rows())
    yield encoder.encode(
      `<script type="application/json" class="${ROWS_CLASS}">${scriptJson(rows)}</script>\n`,
    );
  yield encoder.encode(`<script>${script}</script>\n`);
  for await (const { n, kind, bytes } of source.pictures()) {
    const base64 = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64');
    yield encoder.encode(`<script type="text/plain" id="${pictureId(n, kind)}">${base64}</script>\n`);
  }
  yield encoder.encode('</body>\n</html>\n');
}
