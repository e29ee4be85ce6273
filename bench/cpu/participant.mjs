// A process that takes part: idle until it is asked, so that one's threads never disturb another's.
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

/** { name, ask(message), close(), stop() }; ask() rejects with the last words of a process that has ended. */
export function startParticipant(name, command, args, env = {}) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } });
  const waiting = [];
  let words = '';
  let ended;
  const end = (why) => {
    ended ??= new Error(`${name}: ${why}`);
    for (const { reject } of waiting.splice(0)) reject(ended);
  };
  child.stderr.on('data', (data) => (words = (words + data).slice(-2000)));
  child.stdin.on('error', () => {}); // said by `close`
  child.on('error', (error) => end(error.message));
  child.on('close', (code, signal) => end(words.trim().split('\n').at(-1) || `ended with ${signal ?? code}`));
  createInterface({ input: child.stdout }).on('line', (line) => {
    // What a library prints is no answer.
    if (line.startsWith('{')) waiting.shift()?.resolve(JSON.parse(line));
  });
  return {
    name,
    ask(message) {
      if (ended) return Promise.reject(ended);
      return new Promise((resolve, reject) => {
        waiting.push({ resolve, reject });
        child.stdin.write(`${JSON.stringify(message)}\n`);
      });
    },
    /** Ends it at once, in the middle of what it was asked. */
    stop: () => child.kill(),
    async close() {
      child.stdin.end();
      if (ended) return;
      const timer = setTimeout(() => child.kill(), 5000);
      await new Promise((resolve) => child.once('close', resolve));
      clearTimeout(timer);
    },
  };
}
