export {
  Adam,
  open,
  AttentionBiasError,
  loadMultihead,
  operations,
  pipeline,
  pipelineStream,
  computeItems,
  estimate,
  measureSample,
  planRun,
  runShard,
  readManifest,
  readItemLines,
  serveMetrics,
} from './dist/index.js';
export type * from './dist/index.js';
