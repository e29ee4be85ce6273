/** What a worker thread does of a frame: reading, decoding, features. All arrays leave it by transfer, none by copy. */
import { move, transferableSymbol, valueSymbol } from 'piscina';

import { AttentionBiasError, type ErrorCode } from '../errors.js';
import { shrinkImages } from '../frame/pictures.js';
import { describeFrame, readInputs, type FrameInputs, type PreparedFrame } from '../frame/prepare.js';
import type { Stage } from '../frame/settings.js';

export interface PrepareTask {
  /** FRAME.json */
  readonly frame: string;
  /** a folder that the files which it names must lie in */
  readonly root?: string | undefined;
  /** a backbone's feature maps */
  readonly features: string | undefined;
  readonly previews: boolean;
}

/** What comes back. Errors lose their class and code on the way between threads, so they come as what they are made of. */
export type PrepareReply =
  | {
      readonly prepared: PreparedFrame;
      /** of previews: the images are small */
      readonly pictures: FrameInputs | undefined;
      readonly ms: Readonly<Record<string, number>>;
    }
  | {
      readonly error: { readonly code: ErrorCode; readonly message: string };
      readonly stage: string;
      readonly ms: Readonly<Record<string, number>>;
    };

/** The memory of a reply's arrays, each buffer once. */
function buffersOf({ prepared, pictures }: Extract<PrepareReply, { prepared: object }>): ArrayBuffer[] {
  const arrays = [prepared.counts, prepared.ignore, prepared.key];
  const shown = pictures ? [pictures.sweep.points, ...pictures.images.map(({ rgb }) => rgb)] : [];
  return [...new Set([...arrays, ...shown].map(({ buffer }) => buffer as ArrayBuffer))];
}

/** Prepares a frame; errors that are none of this package's are thrown. */
export async function prepareFrame({ frame, root, features, previews }: PrepareTask): Promise<PrepareReply> {
  const ms: Record<string, number> = {};
  let at = 'read';
  const stage: Stage = async (name, work) => {
    at = name;
    const begin = performance.now();
    try {
      return await work();
    } finally {
      ms[name] = performance.now() - begin;
    }
  };
  try {
    const inputs = await stage('read', () => readInputs(frame, undefined, root));
    const prepared = await stage('features', () => describeFrame(inputs, features));
    const pictures = previews ? { ...inputs, images: await shrinkImages(inputs.images) } : undefined;
    return { prepared, pictures, ms };
  } catch (error) {
    if (!(error instanceof AttentionBiasError)) throw error;
    return { error: { code: error.code, message: error.message }, stage: at, ms };
  }
}

/** For piscina. */
export default async function prepare(task: PrepareTask): Promise<unknown> {
  const reply = await prepareFrame(task);
  if ('error' in reply) return reply;
  return move({ [transferableSymbol]: buffersOf(reply), [valueSymbol]: reply });
}
