/** Paths that files name: resolved from the folder of the file that names them, and within a folder where that is asked for. */
import { dirname, relative, resolve, sep, isAbsolute } from 'node:path';

import { expected } from '../errors.js';

/**
 * The absolute path of a file that another file names.
 *
 * @param by the file that names it
 * @param root a folder that it must lie in, or undefined for anywhere. Names are compared, and symbolic links are not followed:
 *   those within the folder are its owner's.
 * @throws AttentionBiasError ERR_FORMAT for a path that leads out of the folder
 */
export function resolveFrom(by: string, file: string, root: string | undefined): string {
  const path = resolve(dirname(by), file);
  if (root === undefined) return path;
  const inside = relative(root, path);
  if (inside === '..' || inside.startsWith(`..${sep}`) || isAbsolute(inside)) {
    throw expected('ERR_FORMAT', `paths within ${root} (--root)`, by, JSON.stringify(file));
  }
  return path;
}
