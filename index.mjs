// Named exports for import; the package itself is CommonJS.
import api from './dist/index.js';

export const {
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
} = api;
