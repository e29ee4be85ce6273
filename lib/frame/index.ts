/** The main job: a LiDAR-camera frame through the whole AQR bias stack. */
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';

import type { Device, DeviceInfo } from '../device.js';
import { expected } from '../errors.js';
import { writeAtomically } from '../formats/atomic.js';
import { ioError, throwIfAborted } from '../formats/io.js';
import type { WritableTensor } from '../formats/host.js';
import { writeSafetensors } from '../formats/safetensors.js';
import {
  computeFrame,
  denseBias,
  disposeFrame,
  frameTensors,
  pictureInput,
  type ComputedFrame,
} from './compute.js';
import { bevPicture, cameraPictures } from './pictures.js';
import { describeFrame, readInputs, type FrameInputs } from './prepare.js';
import { checkSettings, type FrameSettings, type Stage } from './settings.js';
import { summarise, type AttentionSummary } from './summary.js';

export interface FrameOptions extends FrameSettings {
  /** FRAME.json */
  readonly frame: string;
  /** folder of the outputs, made where it does not exist */
  readonly out: string;
  /** whether the fused bias is written too */
  readonly dense: boolean;
  readonly pictures: boolean;
}

/** What summary.json holds. */
export interface FrameSummary extends AttentionSummary {
  readonly frame: string;
  /** the device that computed */
  readonly device: DeviceInfo;
  /** milliseconds of each stage; `attention` is the one call over all keys */
  readonly ms: Readonly<Record<string, number>>;
  readonly files: readonly string[];
}

/** Called when a stage begins. */
export type Progress = (stage: string, index: number, count: number) => void;

const STAGES = ['read', 'features', 'project', 'router', 'attention', 'mass', 'pictures', 'write'];

async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true });
    if (!(await stat(path)).isDirectory()) throw expected('ERR_IO', 'a folder', path, 'something else');
  } catch (cause) {
    throw ioError('a folder that can be made', path, cause);
  }
}

async function drawPictures(inputs: FrameInputs, computed: ComputedFrame): Promise<Record<string, Buffer>> {
  const input = pictureInput(inputs, computed);
  const cameras = await cameraPictures(input);
  return Object.fromEntries([
    ['bev.png', await bevPicture(input)],
    ...cameras.map((picture, view): [string, Buffer] => [`${inputs.frame.cameras[view]!.name}.png`, picture]),
  ]);
}

/**
 * Runs a frame on a device and writes frame.safetensors, summary.json, bev.png and a picture a camera to the folder `out`,
 * each whole or not at all, and none before everything is computed.
 *
 * @throws AttentionBiasError ERR_IO, ERR_FORMAT (FRAME.json, the sweep, an image, a tensors file), ERR_SHAPE, ERR_DTYPE,
 *   ERR_VALUE, ERR_MEMORY, ERR_ABORTED
 */
export async function runFrame(
  options: FrameOptions,
  device: Device,
  context: { signal?: AbortSignal | undefined; progress?: Progress | undefined } = {},
): Promise<FrameSummary> {
  const { signal } = context;
  checkSettings(options);
  const ms: Record<string, number> = {};
  const started = performance.now();
  const stage: Stage = async (name, work) => {
    throwIfAborted(signal, options.frame);
    context.progress?.(name, STAGES.indexOf(name), STAGES.length);
    const begin = performance.now();
    const result = await work();
    ms[name] = performance.now() - begin;
    return result;
  };

  const inputs = await stage('read', async () => {
    const inputs = await readInputs(options.frame, signal);
    await makeFolder(options.out);
    return inputs;
  });
  const prepared = await stage('features', () => describeFrame(inputs, options.features, signal));
  const computed = await computeFrame(prepared, options, device, { signal, stage });
  const pictures = await stage<Record<string, Buffer>>('pictures', async () =>
    options.pictures ? drawPictures(inputs, computed) : {},
  );
  await stage('write', async () => {
    const tensors: Record<string, WritableTensor> = { ...frameTensors(computed) };
    if (options.dense) tensors.bias = await denseBias(computed, device, signal);
    await writeSafetensors(join(options.out, 'frame.safetensors'), tensors, { signal });
    for (const [name, picture] of Object.entries(pictures))
      await writeAtomically(join(options.out, name), [picture], { signal });
  });
  const summary: FrameSummary = {
    frame: options.frame,
    device: device.info,
    ...summarise(prepared, computed),
    ms: { ...ms, total: performance.now() - started },
    files: ['frame.safetensors', ...Object.keys(pictures), 'summary.json'],
  };
  const text = new TextEncoder().encode(`${JSON.stringify(summary, null, 2)}\n`);
  await writeAtomically(join(options.out, 'summary.json'), [text], { signal });
  disposeFrame(computed);
  return summary;
}
