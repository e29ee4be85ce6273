/** What went wrong, for code that reacts to it; the message is for people. */
export type ErrorCode =
  | 'ERR_SHAPE' // a wrong rank, dimension or element count
  | 'ERR_DTYPE' // a wrong element type
  | 'ERR_VALUE' // a value outside its range, NaN where none may be, a detached buffer, an unknown option
  | 'ERR_TERM' // a bias term of unknown type, or with an unknown or missing field
  | 'ERR_DEVICE' // a device that was asked for and can't be used, or that is closed
  | 'ERR_MEMORY' // an allocation that failed, or that is larger than can be addressed
  | 'ERR_ABORTED' // the signal of the call was aborted
  | 'ERR_DISPOSED' // a tensor that was disposed
  | 'ERR_FORMAT' // a file whose contents are not what its format asks for
  | 'ERR_IO'; // a file that can't be opened, read or written

/** Every error that this package throws on purpose. */
export class AttentionBiasError extends Error {
  override readonly name = 'AttentionBiasError';

  constructor(
    readonly code: ErrorCode,
    message: string,
    options?: { cause?: unknown },
  ) {
    super(message, options);
  }
}

/** The package's one sentence: what was expected, of what, and what came instead. */
export function expected(code: ErrorCode, what: string, name: string, received: string): AttentionBiasError {
  return new AttentionBiasError(code, `expected ${what} for ${name} but received ${received}`);
}

/** A text without control characters and line breaks, which are written as JSON has them: for messages, which are one line. */
export const visible = (text: string): string =>
  text.replace(
    /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );

/** redis:, rediss:, redis+tls:, and these with a slip: letters of theirs in another order, missing or double; a slash too few. */
const redisScheme = /\b[redis]{4,7}(?:[+-][a-z]{1,12})?(?::\/*|\/\/)/i;

/** A word without its password: that of a Redis URL may hold any character, of others only what a URL's authority may. */
function wordWithoutPassword(word: string): string {
  const at = word.lastIndexOf('@');
  if (at < 0) return word;
  const redis = redisScheme.exec(word);
  if (!redis) return word.replace(/([a-z]:\/\/[^/:@]*):[^/]*@/gi, '$1:***@');
  const begin = redis.index + redis[0].length;
  if (begin > at) return word;
  const [user = '', password] = word.slice(begin, at).split(':', 2);
  return `${word.slice(0, begin)}${password === undefined ? '' : `${user}:`}***${word.slice(at)}`;
}

/**
 * A text without the passwords of URLs in it, also of Redis URLs with a slip, such as `redi:/user:secret@host`: what is said of an
 * argument may hold one. Paths, and URLs with an @ in theirs, stay as they are. Takes time in proportion to the text.
 */
export const withoutPasswords = (text: string): string =>
  text
    .replace(/\S+/g, wordWithoutPassword)
    .replace(/([?&][^\s=&]{0,40}pass[^\s=&]{0,40}=)[^\s&]*/gi, '$1***');

/** The codes of native errors (native/core/errors.h). */
const nativeCodes: ReadonlySet<unknown> = new Set<ErrorCode>([
  'ERR_SHAPE',
  'ERR_DTYPE',
  'ERR_VALUE',
  'ERR_TERM',
  'ERR_DEVICE',
  'ERR_MEMORY',
  'ERR_ABORTED',
  'ERR_DISPOSED',
]);

/**
 * The AttentionBiasError that an error of the addon stands for; anything else, such as what a getter among the arguments
 * throws, stays as it is.
 */
export function fromNative(error: unknown, options?: { cause?: unknown }): unknown {
  if (error instanceof AttentionBiasError || typeof error !== 'object' || error === null) return error;
  // By shape: the addon's Error may come from another realm.
  const { code, message } = error as { code?: unknown; message?: unknown };
  // What node-addon-api makes of C++'s own where it has nothing of ours around it.
  if (code === undefined && message === 'std::bad_alloc') {
    return new AttentionBiasError(
      'ERR_MEMORY',
      "expected memory for the addon's own use but received none from the system",
      options,
    );
  }
  if (!nativeCodes.has(code) || typeof message !== 'string') return error;
  return new AttentionBiasError(code as ErrorCode, message, options);
}

/** Calls the addon, whose errors leave as AttentionBiasError. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw fromNative(error);
  }
}
