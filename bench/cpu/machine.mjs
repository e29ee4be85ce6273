// The machine that a record names, and what it does at most.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, totalmem } from 'node:os';

const require = createRequire(import.meta.url);
const { native } = require('../../dist/native.js');

/** The processor as the kernel knows it: cloud machines often hide the model's name. */
function processor() {
  try {
    const text = readFileSync('/proc/cpuinfo', 'utf8');
    const field = (name) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(text)?.[1];
    if (field('cpu family'))
      return `${field('model name')} (family ${field('cpu family')}, model ${field('model')})`;
  } catch {
    // no such file
  }
  return native().info().processor;
}

export function machine() {
  return {
    processor: processor(),
    cores: availableParallelism(),
    memoryGib: Math.round(totalmem() / 2 ** 30),
    system: `${process.platform}-${process.arch}`,
    node: process.version,
    compiler: native().info().compiler,
  };
}

/** The instruction sets to measure: the best two that this machine has, best first. */
export const measuredIsas = () => native().info().isas.slice(-2).reverse();

/** { ISA: { fmaGflops, bf16Gflops, fillGBs, readGBs } } */
export const peaks = (threads, isas) =>
  Object.fromEntries(isas.map((isa) => [isa, native().measurePeaks(threads, isa)]));
