/**
 * Files of a shard while it is made: written under a temporary name that says whose it is, then renamed when all of the shard's
 * files are whole.
 */
import { createHash, randomUUID } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';

import { writeChunk } from '../formats/atomic.js';
import { ioError } from '../formats/io.js';

/** Smaller writes are gathered to this many bytes. */
const BUFFER_BYTES = 2 ** 18;
const WHAT = 'a file that can be written';

export interface StagedFile {
  /** Adds bytes, which are not kept: their memory is the caller's again when the promise resolves. */
  write(bytes: Uint8Array): Promise<void>;
  /** bytes written */
  readonly size: () => number;
  /** Everything is on the disk, and the file is closed. */
  seal(): Promise<void>;
  /** Gives the sealed file its name, in place of whatever has it. */
  publish(): Promise<void>;
  /** Removes the file, unless it was published. Never rejects. */
  discard(): Promise<void>;
  /** where it is until it is published */
  readonly temporary: string;
}

/**
 * Which process ids mean the same processes here: those of one boot of one machine and, on Linux, of one namespace (two containers
 * may share a host name and have different processes of one number).
 */
function processSpace(): string {
  const read = (of: () => string): string => {
    try {
      return of().trim();
    } catch {
      return '';
    }
  };
  const parts = [
    hostname(),
    read(() => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8')),
    read(() => readlinkSync('/proc/self/ns/pid')),
  ];
  return createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, 12);
}

let space: string | undefined;
const owner = (): string => `${(space ??= processSpace())}-${process.pid}`;

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}

/** The name that a temporary file is for, and whether its process is known to have ended; undefined for any other file. */
export function parseTemporary(name: string): { target: string; abandoned: boolean } | undefined {
  const match = /^\.(.+)\.([0-9a-f]{12})-(\d+)-[0-9a-f]{8}\.tmp$/.exec(name);
  if (!match) return undefined;
  const [, target, where, pid] = match as unknown as [string, string, string, string];
  return { target, abandoned: where === (space ??= processSpace()) && !isAlive(Number(pid)) };
}

/** Begins a file of `folder` that will be called `name`. ERR_IO. */
export async function stageFile(folder: string, name: string, signal?: AbortSignal): Promise<StagedFile> {
  const path = join(folder, name);
  const temporary = join(folder, `.${name}.${owner()}-${randomUUID().slice(0, 8)}.tmp`);
  const fail = (cause: unknown): never => {
    throw ioError(WHAT, path, cause);
  };
  const file = await open(temporary, 'wx').catch(fail);
  const buffer = new Uint8Array(BUFFER_BYTES);
  let buffered = 0;
  let size = 0;
  let open_ = true;
  const flush = async (): Promise<void> => {
    const bytes = buffer.subarray(0, buffered);
    buffered = 0;
    if (bytes.length > 0) await writeChunk(file, bytes, path, signal);
  };
  const close = async (): Promise<void> => {
    if (!open_) return;
    open_ = false;
    await file.close();
  };
  return {
    temporary,
    size: () => size,
    async write(bytes) {
      size += bytes.length;
      if (buffered + bytes.length > BUFFER_BYTES) await flush();
      if (bytes.length >= BUFFER_BYTES) return writeChunk(file, bytes, path, signal);
      buffer.set(bytes, buffered);
      buffered += bytes.length;
    },
    async seal() {
      await flush();
      await file.sync().catch(fail);
      await close().catch(fail);
    },
    async publish() {
      await rename(temporary, path).catch(fail);
    },
    async discard() {
      await close().catch(() => undefined);
      await rm(temporary, { force: true }).catch(() => undefined);
    },
  };
}
