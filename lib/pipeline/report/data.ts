/** What a report's page holds, as its writer makes it and the code in the page (client/) reads it. */

/** A value for LiDAR and one for all cameras. */
export interface BySensor<T> {
  readonly lidar: T;
  readonly camera: T;
}

/** Shares of the queries of a frame, by their distance from the LiDAR. */
export interface ByDistance {
  /** metres, one more than there are bins */
  readonly edges: readonly number[];
  /** queries in each bin */
  readonly queries: readonly number[];
  /** mean share of the attention of those queries; null where there are none */
  readonly lidar: readonly (number | null)[];
  readonly camera: readonly (number | null)[];
}

export interface Failure {
  readonly stage: string;
  readonly code: string;
  readonly message: string;
}

/** One frame or job. */
export interface Row {
  /** its place on the page, from 0; names its pictures */
  readonly n: number;
  /** its place in the manifest */
  readonly index: number;
  readonly key: string;
  readonly kind: 'frame' | 'job';
  /** the file that it was computed from, as its summary names it */
  readonly source: string;
  readonly failure?: Failure | undefined;
  /** share of the attention on each sensor, 0 to 1; their sum is below 1 where queries see nothing */
  readonly mass?: BySensor<number> | undefined;
  /** the same for each camera, by name, in the order in which their pictures stand side by side */
  readonly cameras?: readonly (readonly [name: string, share: number])[] | undefined;
  /** mean modality weight of the queries, 0 to 1 */
  readonly trust?: BySensor<number> | undefined;
  readonly queries?: number | undefined;
  readonly onBoxes?: number | undefined;
  readonly seenByACamera?: number | undefined;
  readonly blind?: number | undefined;
  readonly lidarPoints?: number | undefined;
  /** queries by weight: bins of equal width from 0 to 1 */
  readonly weights?: BySensor<readonly number[]> | undefined;
  readonly distance?: ByDistance | undefined;
  /** milliseconds of each stage */
  readonly ms?: Readonly<Record<string, number>> | undefined;
  /** whether the page may hold pictures of it */
  readonly pictures: boolean;
}

/** What is said of the whole run. */
export interface PageMeta {
  /** the folder's own name */
  readonly title: string;
  readonly kind: 'pipeline' | 'frames';
  /** of the package that wrote the page */
  readonly version: string;
  /** what the run is, in words for a list: name and value */
  readonly facts: readonly (readonly [string, string])[];
  /** finished shards and all of them */
  readonly shards?: { readonly finished: number; readonly total: number } | undefined;
  /** items of the whole run, finished or not */
  readonly items: number;
  /** how fast one of its processes went on average, in items a second, by the logs */
  readonly pace?: { readonly perSecond: number; readonly processes: number } | undefined;
  /** what a reader should know of the data, in sentences */
  readonly notes: readonly string[];
}

export type PictureKind = 'bev' | 'cameras';

/** The id of the element that holds a picture as base64. */
export const pictureId = (n: number, kind: PictureKind): string => `p${n}-${kind}`;

/** The ids and classes by which the code in the page finds its data. */
export const META_ID = 'meta';
export const ROWS_CLASS = 'rows';
export const APP_ID = 'app';
