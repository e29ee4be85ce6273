/** `attention-bias/presets`: the biases of published systems as terms, one function each. docs/systems.md compares them. */
export { alibiSlopes, alibiTerms } from './alibi.js';
export type { AlibiArgs } from './alibi.js';
export { aqrTerms, freshAqrRouter } from './aqr.js';
export type { AqrArgs, DecoderTerms, FreshRouter } from './aqr.js';
export { beitTerms } from './beit.js';
export type { BeitArgs } from './beit.js';
export { cmtAttention, joinTokens, petrAttention } from './cmt.js';
export type { CmtAttentionArgs, MultiheadDevice, PetrAttentionArgs } from './cmt.js';
export {
  conditionalAttention,
  conditionalScale,
  conditionalSpatialQuery,
  sineEmbedding,
} from './conditional-detr.js';
export type {
  ConditionalAttention,
  ConditionalAttentionArgs,
  SineEmbeddingArgs,
  SpatialQueryArgs,
} from './conditional-detr.js';
export { deformableAttention, deformableLocations, freshDeformable } from './deformable-detr.js';
export type {
  DeformableAttentionArgs,
  DeformableDevice,
  DeformableLocationsArgs,
  DeformableWeights,
  FreshDeformableArgs,
  Linear,
} from './deformable-detr.js';
export { denoisingPlan, denoisingQueries } from './denoising.js';
export type { DenoisingArgs, DenoisingPlan, DenoisingQueriesArgs } from './denoising.js';
export { mergeHeads, splitHeads } from './heads.js';
export { momeExperts, momeExpertTerms, momeLocalMask, momeRoute } from './mome.js';
export type { ExpertTerms, ExpertTermsArgs, LocalMaskArgs } from './mome.js';
export { relativePositionIndex, relativePositionRows } from './relative-position.js';
export type { RelativePositionIndex } from './relative-position.js';
export { sensorKeys } from './sensors.js';
export type { BySensor, SensorGrids, SensorKeys } from './sensors.js';
export { swinTerms, swinWindow, windowPartition, windowReverse } from './swin.js';
export type { SwinArgs, WindowLayout } from './swin.js';
export { swinV2Coordinates, swinV2Cosine, swinV2Table } from './swin-v2.js';
export type { SwinV2CoordinatesArgs, SwinV2Cosine, SwinV2CosineArgs, SwinV2TableArgs } from './swin-v2.js';
export type { FloatTensor, HostArray, Size } from './check.js';
