export { Adam, open, AttentionBiasError, loadMultihead } from './dist/index.js';
export type * from './dist/index.js';
