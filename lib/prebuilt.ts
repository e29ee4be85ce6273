/**
 * Prebuilt addons: packages of their own, one a platform, made by scripts/prebuild.js. Each holds `attention_bias.node` and in its
 * package.json, as `attentionBias`, what is checked before the file is loaded: a truncated one would end the process.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { packageVersion } from './version.js';

export interface PrebuiltPackage {
  readonly name: string;
  readonly version: string;
  /** the addon */
  readonly path: string;
  readonly bytes: number;
  /** of the addon, as hexadecimal digits */
  readonly sha256: string;
  /** the oldest glibc that it loads with, such as 2.34 */
  readonly glibc: string;
}

/** Names of the packages that fit this platform, the better ones first: with CUDA, then without. */
export function prebuiltNames(platform: string = process.platform, arch: string = process.arch): string[] {
  const name = `@attention-bias/${platform}-${arch}`;
  return [`${name}-cuda`, name];
}

/** Those that are installed. */
export function installedPrebuilts(): PrebuiltPackage[] {
  return prebuiltNames().flatMap((name) => {
    let path: string;
    try {
      path = require.resolve(`${name}/package.json`);
    } catch {
      return [];
    }
    const { version, attentionBias } = JSON.parse(readFileSync(path, 'utf8')) as {
      version: string;
      attentionBias: Pick<PrebuiltPackage, 'bytes' | 'sha256' | 'glibc'>;
    };
    return [{ name, version, path: join(dirname(path), 'attention_bias.node'), ...attentionBias }];
  });
}

/** e_machine of ELF files, by Node's names of processors. */
const MACHINES: Readonly<Record<string, number>> = { x64: 0x3e, arm64: 0xb7 };

/** What is wrong with a file that is to be an addon for this processor; undefined where its first bytes are those of one. */
export function addonProblem(path: string): string | undefined {
  const head = Buffer.alloc(20);
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    return (error as Error).message;
  }
  try {
    readSync(file, head, 0, head.length, 0);
  } finally {
    closeSync(file);
  }
  if (process.platform !== 'linux') return undefined;
  if (head.toString('latin1', 0, 4) !== '\x7fELF') return 'it is no addon for Linux (no ELF file)';
  const machine = head.readUInt16LE(18);
  if (machine === MACHINES[process.arch]) return undefined;
  const known = Object.entries(MACHINES).find(([, value]) => value === machine)?.[0];
  return `it is for another processor (${known ?? `ELF machine ${machine}`}), and this Node.js runs on ${process.arch}`;
}

/** What is wrong with an installed package, as far as that is cheaply seen; undefined where nothing is. */
export function prebuiltProblem({ path, version, bytes }: PrebuiltPackage): string | undefined {
  if (version !== packageVersion()) {
    return `it is version ${version}, and attention-bias is version ${packageVersion()}`;
  }
  const problem = addonProblem(path);
  if (problem !== undefined) return problem;
  const found = statSync(path).size;
  return found === bytes ? undefined : `its file is damaged: ${found} bytes in place of ${bytes}`;
}

/** Whether the addon's file is, bit by bit, what was packed. Reads all of it. */
export function isIntact({ path, sha256 }: PrebuiltPackage): boolean {
  return createHash('sha256').update(readFileSync(path)).digest('hex') === sha256;
}
