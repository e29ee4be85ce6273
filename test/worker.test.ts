/**
 * `attention-bias worker` and `pipeline --redis` on a real Redis: whatever happens to the workers, the output folder holds the
 * bytes of a run without a queue.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

import { writeSafetensors } from '../lib/formats/safetensors.js';
import { open } from '../lib/open.js';
import { redisQueue } from '../lib/pipeline/queue/bullmq.js';
import type { RunStatus, ShardQueue } from '../lib/pipeline/queue/queue.js';
import { planRun, runShard } from '../lib/pipeline/run.js';
import { hasRedis, redisServer, type RedisServer } from './redis-server.js';
import { random, uniform } from './support.js';

const root = join(__dirname, '..');
const main = join(root, 'dist/cli/main.js');
const folder = mkdtempSync(join(tmpdir(), 'attention-bias-worker-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test('without the optional peers a worker says what to install', () => {
  const bare = join(folder, 'bare');
  mkdirSync(join(bare, 'node_modules'), { recursive: true });
  cpSync(join(root, 'dist'), join(bare, 'dist'), { recursive: true });
  cpSync(join(root, 'package.json'), join(bare, 'package.json'));
  for (const name of readdirSync(join(root, 'node_modules')))
    if (!['bullmq', 'ioredis'].includes(name))
      symlinkSync(join(root, 'node_modules', name), join(bare, 'node_modules', name));
  const args = [join(bare, 'dist/cli/main.js'), 'worker', '--redis', 'redis://127.0.0.1:1'];
  expect(spawnSync(process.execPath, args, { encoding: 'utf8' })).toMatchObject({
    status: 2,
    stderr: 'attention-bias: a queue on Redis needs the package bullmq. Run: npm install bullmq ioredis\n',
  });
});

test.each<[string[], number, string]>([
  [['worker', '--redis', 'redis://127.0.0.1:1'], 4, 'expected a Redis server that answers'],
  [
    ['pipeline', 'm', '--out', 'o', '--redis', 'redis://127.0.0.1:1', '--device', 'cpu'],
    2,
    'mutually exclusive',
  ],
])('%j is refused', (args, status, words) => {
  const run = spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  expect({ status: run.status, stderr: run.stderr }).toEqual({
    status,
    stderr: expect.stringContaining(words) as string,
  });
});

(hasRedis ? describe : describe.skip)('with redis-server', () => {
  const ITEMS = 22;
  const POISON = 9;
  const SHARD_SIZE = 4;
  const manifest = join(folder, 'jobs.jsonl');
  const children = new Set<ChildProcess>();
  let redis: RedisServer;
  let queue: ShardQueue;
  /** of a run without a queue, by name */
  let undisturbed: Record<string, string>;

  /** What a run has written, but for its logs. */
  function filesOf(out: string): Record<string, string> {
    const names = ['run.json', ...readdirSync(join(out, 'shards')).map((name) => `shards/${name}`)];
    return Object.fromEntries(names.map((name) => [name, readFileSync(join(out, name), 'hex')]));
  }

  beforeAll(async () => {
    redis = await redisServer();
    queue = await redisQueue({ url: redis.url });
    const next = random(1);
    const shape = [1, 8, 256, 32];
    const tensors = () => ({ ...uniform(next, shape), dtype: 'float32' as const });
    const lines = [];
    for (let i = 0; i < ITEMS; ++i) {
      const [q, k, v] = [tensors(), tensors(), tensors()];
      await writeSafetensors(join(folder, `${i}.safetensors`), { q, k, v });
      const job = { op: 'attention', tensors: `${i}.safetensors`, query: 'q', key: 'k', value: 'v' };
      // One asks for a tensor that its file does not have.
      writeFileSync(
        join(folder, `${i}.json`),
        JSON.stringify(i === POISON ? { ...job, key: 'nowhere' } : job),
      );
      lines.push(JSON.stringify({ job: `${i}.json` }));
    }
    writeFileSync(manifest, `${lines.join('\n')}\n`);
    const run = await planRun({ manifest, out: join(folder, 'undisturbed'), shardSize: SHARD_SIZE });
    using device = await open({ device: 'cpu' });
    for (let shard = 0; shard < run.shards; ++shard) await runShard(run, shard, { device });
    undisturbed = filesOf(run.out);
    expect(Object.keys(undisturbed)).toHaveLength(1 + 2 * 6);
  });
  afterEach(() => {
    for (const child of children) child.kill('SIGKILL');
    children.clear();
  });
  afterAll(async () => {
    await queue.close();
    await redis.remove();
  });

  type Line = Record<string, unknown> & { msg: string };
  function start(...args: string[]) {
    const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    children.add(child);
    const lines: Line[] = [];
    let [stdout, words] = ['', ''];
    child.stdout.on('data', (chunk) => (stdout += String(chunk)));
    const reader = createInterface({ input: child.stderr });
    reader.on('line', (line) => {
      if (line.startsWith('{')) lines.push(JSON.parse(line) as Line);
      else words += `${line}\n`;
      reader.emit('heard');
    });
    const ended = once(child, 'close').then(() => ({ code: child.exitCode, signal: child.signalCode }));
    return {
      lines,
      kill: (signal: NodeJS.Signals) => child.kill(signal),
      ended,
      stdout: () => stdout,
      words: () => words,
      /** the first line, logged or yet to come, that says this */
      async heard(msg: string, fits: (line: Line) => boolean = () => true): Promise<Line> {
        for (;;) {
          const found = lines.find((line) => line.msg === msg && fits(line));
          if (found) return found;
          await Promise.race([
            once(reader, 'heard'),
            ended.then((how) => {
              throw new Error(
                `ended without "${msg}": ${JSON.stringify(how)} ${words}${JSON.stringify(lines)}`,
              );
            }),
          ]);
        }
      },
    };
  }
  const device = ['--device', 'cpu', '--threads', '1'];
  const worker = (...args: string[]) =>
    start('worker', '--redis', redis.url, '--lock-seconds', '0.5', ...device, ...args);
  const pipeline = (out: string, ...args: string[]) =>
    start(
      'pipeline',
      manifest,
      '--out',
      out,
      '--shard-size',
      String(SHARD_SIZE),
      '--redis',
      redis.url,
      ...args,
    );
  const exit0 = { code: 0, signal: null };

  test('a worker killed in mid-shard and a Redis restarted in mid-run leave no trace in the output', async () => {
    const out = join(folder, 'disturbed');
    const waiting = pipeline(out, '--json');
    const victim = worker();
    await victim.heard('shard begun', ({ shard }) => shard === 1);
    victim.kill('SIGKILL');
    expect(await victim.ended).toEqual({ code: null, signal: 'SIGKILL' });
    const heir = worker('--metrics-port', '0');
    await heir.heard('shard begun', ({ shard }) => shard !== 1);
    await redis.stop();
    await heir.heard('Redis is gone; trying until it is back');
    const { metrics } = (await heir.heard('worker ready')) as { metrics?: string };
    expect((await fetch(`${metrics}/healthz`)).status).toBe(503);
    await redis.start();
    await heir.heard('Redis is back');
    expect(await waiting.ended).toEqual(exit0);
    expect((await fetch(`${metrics}/healthz`)).status).toBe(200);
    const scraped = await (await fetch(`${metrics}/metrics`)).text();
    expect(scraped).toContain('attention_bias_info');
    expect(filesOf(out)).toEqual(undisturbed);
    expect(heir.lines.map(({ msg }) => msg)).toContain('shard taken from a worker that died or was cut off');
    expect(JSON.parse(waiting.stdout())).toMatchObject({
      shards: { total: 6, done: 6, failed: 0, waiting: 0, active: 0 },
      items: { total: ITEMS, done: ITEMS, failed: 1 },
    });
    heir.kill('SIGTERM');
    expect(await heir.ended).toEqual(exit0);
  });

  test('two workers on one shard at the same time write it once', async () => {
    const out = join(folder, 'twice');
    expect(await pipeline(out, '--detach').ended).toEqual(exit0);
    const first = worker('--once');
    await first.heard('shard begun', ({ shard }) => shard === 2);
    first.kill('SIGSTOP'); // for longer than its lock
    const second = worker('--once');
    await second.heard('shard begun', ({ shard }) => shard === 2);
    first.kill('SIGCONT');
    expect(await Promise.all([first.ended, second.ended])).toEqual([exit0, exit0]);
    expect(filesOf(out)).toEqual(undisturbed);
    // Once more: nothing is computed.
    expect(await pipeline(out, '--detach').ended).toEqual(exit0);
    const third = worker('--once');
    expect(await third.ended).toEqual(exit0);
    const said = third.lines.map(({ msg }) => msg);
    expect(said.filter((msg) => msg === 'shard was finished before')).toHaveLength(6);
    expect(said).not.toContain('shard done');
  });

  test('shards that cannot be written fail after their attempts, are shown, and can be tried again', async () => {
    const out = join(folder, 'unwritable');
    mkdirSync(out);
    writeFileSync(join(out, 'logs'), 'no folder');
    const enqueued = pipeline(out, '--detach', '--attempts', '1');
    expect(await enqueued.ended).toEqual(exit0);
    // Five failures in a row are taken for the worker's: it leaves the sixth shard alone.
    const failing = worker('--once');
    expect(await failing.ended).toEqual({ code: 4, signal: null });
    const shown = start('pipeline', '--status', '--redis', redis.url, '--json');
    expect(await shown.ended).toEqual(exit0);
    const { runs } = JSON.parse(shown.stdout()) as { runs: RunStatus[] };
    expect(runs.at(-1)).toMatchObject({ out, shards: { done: 0, failed: 5, waiting: 1 } });
    rmSync(join(out, 'logs'));
    expect(await pipeline(out, '--detach').ended).toEqual(exit0);
    expect(await worker('--once').ended).toEqual(exit0);
    expect(filesOf(out)).toEqual(undisturbed);
  });

  test('a manifest that changes after it was enqueued is not computed as if it had not', async () => {
    const out = join(folder, 'changed');
    await pipeline(out, '--detach', '--attempts', '1').ended;
    const before = readFileSync(manifest, 'utf8');
    writeFileSync(manifest, before.split('\n').slice(1).join('\n'));
    try {
      await worker('--once').ended;
    } finally {
      writeFileSync(manifest, before);
    }
    const [run] = (await queue.status()).runs.filter((each) => each.out === out);
    expect(run).toMatchObject({ shards: { done: 0, failed: 5, waiting: 1 } });
    expect(run!.failures[0]!.message).toContain('expected the manifest that was enqueued');
    expect(readdirSync(join(out, 'shards'))).toEqual([]);
  });

  test('the commands of docs/queue.md, as they are written', async () => {
    const where = join(folder, 'docs');
    const bin = join(where, 'node_modules/.bin');
    mkdirSync(bin, { recursive: true });
    symlinkSync(main, join(bin, 'attention-bias'));
    chmodSync(main, 0o755);
    const text = readFileSync(join(root, 'docs/queue.md'), 'utf8');
    const commands = [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, command]) => command!);
    expect(commands).toHaveLength(5);
    // But for the port, where another may listen, and the server, which is this test's.
    const script = commands
      .slice(1)
      .join('\n')
      .replaceAll('redis://127.0.0.1:6379', redis.url)
      .replaceAll('npx attention-bias', 'attention-bias');
    expect(commands[0]).toMatch(/^redis-server .*noeviction .*--appendonly yes/);
    const child = spawn('bash', ['-euc', script], {
      cwd: where,
      env: { ...process.env, PATH: `${bin}:${process.env.PATH}` },
    });
    children.add(child);
    let stdout = '';
    child.stdout.on('data', (chunk) => (stdout += String(chunk)));
    const [code] = (await once(child, 'close')) as [number];
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: expect.stringMatching(/2 of 2 shards done\n {2}4 of 4 items; /) as string,
    });
  });
});
