/**
 * Shards as one safetensors file with a tensor `<key>/<tensor>` for each tensor of each item. Its header comes first and says
 * where every tensor is, so the tensors' bytes wait in files beside it, one for each width of elements (wider ones come first,
 * which keeps all of them aligned), and are copied behind the header in the end: memory does not grow with the shard.
 */
import { open } from 'node:fs/promises';

import { ioError } from '../formats/io.js';
import { safetensorsHeader, type HeaderEntry } from '../formats/safetensors.js';
import { elementsOf, type ElementType } from './elements.js';
import type { OpenShardWriter } from './shard-writer.js';
import type { StagedFile } from './staged.js';

const COPY_BYTES = 2 ** 23;
const widths: Record<ElementType, 4 | 2 | 1> = { F32: 4, I32: 4, F16: 2, BF16: 2, U8: 1 };

async function copy(from: string, to: StagedFile): Promise<void> {
  const file = await open(from).catch((cause: unknown) => {
    throw ioError('a file that can be opened', from, cause);
  });
  try {
    const buffer = new Uint8Array(COPY_BYTES);
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length).catch((cause: unknown) => {
        throw ioError('a file that can be read', from, cause);
      });
      if (bytesRead === 0) return;
      await to.write(buffer.subarray(0, bytesRead));
    }
  } finally {
    await file.close();
  }
}

export const openSafetensorsShard: OpenShardWriter = ({ file, dtype, scratch }) => {
  const entries: HeaderEntry[] = [];
  const data = new Map<number, StagedFile>();
  return {
    async add({ key, tensors }) {
      for (const [name, tensor] of Object.entries(tensors)) {
        const { type, shape, bytes } = elementsOf(tensor, dtype);
        const width = widths[type];
        let part = data.get(width);
        if (!part) data.set(width, (part = await scratch(`width${width}`)));
        entries.push([`${key}/${name}`, type, shape, bytes.length]);
        await part.write(bytes);
      }
    },
    async finish() {
      await file.write(safetensorsHeader(entries).header);
      for (const width of [4, 2, 1]) {
        const part = data.get(width);
        if (!part) continue;
        await part.seal();
        await copy(part.temporary, file);
        await part.discard();
      }
    },
    dispose: () => Promise.resolve(),
  };
};
