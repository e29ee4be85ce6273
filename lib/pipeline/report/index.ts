/** `attention-bias report`: one HTML file that shows a run, and needs nothing but itself. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';

import { expected } from '../../errors.js';
import { writeAtomically } from '../../formats/atomic.js';
import { ioError } from '../../formats/io.js';
import { packageVersion } from '../../version.js';
import type { Row } from './data.js';
import { foldersOfFrames, frameFolders, isFile } from './frame-folders.js';
import { pageOf, type Source } from './page.js';
import { pipelineFolder } from './pipeline-folder.js';

export interface ReportOptions {
  /** folder that `pipeline` or `frame` wrote, or a folder of such of `frame` */
  readonly folder: string;
  /** the HTML file; by default report.html in the folder */
  readonly out?: string | undefined;
  /** frames whose pictures the page holds; where there are more, every so many-th frame has some. Default 2,000 */
  readonly pictures?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ReportSummary {
  readonly out: string;
  /** rows on the page, done and failed */
  readonly items: number;
  readonly failed: number;
  readonly pictures: number;
  readonly bytes: number;
}

const PICTURES = 2000;

async function openSource({ folder, pictures = PICTURES, signal }: ReportOptions): Promise<Source> {
  const info = await stat(folder).catch((cause: unknown) => {
    throw ioError('a folder that can be read', folder, cause);
  });
  if (!info.isDirectory()) throw expected('ERR_IO', 'a folder', folder, 'something else');
  // As evenly as whole numbers go.
  const keeps = (n: number, of: number): boolean =>
    of <= pictures || Math.floor(((n + 1) * pictures) / of) > Math.floor((n * pictures) / of);
  const context = { version: packageVersion(), keeps, signal };
  let source: Source;
  if (await isFile(join(folder, 'run.json'))) {
    source = await pipelineFolder(folder, context);
  } else {
    const folders = await foldersOfFrames(folder);
    if (folders.length === 0)
      throw expected(
        'ERR_FORMAT',
        'a folder that attention-bias pipeline or frame wrote',
        folder,
        'one with neither run.json nor summary.json',
      );
    source = frameFolders(folder, folders, context);
  }
  const { items } = source.meta;
  if (items <= pictures) return source;
  const note = `The page holds pictures of ${pictures} of ${items} frames (--pictures), evenly spread.`;
  return { ...source, meta: { ...source.meta, notes: [...source.meta.notes, note] } };
}

/**
 * Writes the page, whole or not at all. A shard of rows and one picture are in memory at a time, and the stage times of all
 * items.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT (run.json, the lines beside a shard, a tar file), ERR_VALUE, ERR_ABORTED
 */
export async function writeReport(options: ReportOptions): Promise<ReportSummary> {
  const { folder, out = join(folder, 'report.html'), pictures, signal } = options;
  if (pictures !== undefined && !(Number.isInteger(pictures) && pictures >= 0))
    throw expected('ERR_VALUE', 'an integer of at least 0', 'pictures', String(pictures));
  const source = await openSource(options);
  const sums = { items: 0, failed: 0, pictures: 0, bytes: 0 };
  const counted: Source = {
    meta: source.meta,
    async *rows() {
      for await (const rows of source.rows()) {
        sums.items += rows.length;
        sums.failed += rows.filter(({ failure }: Row) => failure).length;
        yield rows;
      }
    },
    async *pictures() {
      for await (const picture of source.pictures()) {
        ++sums.pictures;
        yield picture;
      }
    },
  };
  async function* chunks(): AsyncGenerator<Uint8Array> {
    for await (const chunk of pageOf(counted)) {
      sums.bytes += chunk.byteLength;
      yield chunk;
    }
  }
  await writeAtomically(out, chunks(), { signal });
  return { out, ...sums };
}
