/**
 * Denoising training: F. Li, H. Zhang, S. Liu, J. Guo, L. M. Ni, L. Zhang, "DN-DETR: Accelerate DETR Training by Introducing
 * Query DeNoising", CVPR 2022; and J. Yan, Y. Liu, J. Sun, F. Jia, S. Li, T. Wang, X. Zhang, "Cross Modal Transformer: Towards
 * Fast and Robust 3D Object Detection", ICCV 2023 (CMT), which takes it over, as do PETRv2 and MoME.
 *
 * In front of the matching queries stand `groups` copies of the ground-truth boxes with noise. A group has as many places as
 * the image with the most boxes; an image with fewer leaves its last places of each group empty.
 */
import { expected } from '../errors.js';
import type { BiasTerm, DenoisingTerm } from '../terms.js';
import {
  floatTensor,
  requireArray,
  requireFloats,
  requireInteger,
  requireOneOf,
  type FloatTensor,
} from './check.js';
import type { TensorLike } from '../tensor.js';

/** Arguments of `denoisingPlan`. */
export interface DenoisingArgs {
  /** ground-truth boxes of each image of the batch */
  boxCounts: readonly number[];
  /** matching queries: 300 in DN-DETR (times its patterns), 900 in CMT */
  queries: number;
  /**
   * what decides the number of groups: `dn-detr` (default) takes `groups` as it is; `cmt` at most as many as leave no more
   * denoising queries than there are matching ones, ⌊queries / largest count⌋
   */
  variant?: 'dn-detr' | 'cmt' | undefined;
  /** called `scalar` in both codes; default 5 for `dn-detr`, 10 for `cmt` */
  groups?: number | undefined;
  /** whether a denoising query sees the matching ones; default true, as in both codes */
  groupsSeeMatching?: boolean | undefined;
  /**
   * whether nobody sees the empty places. Default false, as in both codes: an empty place is a query of zeros, which its
   * group sees
   */
  hideEmpty?: boolean | undefined;
}

/** Where each noised box stands. Noised boxes are in order of group, then image, then box. */
export interface DenoisingPlan {
  readonly groups: number;
  /** places a group: the largest count */
  readonly groupSize: number;
  /** groups·groupSize denoising queries, in front */
  readonly denoisingQueries: number;
  /** Q of the decoder: denoising and matching queries */
  readonly length: number;
  /** B */
  readonly batch: number;
  /** [groups·boxes] the image of each noised box */
  readonly images: Int32Array<ArrayBuffer>;
  /** [groups·boxes] the place of each noised box among the queries of its image */
  readonly places: Int32Array<ArrayBuffer>;
  /** [groups·boxes] the box of each noised box, counted through the whole batch */
  readonly boxes: Int32Array<ArrayBuffer>;
  /** the mask of self-attention over [B, heads, length, ·]; empty where there is no denoising query */
  readonly terms: BiasTerm[];
}

/**
 * Groups, places and the self-attention mask of denoising training, for a batch of images.
 *
 * @throws AttentionBiasError ERR_VALUE
 */
export function denoisingPlan(args: DenoisingArgs): DenoisingPlan {
  const variant = requireOneOf(args.variant ?? 'dn-detr', ['dn-detr', 'cmt'], 'variant');
  const queries = requireInteger(args.queries, 1, 'queries');
  const wanted = requireInteger(args.groups ?? (variant === 'cmt' ? 10 : 5), 1, 'groups');
  const counts = requireArray(args.boxCounts, 'boxCounts').map((count, i) =>
    requireInteger(count, 0, `boxCounts[${i}]`),
  );
  if (counts.length === 0) throw expected('ERR_VALUE', 'a count for each image', 'boxCounts', 'none');

  const groupSize = Math.max(...counts);
  const most = variant === 'cmt' ? Math.floor(queries / groupSize) : Infinity;
  const groups = groupSize === 0 ? 0 : Math.min(wanted, most);
  const denoisingQueries = groups * groupSize;
  const length = denoisingQueries + queries;

  const total = counts.reduce((sum, count) => sum + count, 0);
  const [images, places, boxes] = [0, 1, 2].map(() => new Int32Array(groups * total)) as [
    Int32Array<ArrayBuffer>,
    Int32Array<ArrayBuffer>,
    Int32Array<ArrayBuffer>,
  ];
  let i = 0;
  for (let group = 0; group < groups; ++group) {
    let box = 0;
    for (const [image, count] of counts.entries()) {
      for (let place = 0; place < count; ++place, ++i) {
        images[i] = image;
        places[i] = group * groupSize + place;
        boxes[i] = box++;
      }
    }
  }

  const terms: BiasTerm[] = [];
  if (denoisingQueries > 0) {
    const mask: DenoisingTerm = { type: 'denoising', groups, groupSize };
    if (args.groupsSeeMatching === false) mask.groupsSeeMatching = false;
    terms.push(mask);
    if (args.hideEmpty === true) {
      const ignore = new Uint8Array(counts.length * length);
      for (let image = 0; image < counts.length; ++image)
        ignore.fill(1, image * length, image * length + denoisingQueries);
      places.forEach((place, j) => (ignore[images[j]! * length + place] = 0));
      terms.push({ type: 'padding', ignore: { data: ignore, shape: [counts.length, length] } });
    }
  }
  return { groups, groupSize, denoisingQueries, length, batch: counts.length, images, places, boxes, terms };
}

/** Arguments of `denoisingQueries`. C channels. */
export interface DenoisingQueriesArgs {
  /** float32 [groups·boxes, C], in the plan's order: embeddings of noised labels, or noised boxes or centres */
  noised: TensorLike;
  /** float32 [Q, C], the same for every image: embeddings or reference points of the matching queries */
  matching: TensorLike;
}

/**
 * The decoder's queries [B, length, C]: each image's noised boxes in their places, zeros in the empty ones, then the matching
 * queries. Zeros are a box's centre at the map's corner in CMT, whose reference points lie in [0, 1], and at its middle in
 * DN-DETR, whose boxes are logits.
 *
 * @throws AttentionBiasError ERR_SHAPE, ERR_DTYPE
 */
export function denoisingQueries(plan: DenoisingPlan, args: DenoisingQueriesArgs): FloatTensor {
  const { length, batch, denoisingQueries: before } = plan;
  const matching = requireFloats(args.matching, [length - before, 'C'], 'matching');
  const channels = matching.shape[1]!;
  const out = floatTensor([batch, length, channels]);
  for (let image = 0; image < batch; ++image)
    out.data.set(matching.data, (image * length + before) * channels);
  if (plan.places.length > 0) {
    const { data } = requireFloats(args.noised, [plan.places.length, channels], 'noised');
    plan.places.forEach((place, i) => {
      const row = data.subarray(i * channels, (i + 1) * channels);
      out.data.set(row, (plan.images[i]! * length + place) * channels);
    });
  }
  return out;
}
