import type { CommandModule } from 'yargs';

import { writeReport, type ReportSummary } from '../pipeline/report/index.js';
import { abortable } from './abortable.js';

interface ReportArguments {
  folder: string;
  out: string | undefined;
  pictures: number | undefined;
  json: boolean;
}

function describe({ out, items, failed, pictures, bytes }: ReportSummary): string {
  const size = bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  const failures = failed > 0 ? `, ${failed} of them failed` : '';
  return `wrote ${items} items${failures}, and ${pictures} pictures to ${out} (${size})`;
}

export const reportCommand: CommandModule<object, ReportArguments> = {
  command: 'report <folder>',
  describe: 'what a run did, as one HTML file: charts, pictures, failures, a table',
  builder: (yargs) =>
    yargs
      .positional('folder', {
        type: 'string',
        demandOption: true,
        describe: 'folder that pipeline or frame wrote, or a folder of those of frame',
      })
      .options({
        out: { type: 'string', requiresArg: true, describe: 'the file; default: report.html in the folder' },
        pictures: {
          type: 'number',
          requiresArg: true,
          describe: 'frames with pictures, evenly spread; default 2000',
        },
        json: { type: 'boolean', default: false, describe: 'print a summary as JSON on stdout' },
      })
      .example('$0 report out/run --out report.html', '')
      .epilogue(
        'docs/report.md describes the page. It loads nothing: it can be sent, and opened from a disk.',
      ),
  handler: async ({ folder, out, pictures, json }) => {
    const summary = await abortable((signal) => writeReport({ folder, out, pictures, signal }));
    process.stderr.write(`${describe(summary)}\n`);
    if (json) process.stdout.write(`${JSON.stringify(summary)}\n`);
  },
};
