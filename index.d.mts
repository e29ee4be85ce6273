export { Adam, open, AttentionBiasError, loadMultihead, operations, pipeline, pipelineStream } from './dist/index.js';
export type * from './dist/index.js';
