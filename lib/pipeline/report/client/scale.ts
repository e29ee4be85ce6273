/** Numbers to places, and the numbers worth a label. */

export type Scale = (value: number) => number;

/** Straight from [from, to] to [low, high]. */
export function linear([from, to]: readonly [number, number], [low, high]: readonly [number, number]): Scale {
  const factor = to === from ? 0 : (high - low) / (to - from);
  return (value) => low + (value - from) * factor;
}

/** The same by the logarithm; values below `from` stand at its place. */
export function logarithmic([from, to]: readonly [number, number], range: readonly [number, number]): Scale {
  const scale = linear([Math.log(from), Math.log(to)], range);
  return (value) => scale(Math.log(Math.max(from, value)));
}

/** The least step of 1, 2 or 5 times a power of ten, at least `least`, that takes `span` in at most `count` steps. */
export function niceStep(span: number, count: number, least = 0): number {
  const raw = Math.max(span / Math.max(1, count), least, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(raw));
  for (const factor of [1, 2, 5]) if (raw <= factor * power * (1 + 1e-9)) return factor * power;
  return 10 * power;
}

/** Round numbers in [from, to], about `count` of them. */
export function ticks(from: number, to: number, count: number, least = 0): number[] {
  const step = niceStep(to - from, count, least);
  const first = Math.ceil(from / step - 1e-9);
  const last = Math.floor(to / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => round((first + i) * step));
}

/** Powers of ten in [from, to], every second or third where there are too many. */
export function decades(from: number, to: number, count: number): number[] {
  const first = Math.ceil(Math.log10(from) - 1e-9);
  const last = Math.floor(Math.log10(to) + 1e-9);
  const every = Math.max(1, Math.ceil((last - first + 1) / Math.max(1, count)));
  const powers: number[] = [];
  for (let power = first; power <= last; power += every) powers.push(round(10 ** power));
  return powers;
}

/** Without the last digits of a sum of fractions. */
const round = (value: number): number => Number(value.toPrecision(12));
