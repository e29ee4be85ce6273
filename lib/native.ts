import { join, resolve } from 'node:path';
import bindings from 'bindings';
import type { NativeBinding } from './binding.js';
import { AttentionBiasError } from './errors.js';

const root = join(__dirname, '..');
let loaded: NativeBinding | undefined;

/**
 * The native addon, loaded once: the file that ATTENTION_BIAS_BINARY names, else from the platform's prebuilt package where
 * one is installed, else from the local build.
 * Throws ERR_DEVICE with the cause and the command that mends it.
 */
export function native(): NativeBinding {
  return (loaded ??= named() ?? prebuilt() ?? local());
}

function named(): NativeBinding | undefined {
  const path = process.env.ATTENTION_BIAS_BINARY;
  if (path === undefined || path === '') return undefined;
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
    return require(resolve(path)) as NativeBinding;
  } catch (cause) {
    throw broken(`ATTENTION_BIAS_BINARY=${path} does not load`, cause, 'unset ATTENTION_BIAS_BINARY');
  }
}

function prebuilt(): NativeBinding | undefined {
  const name = `@attention-bias/${process.platform}-${process.arch}`;
  try {
    require.resolve(name);
  } catch {
    return undefined;
  }
  try {
    // eslint-disable-next-line @typescript-eslint/no-require-imports -- an addon can't be imported
    return require(name) as NativeBinding;
  } catch (cause) {
    throw broken(`the prebuilt package ${name} does not load`, cause, `npm install ${name}`);
  }
}

function local(): NativeBinding {
  const module = 'attention_bias.node';
  try {
    // `try` has one entry: by itself `bindings` takes build/ and build/Debug before build/Release.
    return bindings({
      bindings: module,
      module_root: root,
      try: [['module_root', 'build', 'Release', 'bindings']],
    }) as NativeBinding;
  } catch (cause) {
    const absent = cause instanceof Error && cause.message.includes('Could not locate the bindings file');
    throw broken(
      absent
        ? 'the native addon was not built (npm runs the install scripts of dependencies only where they are allowed)'
        : 'the native addon does not load',
      absent ? undefined : cause,
      `node ${JSON.stringify(join(root, 'scripts/install.js'))}`,
    );
  }
}

function broken(what: string, cause: unknown, command: string): AttentionBiasError {
  const reason = cause instanceof Error ? `: ${cause.message.split('\n')[0]}` : '';
  const where = `${process.platform}-${process.arch}, Node.js ${process.version}`;
  return new AttentionBiasError('ERR_DEVICE', `${what} on ${where}${reason}. Run: ${command}`, { cause });
}
