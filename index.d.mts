export { Adam, open, AttentionBiasError, loadMultihead, pipeline, pipelineStream } from './dist/index.js';
export type * from './dist/index.js';
