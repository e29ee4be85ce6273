/**
 * Shards as WebDataset reads them: a tar archive with `<key>.<tensor>.npy` for each tensor of an item and its summary in
 * `<key>.json`, one item after the other. NumPy has no bfloat16: of that dtype an item is one `<key>.safetensors`.
 */
import { pack as openPack } from 'tar-stream';

import { safetensorsHeader } from '../formats/safetensors.js';
import { elementsOf, npyOf, type Elements } from './elements.js';
import type { OpenShardWriter } from './shard-writer.js';
import type { StagedFile } from './staged.js';

/** A writer of a tar archive whose bytes depend on nothing but its entries. */
export interface TarWriter {
  /** Adds a file of these parts. */
  add(name: string, parts: readonly Uint8Array[]): Promise<void>;
  finish(): Promise<void>;
  dispose(): Promise<void>;
}

/** Writes a tar archive to `file`. Errors are the file's. */
export function openTar(file: StagedFile): TarWriter {
  const pack = openPack();
  let failure: { readonly error: unknown } | undefined;
  const written = (async () => {
    try {
      for await (const chunk of pack) await file.write(chunk as Uint8Array);
    } catch (error) {
      failure ??= { error };
    }
  })();
  const check = (): void => {
    if (failure) throw failure.error;
  };
  return {
    async add(name, parts) {
      check();
      const size = parts.reduce((sum, { length }) => sum + length, 0);
      // Everything that could differ between two runs is fixed.
      const header = { name, size, mode: 0o644, mtime: new Date(0), uid: 0, gid: 0, type: 'file' as const };
      await new Promise<void>((resolve) => {
        // A failure of the file ends the archive's stream too, and with it the entry.
        const entry = pack.entry(header, () => {
          resolve();
        });
        entry.on('error', () => {
          resolve();
        });
        for (const part of parts) {
          if (part.length > 0) entry.write(Buffer.from(part.buffer, part.byteOffset, part.byteLength));
        }
        entry.end(undefined);
      });
      check();
    },
    async finish() {
      pack.finalize();
      await written;
      check();
    },
    async dispose() {
      pack.destroy(new Error('given up'));
      await written;
    },
  };
}

/** A tensor's name within a file's name: no path, and nothing that a tar header can't say. */
export const fileName = (tensor: string): string =>
  tensor.replace(/[^\w.-]/gu, (character) => encodeURIComponent(character).replace(/[!'()*]/g, escapeRest));
const escapeRest = (character: string): string => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;

export const openTarShard: OpenShardWriter = ({ file, dtype }) => {
  const tar = openTar(file);
  return {
    async add({ key, tensors, summary }) {
      const elements = Object.entries(tensors).map(([name, tensor]): [string, Elements] => [
        name,
        elementsOf(tensor, dtype),
      ]);
      if (dtype === 'bf16') {
        const { header, order } = safetensorsHeader(
          elements.map(([name, { type, shape, bytes }]) => [name, type, shape, bytes.length]),
        );
        await tar.add(`${key}.safetensors`, [header, ...order.map((i) => elements[i]![1].bytes)]);
      } else {
        for (const [name, element] of elements) await tar.add(`${key}.${fileName(name)}.npy`, npyOf(element));
      }
      await tar.add(`${key}.json`, [new TextEncoder().encode(JSON.stringify(summary))]);
    },
    finish: () => tar.finish(),
    dispose: () => tar.dispose(),
  };
};
