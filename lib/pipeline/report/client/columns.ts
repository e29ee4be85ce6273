/** The columns of the table: those that any row has a value for. */
import type { Row } from '../data.js';
import { count, duration, percent } from './format.js';
import { totalMs } from './statistics.js';

export interface Column {
  readonly id: string;
  readonly label: string;
  /** what it is, in a sentence */
  readonly about: string;
  /** pixels */
  readonly width: number;
  readonly numeric: boolean;
  readonly value: (row: Row) => number | string | undefined;
  readonly text: (row: Row) => string;
  /** share of the cell that is filled, 0 to 1 */
  readonly bar?: { readonly sensor: 'lidar' | 'camera'; readonly share: (row: Row) => number | undefined };
}

type Numeric = (row: Row) => number | undefined;

const number = (id: string, label: string, about: string, width: number, value: Numeric): Column => ({
  id,
  label,
  about,
  width,
  numeric: true,
  value,
  text: (row) => count(value(row)),
});

const time = (id: string, label: string, about: string, value: Numeric): Column => ({
  ...number(id, label, about, 92, value),
  text: (row) => duration(value(row)),
});

function share(id: 'lidar' | 'camera', label: string, about: string): Column {
  const value: Numeric = ({ mass }) => mass?.[id];
  return {
    ...number(id, label, about, 104, value),
    text: (row) => percent(value(row)),
    bar: { sensor: id, share: value },
  };
}

const trust = (sensor: 'lidar' | 'camera', label: string): Column => {
  const value: Numeric = ({ trust }) => trust?.[sensor];
  return {
    ...number(`trust-${sensor}`, label, `mean weight of the queries for ${label.split(' ')[0]!}`, 138, value),
    text: (row) => value(row)?.toFixed(3) ?? '–',
  };
};

export function columnsOf(rows: readonly Row[]): Column[] {
  const stages = new Set(rows.flatMap(({ ms }) => Object.keys(ms ?? {})));
  stages.delete('total');
  const all: Column[] = [
    number('index', '#', 'place in the manifest', 64, ({ index }) => index),
    {
      id: 'key',
      label: 'Key',
      about: 'name in the outputs',
      width: 168,
      numeric: false,
      value: ({ key }) => key,
      text: ({ key }) => key,
    },
    {
      id: 'status',
      label: 'Status',
      about: 'done, or the code of its error',
      width: 104,
      numeric: false,
      value: ({ failure }) => failure?.code ?? 'done',
      text: ({ failure }) => failure?.code ?? 'done',
    },
    share('lidar', 'LiDAR', 'share of the attention on LiDAR cells'),
    share('camera', 'Cameras', 'share of the attention on image cells'),
    trust('lidar', 'LiDAR weight'),
    trust('camera', 'Camera weight'),
    time('total', 'Time', 'all stages together', totalMs),
    ...[...stages].map((stage) =>
      time(`ms-${stage}`, stage, `time of the stage ${stage}`, ({ ms }) => ms?.[stage]),
    ),
    number('queries', 'Queries', 'object queries', 88, ({ queries }) => queries),
    number('boxes', 'On boxes', 'queries that stand on a box', 92, ({ onBoxes }) => onBoxes),
    number('seen', 'Seen', 'queries that a camera sees', 80, ({ seenByACamera }) => seenByACamera),
    number('blind', 'Blind', 'queries that see no key', 80, ({ blind }) => blind),
    number('points', 'Points', 'LiDAR points', 88, ({ lidarPoints }) => lidarPoints),
  ];
  return all.filter(({ value }) => rows.length === 0 || rows.some((row) => value(row) !== undefined));
}
