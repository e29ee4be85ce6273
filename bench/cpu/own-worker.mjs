// This package as a participant; ATTENTION_BIAS_ISA picks the instruction set.
import { createRequire } from 'node:module';
import { openInputs } from './inputs.mjs';
import { prepareOwn } from './own.mjs';
import { serve } from './serve.mjs';

const require = createRequire(import.meta.url);
const { open } = require('../../dist/index.js');

await serve(async ({ case: item, inputs, threads }) => {
  const device = await open({ device: 'cpu', threads });
  try {
    const { given, bias } = await openInputs(inputs, item);
    const prepared = await prepareOwn(device, item, given, bias);
    return { version: device.info.isa, ...prepared, release: () => device.close() };
  } catch (error) {
    device.close();
    throw error;
  }
});
