// Small runs for the tests of pipelines.
import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

import { writeNpy } from '../lib/formats/npy.js';
import { randomSource } from '../lib/random.js';
import { uniform } from './support.js';

/** A folder with `count` attention jobs, each with a query of its own, and their manifest. Returns the manifest's path. */
export async function writeJobs(folder: string, count: number): Promise<string> {
  const next = randomSource(7);
  const at = (name: string): string => join(folder, name);
  await writeNpy(at('k.npy'), uniform(next, [1, 2, 33, 12]));
  await writeNpy(at('v.npy'), uniform(next, [1, 2, 33, 20]));
  const job = { op: 'attention', tensors: 'none.npz', query: 'q', key: 'k', value: 'v' };
  await writeFile(at('job.json'), JSON.stringify(job));
  const lines: string[] = [];
  for (let i = 0; i < count; ++i) {
    await writeNpy(at(`q${i}.npy`), uniform(next, [1, 2, 5, 12]));
    const tensors = { q: `q${i}.npy`, k: 'k.npy', v: 'v.npy' };
    lines.push(JSON.stringify({ job: 'job.json', tensors, ...(i % 2 ? { key: `item-${i}` } : {}) }));
  }
  await writeFile(at('jobs.jsonl'), `${lines.join('\n')}\n`);
  return at('jobs.jsonl');
}

/** The SHA-256 of every file of an output folder but its logs, by its path. */
export async function digests(out: string): Promise<Record<string, string>> {
  const entries = await readdir(out, { recursive: true, withFileTypes: true });
  const files = entries
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name).slice(out.length + 1))
    .filter((path) => !path.startsWith('logs/'))
    .sort();
  const found: [string, string][] = [];
  for (const path of files) {
    const bytes = await readFile(join(out, path));
    found.push([path, `${bytes.length} ${createHash('sha256').update(bytes).digest('hex')}`]);
  }
  return Object.fromEntries(found);
}
