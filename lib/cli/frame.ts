import { SingleBar } from 'cli-progress';
import type { CommandModule, Options } from 'yargs';

import { runFrame, type FrameOptions, type FrameSummary, type Progress } from '../frame/index.js';
import { abortable } from './abortable.js';
import { describeDevice, deviceOptions, openDevice, type DeviceOptions } from './device-options.js';

/** The options of `frame` and `demo` but for the frame itself. */
export type FrameArguments = Omit<FrameOptions, 'frame'> & DeviceOptions & { json: boolean };

export const frameOptions = {
  out: { type: 'string', demandOption: true, requiresArg: true, describe: 'folder of the outputs' },
  queries: {
    type: 'number',
    default: 900,
    requiresArg: true,
    describe: 'object queries: boxes first, then a spread',
  },
  seed: { type: 'number', default: 1, requiresArg: true, describe: 'of the spread' },
  strength: {
    type: 'number',
    default: 5,
    requiresArg: true,
    describe: 'α of the modality and spatial terms',
  },
  features: {
    type: 'string',
    requiresArg: true,
    describe: "safetensors file with a backbone's bev [256,180,180] and camera [V,256,40,100]",
  },
  router: {
    type: 'string',
    requiresArg: true,
    describe: "safetensors file with a router's weight [2,256] and bias [2]",
  },
  window: {
    type: 'boolean',
    default: false,
    describe: 'local attention: 5×5 BEV and 15×15 image cells a query',
  },
  dense: { type: 'boolean', default: false, describe: 'write the fused bias [1,1,Q,K] too (203 MB)' },
  pictures: { type: 'boolean', default: true, describe: 'heat maps as PNG; --no-pictures leaves them out' },
  ...deviceOptions,
  json: { type: 'boolean', default: false, describe: 'print the summary as JSON on stdout' },
} as const satisfies Record<string, Options>;

/** A bar on a terminal, else a line a stage; on stderr. */
function stageProgress(): { progress: Progress; stop: () => void } {
  if (!process.stderr.isTTY) {
    return {
      progress: (stage, index, count) => process.stderr.write(`[${index + 1}/${count}] ${stage}\n`),
      stop: () => undefined,
    };
  }
  const bar = new SingleBar({
    format: '{bar} {value}/{total} {stage}',
    stream: process.stderr,
    clearOnComplete: true,
  });
  let started = false;
  return {
    progress: (stage, index, count) => {
      if (!started) bar.start(count, index, { stage });
      started = true;
      bar.update(index, { stage });
    },
    stop: () => {
      if (started) bar.stop();
    },
  };
}

function describe(summary: FrameSummary, out: string): string {
  const { shape, queries, attentionMass, ms } = summary;
  const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
  return [
    `${shape.queries} queries (${queries.onBoxes} on boxes, ${queries.seenByACamera} seen by a camera) over ${shape.keys} keys`,
    `attention on ${describeDevice({ info: summary.device })}: ${ms.attention!.toFixed(0)} ms of ${ms.total!.toFixed(0)}`,
    `attention mass: LiDAR ${percent(attentionMass.lidar)}, cameras ${percent(attentionMass.camera)}`,
    `wrote ${summary.files.join(', ')} to ${out}`,
    '',
  ].join('\n');
}

/** Runs a frame as the command line does. */
export async function runFrameCommand(
  args: FrameArguments & { frame: string },
  signal: AbortSignal,
): Promise<void> {
  using device = await openDevice(args);
  const { progress, stop } = stageProgress();
  let summary: FrameSummary;
  try {
    summary = await runFrame(args, device, { signal, progress });
  } finally {
    stop();
  }
  process.stderr.write(describe(summary, args.out));
  if (args.json) process.stdout.write(`${JSON.stringify(summary)}\n`);
}

export const frameCommand: CommandModule<object, FrameArguments & { frame: string }> = {
  command: 'frame <frame>',
  describe: 'a LiDAR-camera frame through the AQR bias stack: tensors, a summary and heat maps',
  builder: (yargs) =>
    yargs
      .positional('frame', {
        type: 'string',
        demandOption: true,
        describe: 'the calibration file, FRAME.json',
      })
      .options(frameOptions)
      .example('$0 frame scene/frame.json --out out/scene --window', '')
      .epilogue('docs/frame.md describes FRAME.json and the outputs.'),
  handler: (args) => abortable((signal) => runFrameCommand(args, signal)),
};
