import { appendFile, mkdir, open, readFile, symlink, truncate, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import fc from 'fast-check';

import { AttentionBiasError } from '../../lib/errors.js';
import { allocate } from '../../lib/formats/io.js';
import { openSafetensors, parseSafetensorsHeader, writeSafetensors } from '../../lib/formats/safetensors.js';
import { temporaryFolder } from './temporary.js';

const MiB = 2 ** 20;
const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A file with this header and so many bytes of data. */
function file(
  header: string | Uint8Array,
  data: Uint8Array = new Uint8Array(0),
  length?: bigint,
): Uint8Array {
  const json = typeof header === 'string' ? encode(header) : header;
  const start = Buffer.alloc(8);
  start.writeBigUInt64LE(length ?? BigInt(json.length));
  return Buffer.concat([start, json, data]);
}

const entry = (dtype: string, shape: unknown, offsets: unknown): string =>
  JSON.stringify({ dtype, shape, data_offsets: offsets });

/** The message of the ERR_FORMAT with which a file is refused. */
async function refusal(contents: Uint8Array): Promise<string> {
  await using folder = await temporaryFolder();
  await writeFile(folder.file('x'), contents);
  try {
    await using opened = await openSafetensors(folder.file('x'));
    throw new Error(`accepted, with ${[...opened.tensors.keys()].join(', ')}`);
  } catch (error) {
    expect(error).toMatchObject({ name: 'AttentionBiasError', code: 'ERR_FORMAT' });
    const { message } = error as Error;
    expect(message).not.toContain('\n');
    return message.replaceAll(folder.file('x'), 'FILE');
  }
}

const sample = {
  f: { data: Float32Array.of(1.5, -0, NaN, Infinity, 1e-45, 3), shape: [2, 3] },
  i: { data: Int32Array.of(-(2 ** 31), 7), shape: [2, 1] },
  u: { data: Uint8Array.of(1, 2, 255), shape: [3] },
  'scalar "é" \u{1f600}': { data: Float32Array.of(4), shape: [] },
  empty: { data: new Float32Array(0), shape: [3, 0] },
};

describe('writeSafetensors and openSafetensors', () => {
  test('give back what was written, bit for bit', async () => {
    await using folder = await temporaryFolder();
    const path = folder.file('x.safetensors');
    await writeSafetensors(path, sample, { metadata: { made: 'by a test', '': 'é' } });
    expect(await folder.names()).toEqual(['x.safetensors']);
    await using opened = await openSafetensors(path);
    expect(opened.metadata).toEqual(
      new Map([
        ['made', 'by a test'],
        ['', 'é'],
      ]),
    );
    expect([...opened.tensors.keys()].sort()).toEqual(Object.keys(sample).sort());
    for (const [name, { data, shape }] of Object.entries(sample)) {
      const read = await opened.read(name);
      expect(read.shape).toEqual(shape);
      expect(Buffer.from(read.data.buffer)).toEqual(Buffer.from(data.buffer));
      expect(Object.prototype.toString.call(read.data)).toBe(Object.prototype.toString.call(data));
    }
  });

  test('any tensors', async () => {
    await using folder = await temporaryFolder();
    const tensor = fc.oneof(
      fc.float32Array({ maxLength: 20 }),
      fc.int32Array({ maxLength: 20 }),
      fc.uint8Array({ maxLength: 20 }),
    );
    const names = fc
      .string({ unit: 'grapheme' })
      .filter((name) => name !== '__metadata__' && name !== '__proto__');
    await fc.assert(
      fc.asyncProperty(fc.dictionary(names, tensor, { noNullPrototype: true }), async (arrays) => {
        const tensors = Object.fromEntries(
          Object.entries(arrays).map(([name, data]) => [name, { data, shape: [data.length] }]),
        );
        await writeSafetensors(folder.file('x'), tensors);
        await using opened = await openSafetensors(folder.file('x'));
        expect(opened.tensors.size).toBe(Object.keys(arrays).length);
        for (const [name, data] of Object.entries(arrays))
          expect((await opened.read(name)).data).toEqual(data);
      }),
      { numRuns: 50 },
    );
  });

  test('the header is padded with spaces and the data is aligned', async () => {
    await using folder = await temporaryFolder();
    await writeSafetensors(folder.file('x'), sample);
    const contents = await readFile(folder.file('x'));
    const length = Number(contents.readBigUInt64LE(0));
    expect(length % 8).toBe(0);
    const header = contents.subarray(8, 8 + length).toString();
    expect(header).toMatch(/^\{.*\} *$/);
    const { u } = JSON.parse(header) as { u: { data_offsets: [number, number] } };
    expect(8 + length + u.data_offsets[1]).toBe(contents.length); // the narrow one comes last
  });

  test('what can not be written', async () => {
    await using folder = await temporaryFolder();
    const data = new Float32Array(6);
    const write = (tensors: object) => writeSafetensors(folder.file('x'), tensors as typeof sample);
    await expect(write({ a: { data, shape: [2, 2] } })).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    await expect(write({ a: { data, shape: [2.4, 2.5] } })).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    await expect(write({ a: { data: new Float64Array(1), shape: [1] } })).rejects.toMatchObject({
      code: 'ERR_DTYPE',
    });
    await expect(write({ __metadata__: { data, shape: [6] } })).rejects.toMatchObject({ code: 'ERR_VALUE' });
    expect(await folder.names()).toEqual([]);
  });

  test('bfloat16 comes back bit for bit, after what is wider', async () => {
    await using folder = await temporaryFolder();
    const bits = { data: Uint16Array.of(0x3f80, 0xff80, 0x7fc1), shape: [3] };
    const floats = { data: Float32Array.of(1.5), shape: [1] };
    await writeSafetensors(folder.file('x'), { bits, floats });
    await using opened = await openSafetensors(folder.file('x'));
    expect(opened.tensors.get('bits')).toEqual({ dtype: 'BF16', shape: [3], offsets: [4, 10] });
    expect(await opened.read('bits')).toEqual({ ...bits, dtype: 'bfloat16' });
    expect(await opened.read('floats')).toEqual({ ...floats, dtype: 'float32' });
  });

  test('tensors in any order, at odd offsets, next to others of dtypes that are not read', async () => {
    await using folder = await temporaryFolder();
    const values = Float32Array.of(1, 2);
    const data = Buffer.concat([
      Buffer.of(9),
      Buffer.from(values.buffer),
      Buffer.alloc(4),
      Buffer.from([0, 0x3c, 0, 0xfc]),
    ]);
    const header = `{"h":${entry('F16', [2], [13, 17])},"m":${entry('BOOL', [1], [0, 1])},
      "new":${entry('F8_NEW', [3], [9, 13])},"v":${entry('F32', [2], [1, 9])},"none":${entry('I64', [0], [9, 9])}}`;
    await writeFile(folder.file('x'), file(header, data));
    await using opened = await openSafetensors(folder.file('x'));
    expect(opened.tensors.get('new')).toEqual({ dtype: 'F8_NEW', shape: [3], offsets: [9, 13] });
    expect(await opened.read('v')).toEqual({ data: values, shape: [2], dtype: 'float32' });
    expect(await opened.read('m')).toEqual({ data: Uint8Array.of(9), shape: [1], dtype: 'uint8' });
    expect(await opened.readFloat32('h')).toEqual({
      data: Float32Array.of(1, -Infinity),
      shape: [2],
      dtype: 'float32',
    });
    await expect(opened.read('h')).rejects.toMatchObject({
      code: 'ERR_DTYPE',
      message: expect.stringMatching(/F32, I32, U8, BOOL or BF16 for .* "h" but received F16$/) as string,
    });
    await expect(opened.readFloat32('new')).rejects.toMatchObject({ code: 'ERR_DTYPE' });
    await expect(opened.read('w')).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  test('readFloat32 converts half, bfloat16 and double', async () => {
    await using folder = await temporaryFolder();
    const halves = Uint16Array.from({ length: 65536 }, (_, i) => i);
    const doubles = Float64Array.of(0.1, -1e300, NaN);
    const header = `{"h":${entry('F16', [65536], [0, 131072])},"b":${entry('BF16', [65536], [131072, 262144])},"d":${entry('F64', [3], [262144, 262168])}}`;
    await writeFile(
      folder.file('x'),
      file(
        header,
        Buffer.concat([Buffer.from(halves.buffer), Buffer.from(halves.buffer), Buffer.from(doubles.buffer)]),
      ),
    );
    await using opened = await openSafetensors(folder.file('x'));
    const half = (await opened.readFloat32('h')).data;
    const bfloat = (await opened.readFloat32('b')).data;
    expect((await opened.readFloat32('d')).data).toEqual(Float32Array.of(0.1, -Infinity, NaN));
    const wrong: string[] = [];
    for (let i = 0; i < 65536; ++i) {
      const sign = i & 0x8000 ? -1 : 1;
      const exponent = (i >> 10) & 31;
      const fraction = (i & 1023) / 1024;
      const special = fraction === 0 ? sign * Infinity : NaN;
      const value =
        exponent === 31 ? special : sign * (exponent ? 1 + fraction : fraction) * 2 ** ((exponent || 1) - 15);
      if (!Object.is(half[i], value)) wrong.push(`F16 ${i}`);
      const upper = Buffer.alloc(4);
      upper.writeUInt16LE(i, 2);
      if (!Object.is(bfloat[i], upper.readFloatLE(0))) wrong.push(`BF16 ${i}`);
    }
    expect(wrong).toEqual([]);
  });

  test('a tensor larger than one read', async () => {
    await using folder = await temporaryFolder();
    const data = new Uint8Array(65 * MiB).map((_, i) => (i * 2654435761) >>> 24);
    await writeSafetensors(folder.file('x'), {
      odd: { data: Uint8Array.of(1), shape: [1] },
      data: { data, shape: [data.length] },
    });
    await using opened = await openSafetensors(folder.file('x'));
    expect(Buffer.compare((await opened.read('data')).data as Uint8Array, data)).toBe(0);
    const aborted = { signal: AbortSignal.abort() };
    await expect(opened.read('data', aborted)).rejects.toMatchObject({ code: 'ERR_ABORTED' });
  });

  test('only what is asked for is read: a 64 GiB file of holes', async () => {
    await using folder = await temporaryFolder();
    const bytes = 2 ** 36;
    const header = encode(
      `{"huge":${entry('U8', [bytes], [0, bytes])},"v":${entry('F32', [1], [bytes, bytes + 4])}}`,
    );
    const handle = await open(folder.file('x'), 'w');
    await handle.write(file(header));
    await handle.write(Buffer.from(Float32Array.of(42).buffer), 0, 4, 8 + header.length + bytes);
    await handle.close();
    await using opened = await openSafetensors(folder.file('x'));
    expect((await opened.read('v')).data).toEqual(Float32Array.of(42));
  });

  test('a size that does not fit in memory is ERR_MEMORY', () => {
    const message = 'expected a size that fits in memory for x but received 9007199254740991 bytes';
    expect(() => allocate(Number.MAX_SAFE_INTEGER, 'x')).toThrow(
      expect.objectContaining({ code: 'ERR_MEMORY', message }) as Error,
    );
  });

  test('a file that changes after it was opened', async () => {
    for (const change of [
      (path: string) => truncate(path, 200),
      (path: string) => appendFile(path, 'x'),
      (path: string) => utimes(path, 1, 1),
    ]) {
      await using folder = await temporaryFolder();
      await writeSafetensors(folder.file('x'), { v: { data: new Float32Array(100), shape: [100] } });
      await using opened = await openSafetensors(folder.file('x'));
      await opened.read('v');
      await change(folder.file('x'));
      await expect(opened.read('v')).rejects.toMatchObject({
        code: 'ERR_IO',
        message: expect.stringContaining('does not change') as string,
      });
    }
  });

  test('what can not be opened is ERR_IO, with the path and the cause', async () => {
    await using folder = await temporaryFolder();
    await mkdir(folder.file('folder'));
    await writeFile(folder.file('file'), '');
    await symlink('folder', folder.file('link'));
    await symlink('link2', folder.file('link2'));
    for (const [name, cause] of [
      ['missing', 'ENOENT: no such file or directory'],
      [join('file', 'x'), 'ENOTDIR: not a directory'],
      ['folder', 'a folder'],
      ['link', 'a folder'],
      ['link2', 'ELOOP: too many symbolic links encountered'],
    ] as const) {
      const message = expect.stringMatching(
        new RegExp(`for ${folder.file(name)} but received ${cause}$`),
      ) as string;
      await expect(openSafetensors(folder.file(name))).rejects.toMatchObject({ code: 'ERR_IO', message });
    }
    await expect(openSafetensors('/dev/zero')).rejects.toMatchObject({ code: 'ERR_IO' });
  });
});

describe('a bad file is ERR_FORMAT', () => {
  const eight = new Uint8Array(8);
  const v = entry('F32', [2], [0, 8]);
  test.each<[string, Uint8Array, RegExp]>([
    ['empty', new Uint8Array(0), /at least 8 bytes for FILE but received 0$/],
    ['7 bytes', new Uint8Array(7), /at least 8 bytes for FILE but received 7$/],
    ['no header', file(''), /JSON for the header of FILE but received its end/],
    [
      'a length past the end',
      file('{}', eight, 11n),
      /ends within the file's 18 for FILE but received a header length of 11$/,
    ],
    ['a length of 2^60', file('{}', eight, 2n ** 60n), /a header length of 1152921504606846976$/],
    ['a length of 2^64 − 1', file('{}', eight, 2n ** 64n - 1n), /a header length of 18446744073709551615$/],
    [
      'a header over 100 MB',
      file(Buffer.alloc(100_000_001, 0x20)),
      /at most 100000000 bytes .* a header length of 100000001$/,
    ],
    ['not JSON', file('{"v":'), /JSON for the header of FILE but received its end at line 1, column 6$/],
    ['not UTF-8', file(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /JSON in UTF-8 for the header of FILE/],
    ['a list', file('[]'), /a JSON object for the header of FILE but received \[\]$/],
    ['zeros after the header', file('{}\0\0'), /JSON for the header of FILE/],
    ['a duplicate name', file(`{"v":${v},"v":${v}}`, eight), /each field once .* "v" a second time/],
    [
      'an escaped duplicate',
      file(`{"v":${v},"\\u0076":${v}}`, eight),
      /each field once .* "v" a second time/,
    ],
    [
      'a duplicate field',
      file('{"v":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', eight),
      /each field once/,
    ],
    ['two lots of metadata', file('{"__metadata__":{},"__metadata__":{}}'), /each field once/],
    [
      'metadata of numbers',
      file('{"__metadata__":{"a":1}}'),
      /a string for FILE __metadata__ "a" but received 1$/,
    ],
    [
      'metadata that is no object',
      file('{"__metadata__":[]}'),
      /an object of strings for FILE __metadata__ but received \[\]$/,
    ],
    ['a tensor that is no object', file('{"v":null}'), /an object for FILE "v" but received null$/],
    [
      'no dtype',
      file('{"v":{"shape":[2],"data_offsets":[0,8]}}', eight),
      /name of a dtype for FILE "v" dtype but received nothing$/,
    ],
    [
      'a dtype of another type',
      file('{"v":{"dtype":["F32"],"shape":[2],"data_offsets":[0,8]}}', eight),
      /FILE "v" dtype/,
    ],
    [
      'no shape',
      file('{"v":{"dtype":"F32","data_offsets":[0,8]}}', eight),
      /for FILE "v" shape but received nothing$/,
    ],
    [
      'a negative size',
      file(`{"v":${entry('F32', [-2], [0, 8])}}`, eight),
      /for FILE "v" shape but received \[-2\]$/,
    ],
    ['a fractional size', file(`{"v":${entry('F32', [0.5], [0, 8])}}`, eight), /"v" shape/],
    ['a text for a size', file(`{"v":${entry('F32', ['2'], [0, 8])}}`, eight), /"v" shape/],
    ['a size of 2^60', file(`{"v":${entry('F32', [2 ** 60], [0, 8])}}`, eight), /"v" shape/],
    ['a product of 2^80', file(`{"v":${entry('F32', [2 ** 40, 2 ** 40], [0, 8])}}`, eight), /"v" shape/],
    [
      '2^40 elements',
      file(`{"v":${entry('F32', [2 ** 40], [0, 8])}}`, eight),
      /4398046511104 bytes of F32 .* 8 bytes, \[0,8\]$/,
    ],
    ['2^53 − 1 elements', file(`{"v":${entry('F64', [2 ** 53 - 1], [0, 8])}}`, eight), /data_offsets/],
    [
      'no offsets',
      file('{"v":{"dtype":"F32","shape":[2]}}', eight),
      /for FILE "v" data_offsets but received nothing$/,
    ],
    [
      'three offsets',
      file(`{"v":${entry('F32', [2], [0, 8, 8])}}`, eight),
      /"v" data_offsets but received \[0,8,8\]$/,
    ],
    [
      'inverted offsets',
      file(`{"v":${entry('F32', [2], [8, 0])}}`, eight),
      /"v" data_offsets but received \[8,0\]$/,
    ],
    [
      'negative offsets',
      file(`{"v":${entry('F32', [2], [-8, 0])}}`, eight),
      /"v" data_offsets but received \[-8,0\]$/,
    ],
    ['offsets of other types', file(`{"v":${entry('F32', [2], [0, '8'])}}`, eight), /"v" data_offsets/],
    [
      'an end past the file',
      file(`{"v":${entry('F32', [3], [0, 12])}}`, eight),
      /0 ≤ begin ≤ end ≤ 8.* for FILE "v" data_offsets but received \[0,12\]$/,
    ],
    [
      'offsets that do not match the shape',
      file(`{"v":${entry('F32', [1], [0, 8])}}`, eight),
      /4 bytes of F32 \[1\] for FILE "v" data_offsets but received 8 bytes, \[0,8\]$/,
    ],
    ['half a byte', file(`{"v":${entry('F4', [15], [0, 8])}}`, eight), /7.5 bytes of F4/],
    [
      'an overlap',
      file(`{"v":${v},"w":${entry('F32', [1], [4, 8])}}`, eight),
      /offsets without overlaps for FILE "w" data_offsets but received \[4, 8\] after "v", which ends at 8$/,
    ],
    ['twice the same bytes', file(`{"v":${v},"w":${v}}`, eight), /without overlaps/],
    [
      'a gap',
      file(`{"v":${entry('F32', [1], [0, 4])},"w":${entry('F32', [1], [8, 12])}}`, new Uint8Array(12)),
      /without gaps for FILE "w"/,
    ],
    [
      'a gap at the start',
      file(`{"v":${entry('F32', [1], [4, 8])}}`, eight),
      /without gaps for FILE "v" .* after the header, which ends at 0$/,
    ],
    [
      'an empty tensor inside another',
      file(`{"v":${v},"w":${entry('F32', [0], [4, 4])}}`, eight),
      /without overlaps/,
    ],
    [
      'bytes after the last tensor',
      file(`{"v":${v}}`, new Uint8Array(9)),
      /8 bytes of tensors for FILE but received 9$/,
    ],
  ])('%s', async (_, contents, message) => {
    expect(await refusal(contents)).toMatch(message);
  });

  test('cut at any byte', async () => {
    await using folder = await temporaryFolder();
    await writeSafetensors(folder.file('x'), sample, { metadata: { a: 'b' } });
    const contents = await readFile(folder.file('x'));
    for (let length = 0; length < contents.length; ++length) {
      expect(await refusal(contents.subarray(0, length))).toMatch(
        /^expected .+ for .*FILE.* but received .+$/,
      );
    }
  });

  test('any mutation of a valid header is parsed or refused', () => {
    const header = `{"__metadata__":{"a":"b"},"x":${entry('F32', [2, 3], [0, 24])},"y":${entry('BOOL', [5], [24, 29])}}`;
    const pieces = fc.constantFrom(
      '',
      '0',
      '9',
      '-',
      '.',
      'e9',
      '"',
      '\\',
      '{',
      '}',
      '[',
      ']',
      ',',
      ':',
      'null',
      '\ufffd',
      '"x"',
      'U8',
      '1e308',
    );
    const edits = fc.array(fc.tuple(fc.nat(header.length), fc.nat(4), pieces), {
      minLength: 1,
      maxLength: 4,
    });
    let parsed = 0;
    fc.assert(
      fc.property(edits, (list) => {
        const text = list.reduce(
          (old, [at, cut, put]) => old.slice(0, at) + put + old.slice(at + cut),
          header,
        );
        try {
          const { tensors } = parseSafetensorsHeader(encode(text), 29, 'FILE');
          const bytes = [...tensors.values()].reduce(
            (sum, { offsets: [begin, end] }) => sum + end - begin,
            0,
          );
          expect(bytes).toBe(29);
          ++parsed;
        } catch (error) {
          if (!(error instanceof AttentionBiasError)) throw error;
          expect(error.code).toBe('ERR_FORMAT');
        }
      }),
      { numRuns: 5000 },
    );
    expect(parsed).toBeGreaterThan(10);
  });
});
