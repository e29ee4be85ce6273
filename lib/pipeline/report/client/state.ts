/** What is shown and what is selected; everything on the page follows it. */
import type { Row } from '../data.js';
import type { Column } from './columns.js';
import { failureId } from './statistics.js';

export interface Filter {
  /** words that a row's key, source, code, stage and message hold, all of them, in any case */
  readonly text: string;
  readonly sensor: 'lidar' | 'camera';
  /** share of the attention on that sensor, 0 to 1 */
  readonly from: number;
  readonly to: number;
  readonly failuresOnly: boolean;
  /** one group of failures (`failureId`) */
  readonly failure: string | undefined;
}

export const NO_FILTER: Filter = {
  text: '',
  sensor: 'lidar',
  from: 0,
  to: 1,
  failuresOnly: false,
  failure: undefined,
};

export interface Sort {
  readonly column: Column;
  readonly descending: boolean;
}

export interface State {
  readonly rows: readonly Row[];
  /** rows that the filter lets through, in the manifest's order */
  readonly shown: readonly Row[];
  /** the same as the table has them */
  readonly ordered: readonly Row[];
  readonly filter: Filter;
  readonly sort: Sort;
  readonly selected: Row | undefined;
  setFilter(change: Partial<Filter>): void;
  setSort(sort: Sort): void;
  /** @param chosen by a person, who wants to see it, and not by the page */
  select(row: Row | undefined, chosen?: boolean): void;
  /** Calls back when other rows are shown. */
  onShown(listener: () => void): void;
  /** Calls back when other rows are shown, or the same in another order. */
  onOrdered(listener: () => void): void;
  onSelected(listener: (row: Row | undefined, chosen: boolean) => void): void;
}

const textOf = ({ key, source, failure }: Row): string =>
  [key, source, failure?.code ?? '', failure?.stage ?? '', failure?.message ?? ''].join('\n').toLowerCase();

function filtered(rows: readonly Row[], filter: Filter): Row[] {
  const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  const anyMass = filter.from <= 0 && filter.to >= 1;
  return rows.filter((row) => {
    if (filter.failuresOnly && !row.failure) return false;
    if (filter.failure !== undefined && (!row.failure || failureId(row.failure) !== filter.failure))
      return false;
    if (!anyMass) {
      const mass = row.mass?.[filter.sensor];
      if (mass === undefined || mass < filter.from || mass > filter.to) return false;
    }
    if (words.length === 0) return true;
    const text = textOf(row);
    return words.every((word) => text.includes(word));
  });
}

const collator = new Intl.Collator('en', { numeric: true });

/** Rows without a value come last, whichever way the others go; equal ones stay in the manifest's order. */
export function sortedBy(rows: readonly Row[], { column, descending }: Sort): Row[] {
  const keyed = rows.map((row) => ({ row, value: column.value(row) }));
  const sign = descending ? -1 : 1;
  keyed.sort((a, b) => {
    if (a.value === undefined || b.value === undefined)
      return Number(a.value === undefined) - Number(b.value === undefined) || a.row.n - b.row.n;
    const order =
      typeof a.value === 'number' && typeof b.value === 'number'
        ? a.value - b.value
        : collator.compare(String(a.value), String(b.value));
    return sign * order || a.row.n - b.row.n;
  });
  return keyed.map(({ row }) => row);
}

export function createState(rows: readonly Row[], sort: Sort): State {
  let [filter, order, selected] = [NO_FILTER, sort, undefined as Row | undefined];
  let shown = filtered(rows, filter);
  let ordered = sortedBy(shown, order);
  const shownListeners: (() => void)[] = [];
  const orderedListeners: (() => void)[] = [];
  const selectedListeners: ((row: Row | undefined, chosen: boolean) => void)[] = [];
  return {
    rows,
    get shown() {
      return shown;
    },
    get ordered() {
      return ordered;
    },
    get filter() {
      return filter;
    },
    get sort() {
      return order;
    },
    get selected() {
      return selected;
    },
    setFilter(change) {
      filter = { ...filter, ...change };
      shown = filtered(rows, filter);
      ordered = sortedBy(shown, order);
      for (const listener of [...shownListeners, ...orderedListeners]) listener();
    },
    setSort(next) {
      order = next;
      ordered = sortedBy(shown, order);
      for (const listener of orderedListeners) listener();
    },
    select(row, chosen = true) {
      selected = row;
      for (const listener of selectedListeners) listener(row, chosen);
    },
    onShown: (listener) => void shownListeners.push(listener),
    onOrdered: (listener) => void orderedListeners.push(listener),
    onSelected: (listener) => void selectedListeners.push(listener),
  };
}
