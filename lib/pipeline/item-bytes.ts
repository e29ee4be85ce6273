/** How much memory an item takes on its way, as far as its files tell: what bounds the items under way. */
import { stat } from 'node:fs/promises';

import { readJob } from '../formats/job.js';
import { openSafetensors } from '../formats/safetensors.js';
import { filesOfTensors, resolveTensors } from '../formats/tensors-file.js';
import { BEV_CELLS, CAMERA_CELLS, HEAD_DIM, HEADS } from '../frame/geometry.js';
import { readFrame } from '../frame/scene.js';
import { tensorNames } from '../job.js';
import type { JobItem, ManifestItem } from './manifest.js';

/** Gradients are as large as what they are of, and what else is made is small, but for a dense bias. */
async function jobBytes(item: JobItem, signal: AbortSignal | undefined): Promise<number> {
  const job = await readJob(item.job, { signal });
  const made = job.op === 'bias' ? 4 * job.shape.reduce((a, b) => a * b, 1) : 0;
  const source = item.tensors ?? (job.tensors && resolveTensors(item.job, job.tensors, item.root));
  if (source === undefined) return made;
  const factor = job.op.endsWith('-backward') ? 2 : 1;
  const names = tensorNames(job);
  if (typeof source === 'string' && !/\.npz$/i.test(source)) {
    // Of a file that many jobs share, only what is read counts.
    await using file = await openSafetensors(source);
    const sizes = [...names].map((name) => file.tensors.get(name)?.offsets ?? [0, 0]);
    return made + factor * sizes.reduce((sum, [begin, end]) => sum + end - begin, 0);
  }
  const files = filesOfTensors(
    typeof source === 'string'
      ? source
      : Object.fromEntries(Object.entries(source).filter(([name]) => names.has(name))),
  );
  const sizes = await Promise.all(files.map(async (file) => (await stat(file)).size));
  return made + factor * sizes.reduce((a, b) => a + b, 0);
}

/** @param features whether the frame takes a backbone's maps, which are as large as its keys */
export async function itemBytes(
  item: ManifestItem,
  features: boolean,
  signal?: AbortSignal,
): Promise<number> {
  try {
    if (item.kind === 'job') return await jobBytes(item, signal);
    const { cameras } = await readFrame(item.frame, signal);
    const keys = 4 * HEADS * HEAD_DIM * (BEV_CELLS + cameras.length * CAMERA_CELLS);
    // The images, and what the attention's mass needs on its way, are as large again.
    return keys * (features ? 3 : 2);
  } catch {
    return 0; // reading it will say what is wrong
  }
}
