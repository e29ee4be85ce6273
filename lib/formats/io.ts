/** Reading files whole, and file errors in the package's own words. */
import { constants, type BigIntStats } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { getSystemErrorMap } from 'node:util';

import { AttentionBiasError, expected } from '../errors.js';

/** One read or write takes at most this many bytes, so that an abort is seen in between and no 2 GiB limit is met. */
export const CHUNK_BYTES = 64 * 2 ** 20;

/** The operating system's own words for an error of node:fs, such as "ENOENT: no such file or directory". */
function systemWords(cause: unknown): string {
  const { errno, message } = Object(cause) as Partial<NodeJS.ErrnoException>;
  const entry = errno === undefined ? undefined : getSystemErrorMap().get(errno);
  return entry ? entry.join(': ') : (message ?? String(cause));
}

/** ERR_IO for an error of node:fs; `what` says what the file should have been, as in "a file that can be opened". */
export function ioError(what: string, path: string, cause: unknown): AttentionBiasError {
  const error = expected('ERR_IO', what, path, systemWords(cause));
  error.cause = cause;
  return error;
}

const passing: ReadonlySet<unknown> = new Set([
  ...['EMFILE', 'ENFILE', 'ENOMEM', 'ENOBUFS', 'EAGAIN', 'EINTR'],
  ...[
    'ESTALE',
    'ETIMEDOUT',
    'ENETDOWN',
    'ENETUNREACH',
    'EHOSTDOWN',
    'EHOSTUNREACH',
    'ENOTCONN',
    'ECONNRESET',
  ],
]);

/**
 * Whether an error is of the machine at this moment and not of the file: too many files are open, the file server does not
 * answer. A file that can't be read for that is there all the same.
 */
export function isPassing(error: unknown): boolean {
  const { code, cause } = Object(error) as { code?: unknown; cause?: unknown };
  return passing.has(code) || passing.has((Object(cause) as { code?: unknown }).code);
}

const full: ReadonlySet<unknown> = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EROFS']);

/** Whether an ERR_IO says that the disk has no room, or takes no files: nothing that passes by itself. */
export const isOfFullDisk = ({ cause }: Error): boolean =>
  full.has((Object(cause) as { code?: unknown }).code);

export function throwIfAborted(signal: AbortSignal | undefined, path: string): void {
  if (signal?.aborted) {
    throw new AttentionBiasError('ERR_ABORTED', `${path}: aborted`, { cause: signal.reason });
  }
}

/** Opens for reading. Never waits for the writer of a named pipe. */
export async function openForReading(path: string): Promise<FileHandle> {
  try {
    // O_NONBLOCK does not exist on Windows.
    return await open(path, constants.O_RDONLY | ((constants.O_NONBLOCK as number | undefined) ?? 0));
  } catch (cause) {
    throw ioError('a file that can be opened', path, cause);
  }
}

/** Gives memory of exactly that size for what `name` calls in errors, or throws ERR_MEMORY. */
export type Allocate = (bytes: number, name: string) => ArrayBuffer;

/** Zero-filled memory, or ERR_MEMORY. */
export function allocate(bytes: number, name: string): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes);
  } catch (cause) {
    const error = expected('ERR_MEMORY', 'a size that fits in memory', name, `${bytes} bytes`);
    error.cause = cause;
    throw error;
  }
}

/** Fills `target` from `position` on, in chunks. Returns the bytes that were there: fewer only at the file's end. */
export async function readInto(
  file: FileHandle,
  path: string,
  target: ArrayBuffer,
  position: number,
  signal?: AbortSignal,
): Promise<number> {
  let done = 0;
  while (done < target.byteLength) {
    throwIfAborted(signal, path);
    const view = new Uint8Array(target, done, Math.min(CHUNK_BYTES, target.byteLength - done));
    let read: number;
    try {
      read = (await file.read(view, 0, view.length, position + done)).bytesRead;
    } catch (cause) {
      throw ioError('a file that can be read', path, cause);
    }
    if (read === 0) break;
    done += read;
  }
  return done;
}

/** What the system says of a regular file; ERR_IO for anything else (a folder, a device, a pipe). */
export async function statRegular(file: FileHandle, path: string): Promise<BigIntStats> {
  let info: BigIntStats;
  try {
    info = await file.stat({ bigint: true });
  } catch (cause) {
    throw ioError('a file that can be read', path, cause);
  }
  if (!info.isFile()) {
    throw expected('ERR_IO', 'a regular file', path, info.isDirectory() ? 'a folder' : 'a device or a pipe');
  }
  return info;
}

/** ERR_IO: the file was written to between two reads. */
export function changedWhileRead(path: string): AttentionBiasError {
  return expected('ERR_IO', 'a file that does not change while it is read', path, 'one that did');
}

/** The whole contents of a regular file; ERR_IO, or ERR_FORMAT when it is longer than `limit` bytes. */
export async function readWhole(path: string, limit: number, signal?: AbortSignal): Promise<ArrayBuffer> {
  await using file = await openForReading(path);
  const size = Number((await statRegular(file, path)).size);
  if (size > limit) throw expected('ERR_FORMAT', `at most ${limit} bytes`, path, `${size} bytes`);
  const contents = allocate(size, path);
  if ((await readInto(file, path, contents, 0, signal)) < size) throw changedWhileRead(path);
  return contents;
}
