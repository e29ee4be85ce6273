/**
 * Commands that write, stopped in the middle: they end by the signal, leave nothing half-written, and do it when asked again. Those
 * of run are in run.test.ts, of frame in frame.test.ts, of pipeline in pipeline-cli.test.ts, of worker in queue.test.ts.
 */
import { spawn, spawnSync } from 'node:child_process';
import { watch } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { writeSyntheticScene } from '../lib/frame/synthetic.js';
import { temporaryFolder } from './formats/temporary.js';
import { makePictures, writePipelineFolder } from './report-folder.js';

const command = join(__dirname, '../dist/cli/main.js');
jest.setTimeout(60_000);

/** Stops a command, whose temporary folders are in `folder`, by the signal once it has begun a file there; what it ended by. */
async function stopped(signal: NodeJS.Signals, folder: string, ...args: string[]): Promise<unknown> {
  const child = spawn(process.execPath, [command, ...args], {
    stdio: 'ignore',
    env: { ...process.env, TMPDIR: folder },
  });
  let sent = false; // once: a second signal ends a command at once
  const watcher = watch(folder, () => {
    if (!sent) child.kill(signal);
    sent = true;
  });
  try {
    return await new Promise((resolve) => child.once('exit', (code, by) => resolve(by ?? code)));
  } finally {
    watcher.close();
  }
}

const again = (...args: string[]) =>
  spawnSync(process.execPath, [command, ...args], { encoding: 'utf8' }).status;

test('report, by SIGTERM', async () => {
  await using folder = await temporaryFolder();
  const pictures = (await makePictures(1)).flatMap((pair) => Array.from({ length: 300 }, () => pair));
  await writePipelineFolder(folder.file('run'), { items: 3000, pictures });
  await mkdir(folder.file('page'));
  const args = ['report', folder.file('run'), '--out', folder.file('page/report.html')];
  expect(await stopped('SIGTERM', folder.file('page'), ...args)).toBe('SIGTERM');
  expect(await readdir(folder.file('page'))).toEqual([]);
  expect(again(...args)).toBe(0);
  expect(await readdir(folder.file('page'))).toEqual(['report.html']);
});

test('demo, by SIGINT', async () => {
  await using folder = await temporaryFolder();
  await mkdir(folder.file('scene'));
  const args = ['demo', '--out', folder.file('.')];
  expect(await stopped('SIGINT', folder.file('scene'), ...args)).toBe('SIGINT');
  const left = await readdir(folder.file('.'), { recursive: true });
  expect(left.filter((name) => name.includes('.tmp') || name.endsWith('.png'))).toEqual([]);
  expect(again(...args)).toBe(0);
});

test('bench, by SIGTERM', async () => {
  await using folder = await temporaryFolder();
  expect(await stopped('SIGTERM', folder.file('.'), 'bench', '--case', 'cmt modality')).toBe('SIGTERM');
  expect(await readdir(folder.file('.'))).toEqual([]);
});

test('plan, by SIGINT', async () => {
  await using folder = await temporaryFolder();
  await writeSyntheticScene(folder.file('scene'), 1);
  const manifest = folder.file('manifest.jsonl');
  await writeFile(manifest, `${JSON.stringify({ frame: 'scene/frame.json' })}\n`.repeat(16));
  await mkdir(folder.file('tmp'));
  const args = ['pipeline', manifest, '--plan'];
  expect(await stopped('SIGINT', folder.file('tmp'), ...args)).toBe('SIGINT');
  expect(await readdir(folder.file('tmp'))).toEqual([]);
});
