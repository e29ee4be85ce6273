export { Adam, open, AttentionBiasError } from './dist/index.js';
export type * from './dist/index.js';
