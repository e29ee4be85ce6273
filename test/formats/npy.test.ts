import { readFile, writeFile } from 'node:fs/promises';

import fc from 'fast-check';
import { zipSync } from 'fflate';

import { AttentionBiasError } from '../../lib/errors.js';
import { parseNpy, readNpy, readNpz, writeNpy, writeNpz } from '../../lib/formats/npy.js';
import { temporaryFolder } from './temporary.js';

/** A .npy file of version 1.0 with this header and data. */
function npy(
  header: string,
  data: Uint8Array | Float32Array | Float64Array = new Uint8Array(0),
  version = 1,
): ArrayBuffer {
  const start = Buffer.from(`\x93NUMPY${String.fromCharCode(version)}\0`, 'latin1');
  const prefix = version === 1 ? 10 : 12;
  const text = Buffer.from(header.padEnd(63 - prefix + 64) + '\n', 'latin1');
  const length = Buffer.alloc(prefix - 8);
  length.writeUIntLE(text.length, 0, prefix - 8);
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return new Uint8Array(Buffer.concat([start, length, text, bytes])).buffer;
}

const header = (descr: string, shape: string, order = 'False'): string =>
  `{'descr': '${descr}', 'fortran_order': ${order}, 'shape': ${shape}, }`;

const six = Float32Array.of(0, 1, 2, 3, 4, 5);
const decode = (base64: string): ArrayBuffer => new Uint8Array(Buffer.from(base64, 'base64')).buffer;

/** Files that NumPy 2.4 wrote: np.arange(6, dtype=float32).reshape(2, 3), and an archive of three arrays. */
const numpyC =
  'k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBGYWxzZSwgJ3NoYXBlJzogKDIsIDMpLCB9ICAgICAgICAg' +
  'ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAACAPwAAAEAAAEBAAACAQAAAoEA=';
const numpyFortran =
  'k05VTVBZAQB2AHsnZGVzY3InOiAnPGY0JywgJ2ZvcnRyYW5fb3JkZXInOiBUcnVlLCAnc2hhcGUnOiAoMiwgMyksIH0gICAgICAgICAg' +
  'ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgIAoAAAAAAABAQAAAgD8AAIBAAAAAQAAAoEA=';
const numpyDeflated =
  'UEsDBC0AAAAIAAAAIQBP6QAq//////////8FABQAYS5ucHkBABAAmAAAAAAAAABVAAAAAAAAAJvsF+obEMnIUMZQrZ6SWpxcpG6loG6T' +
  'ZqKuo6Cell9UUpSYF59flJIKEndLzClOBYoXZyQWpAL5GkY6CsaaOgq1CmQDLgYwaLAHEg5ABMQNQLzAAQBQSwMELQAAAAgAAAAhAO4Z' +
  'u13//////////wUAFABtLm5weQEAEACCAAAAAAAAAEYAAAAAAAAAm+wX6hsQychQxlCtnpJanFykbqWgXpNkqK6joJ6WX1RSlJgXn1+U' +
  'kgoSd0vMKU4FihdnJBakAvkaRjqaOgq1ChQALkYGAFBLAwQtAAAACAAAACEAI4Beev//////////BQAUAGgubnB5AQAQAIQAAAAAAAAA' +
  'SAAAAAAAAACb7BfqGxDJyFDGUK2eklqcXKRupaBuk2akrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGOpo6CrUKFAAuBjuG' +
  'BgBQSwECLQMtAAAACAAAACEAT+kAKlUAAACYAAAABQAAAAAAAAAAAAAAgAEAAAAAYS5ucHlQSwECLQMtAAAACAAAACEA7hm7XUYAAACC' +
  'AAAABQAAAAAAAAAAAAAAgAGMAAAAbS5ucHlQSwECLQMtAAAACAAAACEAI4BeekgAAACEAAAABQAAAAAAAAAAAAAAgAEJAQAAaC5ucHlQ' +
  'SwUGAAAAAAMAAwCZAAAAiAEAAAAA';

describe('.npy', () => {
  test('reads what NumPy wrote, in either order of memory', () => {
    const array = { data: six, shape: [2, 3], dtype: 'float32' };
    expect(parseNpy(decode(numpyC), 'x')).toEqual(array);
    expect(parseNpy(decode(numpyFortran), 'x')).toEqual(array);
  });

  test.each([
    ['<f4', six, { data: six, dtype: 'float32' }],
    ['<f8', Float64Array.of(0.1, 2), { data: Float32Array.of(0.1, 2), dtype: 'float32' }],
    ['<f2', Uint8Array.of(0, 0x3c, 1, 0x80), { data: Float32Array.of(1, -(2 ** -24)), dtype: 'float32' }],
    ['<i4', Uint8Array.of(1, 0, 0, 0, 255, 255, 255, 255), { data: Int32Array.of(1, -1), dtype: 'int32' }],
    ['|u1', Uint8Array.of(0, 255), { data: Uint8Array.of(0, 255), dtype: 'uint8' }],
    ['|b1', Uint8Array.of(0, 1), { data: Uint8Array.of(0, 1), dtype: 'uint8' }],
  ])('reads %s', (descr, bytes, array) => {
    const { length } = array.data;
    expect(parseNpy(npy(header(descr, `(${length},)`), bytes), 'x')).toEqual({ ...array, shape: [length] });
    for (const version of [2, 3]) {
      expect(parseNpy(npy(header(descr, `(1, ${length})`), bytes, version), 'x')).toEqual({
        ...array,
        shape: [1, length],
      });
    }
  });

  test('column-major order of any rank', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 2, maxLength: 4 }), (shape) => {
        const count = shape.reduce((a, b) => a * b);
        const row = Float32Array.from({ length: count }, (_, i) => i);
        // Row-major with the axes turned round is column-major.
        const column = new Float32Array(count);
        row.forEach((value, index) => {
          let at = 0;
          let stride = count;
          for (const size of [...shape].reverse()) {
            stride /= size;
            at += (index % size) * stride;
            index = Math.floor(index / size);
          }
          column[at] = value;
        });
        expect(parseNpy(npy(header('<f4', `(${shape.join(', ')})`, 'True'), column), 'x').data).toEqual(row);
      }),
    );
  });

  test('gives back what was written', async () => {
    await using folder = await temporaryFolder();
    const path = folder.file('x.npy');
    for (const [data, shape] of [
      [six.subarray(1, 5), [2, 2]],
      [Float32Array.of(NaN), []],
      [Int32Array.of(-1, 2 ** 31 - 1, 0), [3]],
      [Uint8Array.of(1, 2), [1, 2, 1]],
      [new Float32Array(0), [0, 5]],
    ] as const) {
      await writeNpy(path, { data, shape });
      const read = await readNpy(path);
      expect({ data: read.data, shape: read.shape }).toEqual({ data, shape });
    }
    expect(await folder.names()).toEqual(['x.npy']);
    await expect(writeNpy(path, { data: six, shape: [7] })).rejects.toMatchObject({ code: 'ERR_SHAPE' });
    await expect(writeNpy(path, { data: new Uint16Array(1), shape: [1] })).rejects.toMatchObject({
      code: 'ERR_DTYPE',
    });
    await expect(readNpy(folder.file('no'))).rejects.toMatchObject({ code: 'ERR_IO' });
    await expect(readNpy(folder.path)).rejects.toMatchObject({ code: 'ERR_IO' });
  });

  test.each<[string, ArrayBuffer, 'ERR_FORMAT' | 'ERR_DTYPE', RegExp]>([
    [
      'another file',
      npy('').slice(1),
      'ERR_FORMAT',
      /which starts with \\x93NUMPY, for x but received another start$/,
    ],
    [
      'version 4',
      npy(header('<f4', '(6,)'), six, 4),
      'ERR_FORMAT',
      /version 1.0, 2.0 or 3.0 for x but received 4.0$/,
    ],
    ['no fields', npy('{}'), 'ERR_FORMAT', /a header with 'descr'/],
    ['no dict', npy("'shape': (1,)"), 'ERR_FORMAT', /a header with 'descr'/],
    [
      'a field twice',
      npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", six),
      'ERR_FORMAT',
      /a header/,
    ],
    [
      'a field more',
      npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,), 'x': (1,)}", six),
      'ERR_FORMAT',
      /a header/,
    ],
    ['a number for the shape', npy(header('<f4', '(6)'), six), 'ERR_FORMAT', /a header/],
    ['a negative size', npy(header('<f4', '(-6,)'), six), 'ERR_FORMAT', /a header/],
    ['a list for the order', npy(header('<f4', '(6,)', '(1,)'), six), 'ERR_FORMAT', /a header/],
    [
      '2^80 elements',
      npy(header('<f4', `(${2 ** 40}, ${2 ** 40})`), six),
      'ERR_FORMAT',
      /a shape of at most 2\^53 elements/,
    ],
    [
      '2^40 elements',
      npy(header('<f4', `(${2 ** 40},)`), six),
      'ERR_FORMAT',
      /4398046511104 bytes of <f4 \(1099511627776\) for x but received 24$/,
    ],
    [
      'too few bytes',
      npy(header('<f4', '(7,)'), six),
      'ERR_FORMAT',
      /28 bytes of <f4 \(7\) for x but received 24$/,
    ],
    [
      'too many bytes',
      npy(header('<f4', '(5,)'), six),
      'ERR_FORMAT',
      /20 bytes of <f4 \(5\) for x but received 24$/,
    ],
    [
      'big-endian',
      npy(header('>f4', '(6,)'), six),
      'ERR_DTYPE',
      /a dtype of <f4, <f2, <f8, <i4, \|u1, \|b1 for x but received ">f4"$/,
    ],
    ['int64', npy(header('<i8', '(3,)'), six), 'ERR_DTYPE', /received "<i8"$/],
    ['objects', npy(header('|O', '(3,)'), six), 'ERR_DTYPE', /received "\|O"$/],
    [
      'records',
      npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,)}", six),
      'ERR_DTYPE',
      /received "\[\('a', '<f4'\)\]"$/,
    ],
    [
      'odd offset',
      npy(header('<f4', '(6,)').padEnd(150), six),
      'ERR_FORMAT',
      /data that starts at a multiple of 4/,
    ],
  ])('refuses %s', (_, bytes, code, message) => {
    expect(() => parseNpy(bytes, 'x')).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message) as string }) as Error,
    );
  });

  test('cut at any byte', () => {
    const whole = decode(numpyC);
    for (let length = 0; length < whole.byteLength; ++length) {
      expect(() => parseNpy(whole.slice(0, length), 'x')).toThrow(
        expect.objectContaining({ code: 'ERR_FORMAT' }) as Error,
      );
    }
  });

  test('any mutation is parsed or refused', () => {
    const whole = new Uint8Array(decode(numpyC));
    const edit = fc.tuple(fc.oneof(fc.nat(80), fc.nat(whole.length - 1)), fc.nat(255));
    fc.assert(
      fc.property(fc.array(edit, { minLength: 1, maxLength: 5 }), (edits) => {
        const bytes = whole.slice();
        for (const [at, byte] of edits) bytes[at] = byte;
        try {
          const { data, shape } = parseNpy(bytes.buffer, 'x');
          expect(data).toHaveLength(shape.reduce((a, b) => a * b, 1));
        } catch (error) {
          if (!(error instanceof AttentionBiasError)) throw error;
          expect(['ERR_FORMAT', 'ERR_DTYPE']).toContain(error.code);
        }
      }),
      { numRuns: 3000 },
    );
  });
});

describe('.npz', () => {
  const arrays = {
    a: { data: six, shape: [2, 3] },
    'b é/c': { data: Int32Array.of(7), shape: [1] },
    m: { data: Uint8Array.of(1, 0), shape: [2] },
  };

  async function refusal(bytes: Uint8Array): Promise<{ code: string; message: string }> {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('x.npz'), bytes);
    try {
      await readNpz(folder.file('x.npz'));
    } catch (error) {
      if (error instanceof AttentionBiasError) return { code: error.code, message: error.message };
      throw error;
    }
    throw new Error('accepted');
  }

  test('reads what NumPy wrote, deflated', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('x.npz'), new Uint8Array(decode(numpyDeflated)));
    expect(await readNpz(folder.file('x.npz'))).toEqual(
      new Map<string, object>([
        ['a', { data: six, shape: [2, 3], dtype: 'float32' }],
        ['m', { data: Uint8Array.of(1, 0), shape: [2], dtype: 'uint8' }],
        ['h', { data: Float32Array.of(1.5, -0), shape: [2], dtype: 'float32' }],
      ]),
    );
  });

  test('gives back what was written; the same arrays are the same bytes', async () => {
    await using folder = await temporaryFolder();
    await writeNpz(folder.file('x.npz'), arrays);
    await writeNpz(folder.file('y.npz'), arrays);
    const read = await readNpz(folder.file('x.npz'));
    expect([...read].map(([name, { data, shape }]) => [name, { data, shape }])).toEqual(
      Object.entries(arrays),
    );
    expect(await readFile(folder.file('x.npz'))).toEqual(await readFile(folder.file('y.npz')));
    expect(await folder.names()).toEqual(['x.npz', 'y.npz']);
    await expect(writeNpz(folder.file('z'), { a: { data: six, shape: [1] } })).rejects.toMatchObject({
      code: 'ERR_SHAPE',
    });
    expect(await folder.names()).toHaveLength(2);
  });

  test('entries of other kinds are left out', async () => {
    await using folder = await temporaryFolder();
    const archive = zipSync(
      { 'a.npy': new Uint8Array(decode(numpyC)), 'readme.txt': new Uint8Array(3) },
      { level: 9 },
    );
    await writeFile(folder.file('x.npz'), archive);
    expect([...(await readNpz(folder.file('x.npz'))).keys()]).toEqual(['a']);
  });

  test('cut at any byte', async () => {
    await using folder = await temporaryFolder();
    await writeNpz(folder.file('x.npz'), arrays);
    for (const whole of [await readFile(folder.file('x.npz')), new Uint8Array(decode(numpyDeflated))]) {
      for (let length = 0; length < whole.length; ++length) {
        expect(await refusal(whole.subarray(0, length))).toMatchObject({
          code: 'ERR_FORMAT',
          message: expect.stringMatching(/^expected .* for .*x\.npz/) as string,
        });
      }
    }
  });

  test('any mutation is read or refused', async () => {
    await using folder = await temporaryFolder();
    const path = folder.file('x.npz');
    const archives = [new Uint8Array(decode(numpyDeflated))];
    await writeNpz(path, arrays);
    archives.push(new Uint8Array(await readFile(path)));
    await fc.assert(
      fc.asyncProperty(
        fc.nat(1),
        fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 }),
        async (which, edits) => {
          const bytes = archives[which]?.slice() ?? new Uint8Array(0);
          // Half of the edits go into the directory at the end, where the sizes are.
          for (const [at, byte] of edits)
            bytes[at % 2 ? at % bytes.length : bytes.length - 1 - (at % 180)] = byte;
          await writeFile(path, bytes);
          try {
            await readNpz(path);
          } catch (error) {
            if (!(error instanceof AttentionBiasError)) throw error;
            expect(['ERR_FORMAT', 'ERR_DTYPE']).toContain(error.code);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });

  test('a size that no archive can hold is refused before memory is taken for it', async () => {
    const archive = zipSync({ 'a.npy': new Uint8Array(decode(numpyC)) });
    const directory = Buffer.from(archive).indexOf(Buffer.from([0x50, 0x4b, 1, 2]));
    new DataView(archive.buffer).setUint32(directory + 24, 0xfffffff0, true); // the uncompressed size
    expect((await refusal(archive)).message).toMatch(
      /sizes that the archive can hold for .* "a.npy" but received \d+ for 4294967280 bytes$/,
    );
  });

  test('a damaged archive is refused', async () => {
    const archive = zipSync({ 'a.npy': [new Uint8Array(decode(numpyC)), { level: 0 }] });
    const start = Buffer.from(archive).indexOf('NUMPY');
    const data = start + decode(numpyC).byteLength - 3; // in the last element
    archive[data]! ^= 0x10;
    const error = await refusal(archive);
    expect(error).toMatchObject({ code: 'ERR_FORMAT' });
    expect(error.message).toMatch(
      /^expected contents of CRC-32 \d+ for .* "a.npy" but received \d+: a damaged archive$/,
    );
  });

  test('a name that no archive can hold is refused', async () => {
    await using folder = await temporaryFolder();
    const long = { ['x'.repeat(70_000)]: { data: new Float32Array(1), shape: [1] } };
    await expect(writeNpz(folder.file('x.npz'), long)).rejects.toMatchObject({ code: 'ERR_VALUE' });
  });

  test('an array twice is refused', async () => {
    const archive = Buffer.from(
      zipSync({ 'a.npy': new Uint8Array(decode(numpyC)), 'b.npy': new Uint8Array(decode(numpyC)) }),
    );
    const twice = Buffer.from(archive.toString('latin1').replaceAll('b.npy', 'a.npy'), 'latin1');
    expect((await refusal(twice)).message).toMatch(/each array once for .* "a.npy" twice$/);
  });
});
