export {
  Adam,
  open,
  AttentionBiasError,
  loadMultihead,
  operations,
  pipeline,
  pipelineStream,
  serveMetrics,
} from './dist/index.js';
export type * from './dist/index.js';
