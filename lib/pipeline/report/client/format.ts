/** Numbers for people. */

const NONE = '–';

export const count = (value: number | undefined): string =>
  value === undefined || Number.isNaN(value) ? NONE : value.toLocaleString('en');

/** 0.6213 as 62.1 % */
export const percent = (share: number | null | undefined, digits = 1): string =>
  typeof share !== 'number' || Number.isNaN(share) ? NONE : `${(share * 100).toFixed(digits)} %`;

/** Three digits and a unit, from microseconds to hours. */
export function duration(ms: number | undefined): string {
  if (ms === undefined || Number.isNaN(ms)) return NONE;
  if (ms === 0) return '0 ms';
  if (ms < 0.9995) return `${digits(ms * 1000)} µs`;
  if (ms < 999.5) return `${digits(ms)} ms`;
  if (ms < 60_000) return `${digits(ms / 1000)} s`;
  if (ms < 3_600_000) return `${digits(ms / 60_000)} min`;
  return `${digits(ms / 3_600_000)} h`;
}

/** 1234 as 1.2k */
export function short(value: number): string {
  if (value < 1000) return String(value);
  if (value < 999_500) return `${digits(value / 1000, 2)}k`;
  return `${digits(value / 1e6, 2)}M`;
}

/** At most `most` digits, and no fraction that adds none. */
export const digits = (value: number, most = 3): string =>
  value >= 10 ** most ? value.toFixed(0) : String(Number(value.toPrecision(most)));
