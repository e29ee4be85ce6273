export { Adam, open, AttentionBiasError, loadMultihead, operations } from './dist/index.js';
export type * from './dist/index.js';
