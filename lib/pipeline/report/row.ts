/** Rows from what summaries hold. Summaries are read for what is in them: a field of another kind counts as absent. */
import { z } from 'zod';

import type { ByDistance, BySensor, Failure, Row } from './data.js';

const number = z.number().optional().catch(undefined);
const bySensor = z.object({ lidar: z.number(), camera: z.number() });

const summarySchema = z.object({
  cameras: z.array(z.string()).optional().catch(undefined),
  attentionMass: bySensor
    .extend({ perCamera: z.record(z.string(), z.number()).optional().catch(undefined) })
    .optional()
    .catch(undefined),
  router: z.object({ mean: bySensor }).optional().catch(undefined),
  shape: z.object({ queries: number }).optional().catch(undefined),
  queries: z.object({ onBoxes: number, seenByACamera: number }).optional().catch(undefined),
  blindQueries: number,
  lidarPoints: number,
  weights: z
    .object({ lidar: z.array(z.number()), camera: z.array(z.number()) })
    .refine(({ lidar, camera }) => lidar.length > 0 && lidar.length === camera.length)
    .optional()
    .catch(undefined),
  distance: z
    .object({
      edges: z.array(z.number()).min(2),
      queries: z.array(z.number()),
      lidar: z.array(z.number().nullable()),
      camera: z.array(z.number().nullable()),
    })
    .refine(({ edges, ...bins }) => Object.values(bins).every(({ length }) => length === edges.length - 1))
    .optional()
    .catch(undefined),
  ms: z.record(z.string(), z.number()).optional().catch(undefined),
});

/** Digits that a page can show: a page of many frames is half as large for it. */
const rounded = (value: number, digits: number): number => Number(value.toPrecision(digits));
const share = (value: number): number => Number(value.toFixed(5));

function roundedMass(mass: BySensor<number>): BySensor<number> {
  return { lidar: share(mass.lidar), camera: share(mass.camera) };
}

/** In the cameras' own order, where the summary has it: that of an object's fields is another where names are numbers. */
function camerasOf(
  names: readonly string[] | undefined,
  shares: Readonly<Record<string, number>>,
): Row['cameras'] {
  const all = new Map(Object.entries(shares));
  const ordered = names?.every((name) => all.has(name)) ? names : [...all.keys()];
  return ordered.map((name) => [name, share(all.get(name)!)]);
}

const shareOrNone = (value: number | null): number | null => (value === null ? null : share(value));

function roundedDistance({ edges, queries, lidar, camera }: ByDistance): ByDistance {
  return { edges, queries, lidar: lidar.map(shareOrNone), camera: camera.map(shareOrNone) };
}

export interface RowPlace {
  readonly n: number;
  readonly index: number;
  readonly key: string;
  readonly kind: 'frame' | 'job';
  readonly source: string;
  readonly pictures: boolean;
}

/** Milliseconds with three digits; undefined for no stages. */
export function roundedMs(ms: Readonly<Record<string, number>> | undefined): Row['ms'] {
  const entries = Object.entries(ms ?? {}).filter(([, time]) => Number.isFinite(time) && time >= 0);
  return entries.length === 0
    ? undefined
    : Object.fromEntries(entries.map(([stage, time]) => [stage, rounded(time, 3)]));
}

export function rowOf(place: RowPlace, summary: unknown, ms?: Readonly<Record<string, number>>): Row {
  const parsed = summarySchema.safeParse(summary);
  const data = parsed.success ? parsed.data : undefined;
  return {
    ...place,
    mass: data?.attentionMass && roundedMass(data.attentionMass),
    cameras: data?.attentionMass?.perCamera && camerasOf(data.cameras, data.attentionMass.perCamera),
    trust: data?.router && roundedMass(data.router.mean),
    queries: data?.shape?.queries,
    onBoxes: data?.queries?.onBoxes,
    seenByACamera: data?.queries?.seenByACamera,
    blind: data?.blindQueries,
    lidarPoints: data?.lidarPoints,
    weights: data?.weights,
    distance: data?.distance && roundedDistance(data.distance),
    ms: roundedMs(ms ?? data?.ms),
  };
}

export function failedRow(place: RowPlace, failure: Failure, ms?: Readonly<Record<string, number>>): Row {
  return { ...place, failure, ms: roundedMs(ms) };
}
