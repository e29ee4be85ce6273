import type { CommandModule } from 'yargs';
import { native } from '../native.js';
import { open, openCpu } from '../open.js';
import { selfTest, type SelfTestResult } from '../self-test.js';
import { table } from './table.js';

export interface SmokeRow extends SelfTestResult {
  device: string;
}

/** Every operation on every instruction set of this machine, and every further backend that is there. */
export async function smoke(): Promise<SmokeRow[]> {
  const rows: SmokeRow[] = [];
  for (const isa of native().info().isas) {
    for (const precision of ['f32', 'bf16'] as const) {
      using device = openCpu({ threads: 2, isa, precision });
      for (const result of await selfTest(device, precision)) {
        rows.push({ device: `cpu ${isa} ${precision}`, ...result });
      }
    }
  }
  const cuda = native().cuda(false);
  for (const { ordinal, name } of cuda.devices) {
    for (const precision of ['f32', 'tf32', 'bf16'] as const) {
      using device = await open({ device: `cuda:${ordinal}`, precision });
      for (const result of await selfTest(device, precision)) {
        rows.push({ device: `cuda:${ordinal} ${name} ${precision}`, ...result });
      }
    }
  }
  return rows;
}

export const smokeCommand: CommandModule<object, { json: boolean }> = {
  command: 'smoke',
  describe:
    'run every operation on small inputs against the float64 reference (seconds); exit code 1 if any fails',
  builder: (yargs) =>
    yargs.option('json', { type: 'boolean', default: false, describe: 'results as JSON on stdout' }),
  handler: async ({ json }) => {
    const rows = await smoke();
    const failed = rows.filter((row) => !row.passed).length;
    if (json) {
      process.stdout.write(`${JSON.stringify({ passed: failed === 0, results: rows })}\n`);
    } else {
      const cells = rows.map((r) => [
        r.device,
        r.name,
        r.passed ? 'pass' : 'FAIL',
        r.error.toExponential(1),
        r.ms.toFixed(1),
      ]);
      process.stdout.write(table([['device', 'operation', 'result', 'error', 'ms'], ...cells]));
      process.stdout.write(`${rows.length - failed} passed, ${failed} failed\n`);
    }
    if (failed > 0) process.exitCode = 1;
  },
};
