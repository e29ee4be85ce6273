import { join, resolve } from 'node:path';
import bindings from 'bindings';
import type { NativeBinding } from './binding.js';
import { AttentionBiasError } from './errors.js';
import { addonProblem, installedPrebuilts, isIntact, prebuiltNames, prebuiltProblem } from './prebuilt.js';

const root = join(__dirname, '..');

interface Loaded {
  readonly binding: NativeBinding;
  /** the file that ATTENTION_BIAS_BINARY names, the prebuilt package, or `local build` */
  readonly from: string;
}

let loaded: Loaded | undefined;

/**
 * The native addon, loaded once: the file that ATTENTION_BIAS_BINARY names, else from the platform's prebuilt package where
 * one is installed and loads, else from the local build.
 * Throws ERR_DEVICE with the cause and the command that mends it.
 */
export function native(): NativeBinding {
  return load().binding;
}

/** Where the addon was loaded from. Throws as `native`. */
export function nativeOrigin(): string {
  return load().from;
}

function load(): Loaded {
  if (loaded) return loaded;
  const problems: string[] = [];
  return (loaded = named() ?? prebuilt(problems) ?? local(problems));
}

/** The command that builds the addon here. */
const buildCommand = (): string => `node ${JSON.stringify(join(root, 'scripts/install.js'))}`;

// eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
const requireAddon = (path: string): NativeBinding => require(path) as NativeBinding;

function named(): Loaded | undefined {
  const path = process.env.ATTENTION_BIAS_BINARY;
  if (path === undefined || path === '') return undefined;
  const absolute = resolve(path);
  try {
    const problem = addonProblem(absolute);
    if (problem !== undefined) throw new Error(problem);
    return { binding: requireAddon(absolute), from: path };
  } catch (cause) {
    throw broken(
      `ATTENTION_BIAS_BINARY=${path} does not load`,
      reasonOf(cause),
      'unset ATTENTION_BIAS_BINARY',
      cause,
    );
  }
}

/** From the first package that loads; why the others don't joins `problems`. */
function prebuilt(problems: string[]): Loaded | undefined {
  for (const candidate of installedPrebuilts()) {
    let problem = prebuiltProblem(candidate);
    if (problem === undefined) {
      try {
        return { binding: requireAddon(candidate.path), from: candidate.name };
      } catch (cause) {
        problem = reasonOf(cause);
        if (!isIntact(candidate)) problem = `its file is damaged (SHA-256 differs): ${problem}`;
      }
    }
    problems.push(`the prebuilt package ${candidate.name} does not load: ${problem}`);
  }
  return undefined;
}

function local(problems: readonly string[]): Loaded {
  const module = 'attention_bias.node';
  try {
    // `try` has one entry: by itself `bindings` takes build/ and build/Debug before build/Release.
    const binding = bindings({
      bindings: module,
      module_root: root,
      try: [['module_root', 'build', 'Release', 'bindings']],
    }) as NativeBinding;
    return { binding, from: 'local build' };
  } catch (cause) {
    const absent = cause instanceof Error && cause.message.includes('Could not locate the bindings file');
    if (!absent) throw broken('the native addon does not load', reasonOf(cause), buildCommand(), cause);
    if (problems.length > 0) throw broken(problems.join('; '), undefined, buildCommand());
    const [, name] = prebuiltNames();
    throw broken(
      'the native addon was not built (npm runs the install scripts of dependencies only where they are allowed), and there ' +
        `is no prebuilt package ${name!} (optional dependencies are for linux-x64 and linux-arm64 with glibc)`,
      undefined,
      buildCommand(),
    );
  }
}

/** Why a file does not load, in a person's words where the dynamic linker's are not. */
function reasonOf(cause: unknown): string {
  const line = (cause instanceof Error ? cause.message : String(cause)).split('\n')[0]!;
  const glibc = /version `GLIBC_([\d.]+)' not found/.exec(line)?.[1];
  if (glibc === undefined) return line;
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  return `it needs glibc ${glibc} or later, and this system has ${header.glibcVersionRuntime ?? 'another libc'}: build it here`;
}

function broken(
  what: string,
  reason: string | undefined,
  command: string,
  cause?: unknown,
): AttentionBiasError {
  const where = `${process.platform}-${process.arch}, Node.js ${process.version}`;
  const why = reason === undefined ? '' : `: ${reason}`;
  return new AttentionBiasError('ERR_DEVICE', `${what} on ${where}${why}. Run: ${command}`, { cause });
}
