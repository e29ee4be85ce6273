/** The keys of shards, where files can't be read. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const folder = mkdtempSync(join(tmpdir(), 'key-'));
afterAll(() => rmSync(folder, { recursive: true }));

test('a machine that can open no more files fails a key, and changes none', () => {
  const job = join(folder, 'job.json');
  writeFileSync(job, JSON.stringify({ op: 'bias', shape: [1, 1, 2, 2], bias: [{ type: 'causal' }] }));
  const built = JSON.stringify(join(__dirname, '../dist/pipeline/content-key.js'));
  const program = `
    const { openSync, closeSync } = require('node:fs');
    const { shardKey } = require(${built});
    const item = (file) => ({ item: { kind: 'job', index: 0, key: 'a', job: file }, text: file });
    const of = (file) => shardKey('run', [], [item(file)], file);
    void (async () => {
      const job = ${JSON.stringify(job)};
      const before = await of(job);
      const absent = await of(job + '.absent');
      const open = [];
      try { for (;;) open.push(openSync('/dev/null', 'r')); } catch {}
      const error = await of(job).catch((thrown) => thrown);
      open.forEach(closeSync);
      const after = await of(job);
      const { code, message } = error;
      console.log(JSON.stringify({ before, after, absent, code, message }));
    })();`;
  const { stdout, stderr } = spawnSync(
    '/bin/sh',
    ['-c', 'ulimit -n 200 && exec "$0" -e "$1"', process.execPath, program],
    { encoding: 'utf8' },
  );
  expect(stderr).toBe('');
  const said = JSON.parse(stdout) as Record<string, string>;
  expect(said).toMatchObject({ code: 'ERR_IO', message: expect.stringContaining('EMFILE') as string });
  expect(said.before).toMatch(/^[0-9a-f]{16}$/);
  expect(said.after).toBe(said.before);
  expect(said.absent).not.toBe(said.before);
});
