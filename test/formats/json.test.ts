import fc from 'fast-check';

import { decodeUtf8, parseJson } from '../../lib/formats/json.js';

const message = (text: string): string => {
  try {
    parseJson(text, 'x.json');
  } catch (error) {
    expect(error).toMatchObject({ name: 'AttentionBiasError', code: 'ERR_FORMAT' });
    return (error as Error).message;
  }
  throw new Error(`accepted: ${text}`);
};

describe('parseJson', () => {
  test('agrees with JSON.parse on any JSON, however it is spaced', () => {
    fc.assert(
      fc.property(fc.json({ maxDepth: 6 }), fc.constantFrom(undefined, 1, '\t', '\r\n '), (text, space) => {
        const value = JSON.parse(text) as unknown;
        expect(parseJson(text, 'x')).toEqual(value);
        expect(parseJson(JSON.stringify(value, null, space), 'x')).toEqual(value);
      }),
    );
  });

  test('takes of mutilated JSON exactly what JSON.parse takes', () => {
    const mutilated = fc
      .tuple(
        fc.json(),
        fc.nat(),
        fc.nat(3),
        fc.constantFrom('', '"', '\\', ',', ':', '{', ']', '-', '0', 'e', '\u0001', '\u00a0', 't'),
      )
      .map(([text, at, removed, put]) => {
        const start = at % (text.length + 1);
        return text.slice(0, start) + put + text.slice(start + removed);
      });
    fc.assert(
      fc.property(mutilated, (text) => {
        let value: unknown;
        let error: unknown;
        try {
          value = JSON.parse(text);
        } catch {
          expect(message(text)).toMatch(
            /^expected JSON.* for x\.json but received .+ at line \d+, column \d+$/,
          );
          return;
        }
        try {
          expect(parseJson(text, 'x.json')).toEqual(value);
        } catch (thrown) {
          error = thrown;
        }
        // Fields that a mutation made equal are the one thing in which the two differ.
        if (error) expect((error as Error).message).toMatch(/a second time|finite/);
      }),
      { numRuns: 2000 },
    );
  });

  test.each([
    ['', 'expected JSON for x.json but received its end at line 1, column 1'],
    ['{"op": q}', 'expected JSON for x.json but received "q" at line 1, column 8'],
    ['[1,\n 2,]', 'expected JSON for x.json but received "]" at line 2, column 4'],
    ['[1] 2', 'expected JSON for x.json but received "2" at line 1, column 5'],
    ['{"a": NaN}', 'expected JSON for x.json but received "NaN" at line 1, column 7'],
    ['[-Infinity]', 'expected JSON for x.json but received "-Infinity" at line 1, column 2'],
    ['[01]', 'expected JSON for x.json but received "01" at line 1, column 2'],
    ['"\\u12"', 'expected JSON for x.json but received "\\"" at line 1, column 1'],
    ['"open', 'expected JSON for x.json but received "\\"" at line 1, column 1'],
    ['[1e999]', 'expected JSON with finite numbers for x.json but received 1e999 at line 1, column 2'],
    [
      '{"a": 1, "a": 2}',
      'expected JSON with each field once for x.json but received "a" a second time at line 1, column 10',
    ],
    [
      '{"a": 1, "\\u0061": 2}',
      'expected JSON with each field once for x.json but received "a" a second time at line 1, column 10',
    ],
    [
      '{"b": {"__proto__": 1, "__proto__": 2}}',
      'expected JSON with each field once for x.json but received "__proto__" a second time at line 1, column 24',
    ],
  ])('%j is refused', (text, sentence) => {
    expect(message(text)).toBe(sentence);
  });

  test('fields of the same name in different objects are fine', () => {
    expect(parseJson('{"a": {"a": 1}, "b": [{"a": 2}]}', 'x')).toEqual({ a: { a: 1 }, b: [{ a: 2 }] });
  });

  test('a field called __proto__ is a field', () => {
    const value = parseJson('{"__proto__": {"x": 1}}', 'x') as object;
    expect(Object.keys(value)).toEqual(['__proto__']);
    expect('x' in value).toBe(false);
  });

  test('depth is bounded', () => {
    expect(message('['.repeat(1e6))).toBe(
      'expected JSON of at most 100 levels for x.json but received more at line 1, column 101',
    );
  });

  test('long strings and numbers', () => {
    const long = 'x'.repeat(5e6);
    expect(parseJson(`["${long}", "${'\\n'.repeat(1e6)}"]`, 'x')).toEqual([long, '\n'.repeat(1e6)]);
    expect(parseJson('0.' + '1'.repeat(1e5), 'x')).toBeCloseTo(1 / 9);
  });
});

test('decodeUtf8 refuses what is not UTF-8 and drops a byte order mark', () => {
  expect(decodeUtf8(Uint8Array.of(0xef, 0xbb, 0xbf, 0x7b), 'x')).toBe('{');
  expect(() => decodeUtf8(Uint8Array.of(0x7b, 0xff), 'x.json')).toThrow('expected JSON in UTF-8 for x.json');
});
