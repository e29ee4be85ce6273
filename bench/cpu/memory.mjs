// Peak memory of a call, by the kernel's own count of the process.
import { readFileSync, writeFileSync } from 'node:fs';

function kib(field) {
  return Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(readFileSync('/proc/self/status', 'utf8'))[1]);
}

/** `run()` with `extraMib`: what the process grew by at its peak, less `outputBytes`; absent where no kernel says. */
export async function withPeak(run, outputBytes) {
  let before;
  try {
    writeFileSync('/proc/self/clear_refs', '5'); // VmHWM starts anew
    before = kib('VmRSS');
  } catch {
    return run();
  }
  const result = await run();
  return { ...result, extraMib: Math.max(0, (kib('VmHWM') - before - outputBytes / 1024) / 1024) };
}
