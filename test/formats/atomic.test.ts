import type * as promises from 'node:fs/promises';
import { chmod, lstat, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { constants } from 'node:os';

import { checkTarget, writeAtomically } from '../../lib/formats/atomic.js';
import { temporaryFolder } from './temporary.js';

/** The method of file handles that fails as on a full disk. */
let failingMethod: 'write' | 'sync' | undefined;

jest.mock('node:fs/promises', () => {
  const actual = jest.requireActual<typeof promises>('node:fs/promises');
  return {
    ...actual,
    open: async (...args: Parameters<typeof promises.open>) => {
      const file = await actual.open(...args);
      if (failingMethod) {
        const error = Object.assign(new Error('ENOSPC'), { errno: -constants.errno.ENOSPC, code: 'ENOSPC' });
        jest.spyOn(file, failingMethod).mockRejectedValue(error);
      }
      return file;
    },
  };
});

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

describe('writeAtomically', () => {
  test('writes chunks one after the other, and nothing else', async () => {
    await using folder = await temporaryFolder();
    await writeAtomically(folder.file('x'), [
      bytes('ab'),
      new Uint8Array(0),
      Float32Array.of(1).subarray(1),
      bytes('c'),
    ]);
    expect(await readFile(folder.file('x'), 'utf8')).toBe('abc');
    expect(await folder.names()).toEqual(['x']);
  });

  test('replaces a file, and follows a link to it', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('x'), 'old');
    await symlink('x', folder.file('link'));
    await writeAtomically(folder.file('link'), [bytes('new')]);
    expect(await readFile(folder.file('x'), 'utf8')).toBe('new');
    expect(await folder.names()).toEqual(['link', 'x']);
  });

  test('a source that fails leaves the old file and nothing beside it', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('x'), 'old');
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield bytes('half');
      await Promise.resolve();
      throw new Error('no more');
    }
    await expect(writeAtomically(folder.file('x'), failing())).rejects.toThrow('no more');
    expect(await readFile(folder.file('x'), 'utf8')).toBe('old');
    expect(await folder.names()).toEqual(['x']);
  });

  test.each(['before the first chunk', 'between chunks', 'after the last chunk'])(
    'an abort %s leaves nothing',
    async (when) => {
      await using folder = await temporaryFolder();
      const controller = new AbortController();
      if (when.startsWith('before')) controller.abort();
      function* chunks(): Generator<Uint8Array> {
        yield bytes('half');
        if (when.startsWith('between')) controller.abort();
        yield bytes('whole');
        controller.abort();
      }
      const writing = writeAtomically(folder.file('x'), chunks(), { signal: controller.signal });
      await expect(writing).rejects.toMatchObject({ code: 'ERR_ABORTED' });
      expect(await folder.names()).toEqual([]);
    },
  );

  test.each(['write', 'sync'] as const)('a full disk at %s leaves nothing', async (method) => {
    await using folder = await temporaryFolder();
    failingMethod = method;
    try {
      const error = {
        code: 'ERR_IO',
        message: expect.stringMatching(/x but received ENOSPC: no space left on device$/) as string,
      };
      await expect(writeAtomically(folder.file('x'), [bytes('half')])).rejects.toMatchObject(error);
    } finally {
      failingMethod = undefined;
    }
    expect(await folder.names()).toEqual([]);
  });

  test('ERR_IO names the path and the cause', async () => {
    await using folder = await temporaryFolder();
    await writeFile(folder.file('file'), '');
    await mkdir(folder.file('sub'));
    await symlink('/dev/null', folder.file('device'));
    for (const [name, cause] of [
      [
        'no/such/x',
        /in a folder that exists for .*no\/such\/x but received ENOENT: no such file or directory$/,
      ],
      ['file/x', /can be written for .*file\/x but received ENOTDIR: not a directory$/],
      ['sub', /can be written for .*sub but received a folder$/],
      ['device', /can be written for .*device but received a device or a pipe$/],
    ] as const) {
      const error = { code: 'ERR_IO', message: expect.stringMatching(cause) as string };
      await expect(checkTarget(folder.file(name))).rejects.toMatchObject(error);
      await expect(writeAtomically(folder.file(name), [bytes('x')])).rejects.toMatchObject(error);
    }
    expect((await stat('/dev/null')).isCharacterDevice()).toBe(true);
    expect(await folder.names()).toEqual(['device', 'file', 'sub']);
  });

  test('a link is followed, also one to nothing, and permissions stay', async () => {
    await using folder = await temporaryFolder();
    await mkdir(folder.file('sub'));
    await symlink('sub/target', folder.file('link'));
    await symlink('link', folder.file('link-to-link'));
    await writeAtomically(folder.file('link-to-link'), [bytes('new')]);
    expect(await readFile(folder.file('sub/target'), 'utf8')).toBe('new');
    await chmod(folder.file('sub/target'), 0o640);
    await writeAtomically(folder.file('link'), [bytes('newer')]);
    expect(await readFile(folder.file('sub/target'), 'utf8')).toBe('newer');
    expect((await stat(folder.file('sub/target'))).mode & 0o777).toBe(0o640);
    expect((await lstat(folder.file('link'))).isSymbolicLink()).toBe(true);
    await symlink('round', folder.file('round'));
    await expect(checkTarget(folder.file('round'))).rejects.toMatchObject({ code: 'ERR_IO' });
  });
});
