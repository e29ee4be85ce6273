/** Numbers as people read them. */

export const grouped = (value: number): string => value.toLocaleString('en-US');

export const counted = (count: number, singular: string, plural = `${singular}s`): string =>
  `${grouped(count)} ${count === 1 ? singular : plural}`;

/** Seconds in the two largest of days, hours, minutes and seconds. */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const units = [
    ['d', 86_400],
    ['h', 3_600],
    ['min', 60],
    ['s', 1],
  ] as const;
  const first = units.findIndex(([, size]) => seconds >= size);
  const [[name, size], [nextName, nextSize]] = [units[first]!, units[first + 1]!];
  const parts = Math.round(seconds / nextSize);
  const perUnit = size / nextSize;
  const [whole, rest] = [Math.floor(parts / perUnit), parts % perUnit];
  return rest === 0 ? `${whole} ${name}` : `${whole} ${name} ${rest} ${nextName}`;
}

export const perSecond = (rate: number): string =>
  `${rate < 10 ? rate.toPrecision(2) : grouped(Math.round(rate))}/s`;
