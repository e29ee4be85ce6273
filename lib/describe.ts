const SHOWN_CHARACTERS = 60;
const SHOWN_ENTRIES = 8;

/** An argument as a message shows it, whatever it is: in one line, and without a call of its own methods. */
export function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.length > SHOWN_CHARACTERS
        ? `${JSON.stringify(value.slice(0, SHOWN_CHARACTERS)).slice(0, -1)}…"`
        : JSON.stringify(value);
    case 'undefined':
    case 'boolean':
    case 'number':
      return String(value);
    case 'object':
      if (value === null) return 'null';
      return Array.isArray(value) ? describeArray(value) : 'an object';
    default:
      return `a ${typeof value}`;
  }
}

function describeArray(array: readonly unknown[]): string {
  const { length } = array;
  if (length > SHOWN_ENTRIES) return `an array of ${length}`;
  const entries = Array.from({ length }, (_, i) => {
    const entry = array[i];
    return Array.isArray(entry) ? `an array of ${entry.length}` : describe(entry);
  });
  return `[${entries.join(', ')}]`;
}
