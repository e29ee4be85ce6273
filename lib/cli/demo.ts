import { join } from 'node:path';
import type { CommandModule } from 'yargs';

import { writeSyntheticScene } from '../frame/synthetic.js';
import { abortable } from './abortable.js';
import { frameOptions, runFrameCommand, type FrameArguments } from './frame.js';

export const demoCommand: CommandModule<object, FrameArguments> = {
  command: 'demo',
  describe: 'make a synthetic LiDAR-camera scene and run `frame` on it',
  builder: (yargs) => yargs.options(frameOptions).example('$0 demo --out out/demo', ''),
  handler: (args) =>
    abortable(async (signal) => {
      const frame = await writeSyntheticScene(join(args.out, 'scene'), args.seed, signal);
      process.stderr.write(`made a synthetic scene: ${frame}\n`);
      await runFrameCommand({ ...args, frame }, signal);
    }),
};
