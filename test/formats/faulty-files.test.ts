// Files as disks and networks give them: reads of fewer bytes than were asked for, reads that fail, files that end while they
// are read, and files beyond 4 GiB (sparse: they take no room).
import type * as promises from 'node:fs/promises';
import { open, truncate, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';

import { openNpz, readNpy, readNpz, writeNpy, writeNpz } from '../../lib/formats/npy.js';
import { openSafetensors, writeSafetensors } from '../../lib/formats/safetensors.js';
import { temporaryFolder } from './temporary.js';

/** What a read of a file's handle does: at most so many bytes, and an error from the nth on. */
let faults: { most?: number; failsFrom?: number; onRead?: () => Promise<void> } = {};
let reads = 0;

jest.mock('node:fs/promises', () => {
  const actual = jest.requireActual<typeof promises>('node:fs/promises');
  return {
    ...actual,
    open: async (...args: Parameters<typeof promises.open>) => {
      const file = await actual.open(...args);
      const read = file.read.bind(file) as (...args: unknown[]) => Promise<unknown>;
      Object.defineProperty(file, 'read', {
        value: async (target: Uint8Array, offset: number, length: number, position: number) => {
          ++reads;
          if (reads >= (faults.failsFrom ?? Infinity)) {
            throw Object.assign(new Error('EIO'), { errno: -constants.errno.EIO, code: 'EIO' });
          }
          const result = await read(target, offset, Math.min(length, faults.most ?? Infinity), position);
          await faults.onRead?.();
          return result;
        },
      });
      return file;
    },
  };
});

afterEach(() => {
  faults = {};
});

const tensor = { data: Float32Array.from({ length: 100 }, (_, i) => i), shape: [10, 10] };

const formats = {
  npy: {
    write: (path: string) => writeNpy(path, tensor),
    read: async (path: string) => (await readNpy(path)).data,
  },
  npz: {
    write: (path: string) => writeNpz(path, { tensor }),
    read: async (path: string) => (await readNpz(path)).get('tensor')!.data,
  },
  safetensors: {
    write: (path: string) => writeSafetensors(path, { tensor }),
    read: async (path: string) => {
      await using file = await openSafetensors(path);
      return (await file.read('tensor')).data;
    },
  },
} as const;

describe.each(Object.entries(formats))('%s', (_, { write, read }) => {
  test('reads of fewer bytes than were asked for', async () => {
    await using folder = await temporaryFolder();
    await write(folder.file('x'));
    faults = { most: 7 };
    reads = 0;
    expect(await read(folder.file('x'))).toEqual(tensor.data);
    expect(reads).toBeGreaterThan(50);
  });

  test('a read that fails, at each', async () => {
    await using folder = await temporaryFolder();
    await write(folder.file('x'));
    for (let n = 1; ; ++n) {
      faults = { most: 40, failsFrom: n };
      reads = 0;
      try {
        expect(await read(folder.file('x'))).toEqual(tensor.data);
        expect(n).toBeGreaterThan(3);
        break;
      } catch (error) {
        expect(error).toMatchObject({
          name: 'AttentionBiasError',
          code: 'ERR_IO',
          message: `expected a file that can be read for ${folder.file('x')} but received EIO: i/o error`,
        });
      }
    }
  });

  test('a file that ends while it is read', async () => {
    await using folder = await temporaryFolder();
    await write(folder.file('x'));
    faults = { most: 40, onRead: () => truncate(folder.file('x'), 60) };
    await expect(read(folder.file('x'))).rejects.toMatchObject({
      name: 'AttentionBiasError',
      message: expect.stringMatching(/does not change while it is read|that ends within/) as string,
    });
  });
});

describe('beyond 4 GiB', () => {
  test('safetensors are read by their offsets', async () => {
    await using folder = await temporaryFolder();
    const path = folder.file('x');
    const large = 2 ** 30 + 5; // elements: 4 GiB and 20 bytes
    const entries = {
      large: { dtype: 'F32', shape: [large], data_offsets: [0, 4 * large] },
      last: { dtype: 'F32', shape: [2], data_offsets: [4 * large, 4 * large + 8] },
    };
    const header = Buffer.from(JSON.stringify(entries));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    await writeFile(path, Buffer.concat([length, header]));
    await using written = await open(path, 'r+');
    const at = 8 + header.length + 4 * large;
    await written.write(Buffer.from(Float32Array.of(1.5, -2).buffer), 0, 8, at);
    await using file = await openSafetensors(path);
    expect((await file.read('last')).data).toEqual(Float32Array.of(1.5, -2));
  });

  test('npz is refused before it is read', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('x'), '');
    await truncate(folder.file('x'), 2 ** 32);
    await expect(openNpz(folder.file('x'))).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: `expected at most 4294967295 bytes for ${folder.file('x')} but received 4294967296 bytes`,
    });
  });

  test('a safetensors header beyond its limit is refused before it is read', async () => {
    await using folder = await temporaryFolder();
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(100_000_001n);
    await writeFile(folder.file('x'), length);
    await truncate(folder.file('x'), 200_000_000);
    reads = 0;
    await expect(openSafetensors(folder.file('x'))).rejects.toMatchObject({
      code: 'ERR_FORMAT',
      message: expect.stringContaining('a header of at most 100000000 bytes') as string,
    });
    expect(reads).toBe(1);
  });
});
