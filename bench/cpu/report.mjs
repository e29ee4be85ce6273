// A record as a person reads it.

/** Rows of text in columns, each as wide as its widest cell. */
function table(rows) {
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  return rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]))
      .join('  ')
      .trimEnd(),
  );
}

const number = (value, digits = 3) =>
  value === undefined ? '' : value >= 100 ? value.toFixed(0) : value.toPrecision(digits);

/** Of the FMA or vdpbf16ps peak, or of a fill, what a figure of the package's own reached; undefined for a peer's. */
export function fractionOfPeak(figure, item, peaks) {
  const peak = peaks[figure.who];
  if (!peak || !figure.ms) return undefined;
  if (item.kind === 'bias') return item.bytes / figure.min / 1e6 / figure.fillGBs;
  const gflops = (item.precision === 'bf16' && peak.bf16Gflops) || peak.fmaGflops;
  return item.flops / figure.ms / 1e6 / gflops;
}

function figureRows({ cases, figures, peaks }) {
  const rows = [['case', 'by', 'ms', 'min … max', 'own is', 'of peak', 'extra MiB', 'error']];
  for (const item of cases) {
    const ofCase = figures.filter((figure) => figure.case === item.name);
    const own = ofCase.find(({ way, ms }) => way === 'own' && ms !== undefined);
    for (const figure of ofCase) {
      const by = figure.way === 'own' ? figure.who : `${figure.who}, ${figure.way}`;
      if (figure.ms === undefined) {
        rows.push([item.name, by, 'not run', figure.skip ?? '', '', '', '', '']);
        continue;
      }
      const fraction = fractionOfPeak(figure, item, peaks);
      rows.push([
        item.name,
        by,
        number(figure.ms),
        `${number(figure.min)} … ${number(figure.max)}`,
        own && figure.way !== 'own' ? `${number(figure.ms / own.ms)}×` : '',
        fraction === undefined ? '' : `${(100 * fraction).toFixed(0)} %`,
        figure.extraMib === undefined ? '' : figure.extraMib.toFixed(0),
        figure.relative === undefined
          ? ''
          : `${figure.relative.toExponential(1)}${figure.wrong ? ' WRONG' : ''}`,
      ]);
    }
  }
  return rows;
}

function goalRows(goals) {
  const rows = [['goal', 'asked', 'ceiling', 'reached', '']];
  for (const { what, goal, ceiling, most, unit, reached, met, why } of goals) {
    rows.push([
      what,
      `${most ? '≤' : '≥'} ${goal}${unit}`,
      ceiling === undefined ? '' : `${ceiling}${unit}`,
      reached === undefined ? '' : `${number(reached)}${unit}`,
      why === undefined ? (met ? 'met' : 'missed') : `not run: ${why}`,
    ]);
  }
  return rows;
}

export function reportText(record) {
  const { machine, threads, rounds, small, peaks, goals } = record;
  const lines = [
    `${machine.processor}, ${machine.cores} cores; ${threads} threads, medians of ${rounds} interleaved rounds`,
    ...(small ? ['sizes are small (--small): these times say nothing'] : []),
    ...Object.entries(peaks).map(
      ([isa, { fmaGflops, bf16Gflops, fillGBs, readGBs }]) =>
        `${isa}: FMA ${number(fmaGflops)} GFLOP/s${bf16Gflops ? `, vdpbf16ps ${number(bf16Gflops)}` : ''}; ` +
        `fill ${number(fillGBs)} GB/s, read ${number(readGBs)}`,
    ),
    '',
    ...table(figureRows(record)),
    ...(goals.length > 0 ? ['', ...table(goalRows(goals))] : []),
  ];
  return `${lines.join('\n')}\n`;
}
