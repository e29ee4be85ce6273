/** Files that are written whole or not at all. */
import { randomUUID } from 'node:crypto';
import { open, readlink, realpath, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';

import { AttentionBiasError, expected } from '../errors.js';
import { CHUNK_BYTES, ioError, throwIfAborted } from './io.js';

const WHAT = 'a file that can be written';

/** Where a file goes, and the permissions of the one that stands there. */
export interface Target {
  readonly path: string;
  readonly mode: number | undefined;
}

const MAX_LINKS = 40;

/**
 * Where a file of this path will stand: links are followed, also one whose target is not there yet. ERR_IO when something
 * other than a regular file is there (renaming over /dev/null would replace it), or when its folder does not exist.
 */
export async function checkTarget(path: string): Promise<Target> {
  let at = path;
  for (let links = 0; ; ++links) {
    try {
      const info = await stat(at);
      if (!info.isFile())
        throw expected('ERR_IO', WHAT, path, info.isDirectory() ? 'a folder' : 'a device or a pipe');
      return { path: await realpath(at), mode: info.mode & 0o7777 };
    } catch (cause) {
      if (cause instanceof AttentionBiasError) throw cause;
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw ioError(WHAT, path, cause);
    }
    // Nothing there, or a link to nothing.
    const link = await readlink(at).catch(() => undefined);
    if (link === undefined || links === MAX_LINKS) break;
    at = resolve(dirname(at), link);
  }
  try {
    return { path: join(await realpath(dirname(at)), basename(at)), mode: undefined };
  } catch (cause) {
    throw ioError('a path in a folder that exists', path, cause);
  }
}

/** Writes a chunk at the file's end; ERR_IO, ERR_ABORTED. `path` names the file in errors. */
export async function writeChunk(
  file: FileHandle,
  bytes: Uint8Array,
  path: string,
  signal?: AbortSignal,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    throwIfAborted(signal, path);
    try {
      done += (await file.write(bytes, done, Math.min(CHUNK_BYTES, bytes.length - done))).bytesWritten;
    } catch (cause) {
      throw ioError(WHAT, path, cause);
    }
  }
}

/**
 * Makes the names of a folder last: without that a renamed file may have its old name again after a power failure. Where folders
 * can't be opened or synced (Windows, some network file systems) their names are left to the system.
 */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r').catch(() => undefined);
  await folder?.sync().catch(() => undefined);
  await folder?.close().catch(() => undefined);
}

/**
 * Writes `chunks` to a temporary file in the folder of `path`, flushes it to the disk, and renames it to `path`, which
 * lasts too. After any failure or abort the temporary file is gone and whatever stood at `path` is untouched. Chunks are taken one at a
 * time and not copied: don't change their memory before the promise settles.
 *
 * @throws AttentionBiasError ERR_IO, ERR_ABORTED; and what iterating `chunks` throws.
 */
export async function writeAtomically(
  path: string,
  chunks: Iterable<ArrayBufferView> | AsyncIterable<ArrayBufferView>,
  options: { readonly signal?: AbortSignal | undefined } = {},
): Promise<void> {
  const { signal } = options;
  const target = await checkTarget(path);
  const temporary = join(dirname(target.path), `.attention-bias-${randomUUID()}.tmp`);
  let file: FileHandle | undefined;
  try {
    throwIfAborted(signal, path);
    file = await open(temporary, 'wx').catch((cause: unknown) => {
      throw ioError(WHAT, path, cause);
    });
    for await (const chunk of chunks) {
      await writeChunk(file, new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength), path, signal);
    }
    try {
      if (target.mode !== undefined) await file.chmod(target.mode);
      await file.sync();
      const written = file;
      file = undefined;
      await written.close();
    } catch (cause) {
      throw ioError(WHAT, path, cause);
    }
    throwIfAborted(signal, path);
    await rename(temporary, target.path).catch((cause: unknown) => {
      throw ioError(WHAT, path, cause);
    });
    await syncFolder(dirname(target.path));
  } catch (error) {
    // The first error is the one to tell.
    await file?.close().catch(() => undefined);
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
}
