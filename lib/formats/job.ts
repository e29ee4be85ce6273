/**
 * Job files: JSON with an operation, its fields, and the name of a tensor wherever the operation takes one (see
 * `attention-bias run --help`). Here their structure is checked: fields, types, number of list entries. What a number or
 * tensor may be is for the device to check.
 */
import { z } from 'zod';

import type { BiasTerm } from '../terms.js';
import { boolean, fields, integer, number, parseWith, readWith } from './schema.js';
import { TENSORS_SOURCE } from './tensors-file.js';

/** The name of a tensor among the job's tensors, and the dtypes (of safetensors) that it may have. */
export class TensorRef {
  constructor(
    readonly tensor: string,
    readonly dtypes: readonly string[],
  ) {}
}

const tensor = (...dtypes: string[]) =>
  z.string({ error: "a tensor's name" }).transform((name) => new TensorRef(name, dtypes));
const float = tensor('F32');
const mask = tensor('U8', 'BOOL');
const ids = tensor('I32');

const pair = z.tuple([integer, integer], { error: 'a list of two integers' });
const align = z.enum(['top-left', 'bottom-right'], { error: '"top-left" or "bottom-right"' }).exactOptional();
const grid = z.union([z.tuple([integer, integer, integer]), z.tuple([integer, integer])], {
  error: '[V, Hg, Wg] or [Hg, Wg], integers',
});

function segments<Shape extends z.ZodRawShape>(shape: Shape) {
  return z.array(fields(shape), { error: 'a list of segments' });
}

const termSchemas = [
  fields({ type: z.literal('dense'), bias: float }),
  fields({ type: z.literal('mask'), visible: mask }),
  fields({ type: z.literal('padding'), ignore: mask }),
  fields({ type: z.literal('causal'), align }),
  fields({ type: z.literal('slidingWindow'), left: integer, right: integer, align }),
  fields({ type: z.literal('blockDiagonal'), queryIds: ids, keyIds: ids }),
  fields({
    type: z.literal('modality'),
    strength: number.exactOptional(),
    segments: segments({ start: integer, length: integer, weights: float }),
  }),
  fields({
    type: z.literal('spatial'),
    strength: number.exactOptional(),
    segments: segments({ start: integer, grid, centers: float, radius: number, weights: float }),
  }),
  fields({
    type: z.literal('window'),
    segments: segments({ start: integer, grid, centers: float, size: integer }),
  }),
  fields({
    type: z.literal('denoising'),
    groups: integer,
    groupSize: integer,
    groupsSeeMatching: boolean.exactOptional(),
  }),
  fields({
    type: z.literal('shiftedWindow'),
    resolution: pair,
    window: pair,
    shift: pair,
    value: number.exactOptional(),
  }),
  fields({
    type: z.literal('relativePosition'),
    window: pair,
    table: float,
    clsToken: boolean.exactOptional(),
  }),
  fields({
    type: z.literal('lowRank'),
    queryFactors: float,
    keyFactors: float,
    scale: number.exactOptional(),
  }),
  fields({ type: z.literal('alibi'), slopes: float }),
] as const;

/** "one of …" over the values that a discriminator takes, or what an entry that is no object should be. */
function oneOf(key: string, schemas: readonly { shape: Record<string, z.ZodType> }[]) {
  const values = schemas.map(({ shape }) => (shape[key] as z.ZodLiteral<string>).value).join(', ');
  return {
    error: ({ code }: { code?: string }) => (code === 'invalid_union' ? `one of ${values}` : 'an object'),
  };
}

const term: z.ZodType<BiasTerm<TensorRef>> = z.discriminatedUnion(
  'type',
  termSchemas,
  oneOf('type', termSchemas),
);
const terms = z.array(term, { error: 'a list of terms' });
const tensors = z.union([z.string(), z.record(z.string(), z.string())], { error: TENSORS_SOURCE });

const deformable = {
  value: float,
  spatialShapes: z.array(pair, { error: 'a list of [h, w]' }),
  samplingLocations: float,
  attentionWeights: float,
};

const operationSchemas = [
  fields({
    op: z.literal('attention'),
    tensors,
    query: float,
    key: float,
    value: float,
    scale: number.exactOptional(),
    bias: terms.exactOptional(),
  }),
  fields({
    op: z.literal('attention-backward'),
    tensors,
    query: float,
    key: float,
    value: float,
    gradOut: float,
    scale: number.exactOptional(),
    bias: terms.exactOptional(),
  }),
  fields({
    op: z.literal('bias'),
    tensors: tensors.exactOptional(), // a causal mask needs none
    shape: z.tuple([integer, integer, integer, integer], { error: '[B, H, Q, K], integers' }),
    bias: terms,
  }),
  fields({
    op: z.literal('multihead'),
    tensors,
    query: float,
    key: float,
    value: float,
    queryPos: float.exactOptional(),
    keyPos: float.exactOptional(),
    heads: integer,
    inProjWeight: float,
    inProjBias: float.exactOptional(),
    outProjWeight: float,
    outProjBias: float.exactOptional(),
    bias: terms.exactOptional(),
    identity: boolean.exactOptional(),
  }),
  fields({ op: z.literal('router'), tensors, features: float, weight: float, bias: float }),
  fields({ op: z.literal('deformable'), tensors, ...deformable }),
  fields({
    op: z.literal('deformable-backward'),
    tensors,
    ...deformable,
    gradOut: float,
    deterministic: boolean.exactOptional(),
  }),
  fields({
    op: z.literal('project'),
    tensors,
    referencePoints: float,
    pointCloudRange: z.tuple([number, number, number, number, number, number], {
      error: '[x0, y0, z0, x1, y1, z1], numbers',
    }),
    lidar2img: float,
    imageShape: pair,
    featureShape: pair,
    bevShape: pair,
  }),
] as const;

const operation = z.discriminatedUnion('op', operationSchemas, oneOf('op', operationSchemas));

/** A job whose structure was checked, with a `TensorRef` for each tensor. */
export type Job = z.infer<typeof operation>;

const WHOLE = 'the job';

/** Checks the text of a job file; ERR_FORMAT, in one line that names the fields, for anything else than a job. */
export function parseJob(text: string, path: string): Job {
  return parseWith(operation, text, path, WHOLE);
}

/** Reads a job file; ERR_IO, and ERR_FORMAT as `parseJob`. */
export async function readJob(
  path: string,
  options: { signal?: AbortSignal | undefined } = {},
): Promise<Job> {
  return readWith(operation, path, WHOLE, options.signal);
}
