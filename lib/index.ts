export { Adam } from './adam.js';
export type { AdamOptions } from './adam.js';
export { open } from './open.js';
export { AttentionBiasError } from './errors.js';
export { loadMultihead } from './multihead-weights.js';
export type { LoadedMultihead } from './multihead-weights.js';
export type { ErrorCode } from './errors.js';
export { serveMetrics } from './pipeline/metrics.js';
export type { MetricsOptions, MetricsServer } from './pipeline/metrics.js';
export { operations } from './telemetry.js';
export type {
  ItemEvent,
  Operation,
  OperationEvent,
  ShardEvent,
  StageEvent,
  TelemetryEvent,
} from './telemetry.js';
export type * from './device.js';
export type * from './terms.js';
export type { DType, DTypeOf, MemoryKind, Tensor, TensorLike, TypedArray, TypedArrayOf } from './tensor.js';
export { pipeline } from './pipeline/engine.js';
export { pipelineStream } from './pipeline/stream.js';
export type {
  Failure,
  NamedStage,
  Outcome,
  Pipeline,
  PipelineOptions,
  PipelineStats,
  Source,
  Stage,
  StageContext,
  StageFunction,
  StageStats,
  WithStages,
} from './pipeline/engine.js';
export type { PipelineStream } from './pipeline/stream.js';
export {
  computeItems,
  estimate,
  measureSample,
  planRun,
  readItemLines,
  readManifest,
  runShard,
} from './pipeline/lazy.js';
export type { Estimate, Estimated, EstimateTarget, Sample } from './pipeline/estimate.js';
export type { ComputeOptions, ItemFailure, ItemOutcome, ItemResult, ItemRun } from './pipeline/items.js';
export type { FrameItem, FrameOverrides, JobItem, ManifestItem } from './pipeline/manifest.js';
export type { Run, RunOptions, ShardContext, ShardResult } from './pipeline/run.js';
export type { ItemLine, RunDescription, ShardDtype, ShardFormat } from './pipeline/sidecar.js';
export type { FrameSettings } from './frame/settings.js';
export type { HostTensor } from './formats/host.js';
