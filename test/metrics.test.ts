/** The Prometheus endpoint, scraped over HTTP. */
import { spawnSync } from 'node:child_process';
import { createServer, type AddressInfo } from 'node:net';
import { join } from 'node:path';

import { open } from '../lib/index.js';
import { serveMetrics, type MetricsServer } from '../lib/pipeline/metrics.js';
import { traceItem, traceShard, traceStage } from '../lib/telemetry.js';
import { attentionInputs, constantInputs, errorOf, expectError } from './support.js';

/** The samples of Prometheus' text format by name and labels, and the types by name. */
function parse(text: string): { samples: Map<string, number>; types: Map<string, string> } {
  const samples = new Map<string, number>();
  const types = new Map<string, string>();
  for (const line of text.split('\n')) {
    const type = /^# TYPE (\S+) (\S+)$/.exec(line);
    if (type) types.set(type[1]!, type[2]!);
    if (line === '' || line.startsWith('#')) continue;
    const sample = /^([a-z_:][\w:]*)(\{.*\})? (\S+)$/.exec(line);
    if (!sample) throw new Error(`no sample: ${line}`);
    samples.set(`${sample[1]!}${sample[2] ?? ''}`, Number(sample[3]));
  }
  return { samples, types };
}

let server: MetricsServer;
beforeEach(async () => {
  server = await serveMetrics({ port: 0 });
});
afterEach(() => server.close());

async function scrape() {
  const response = await fetch(`${server.url}/metrics`);
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toContain('text/plain; version=0.0.4');
  return parse(await response.text());
}

test('what was done is counted', async () => {
  using device = await open({ device: 'cpu', threads: 1 });
  const inputs = attentionInputs(3, [1, 2, 9, 40]);
  await device.attention(inputs);
  await device.attention(inputs);
  await errorOf(() => device.attention({ ...inputs, scale: NaN }));
  await device.toDevice({ data: new Float32Array(8), shape: [8] });
  const item = { key: 'a', kind: 'frame' };
  const read = () => traceStage('read', { index: 0, item }, () => Promise.resolve());
  await traceItem({ index: 0, item, bytes: 100 }, read);
  await traceItem({ index: 1, item }, () => Promise.resolve());
  await traceItem({ index: 2, item }, () => Promise.reject(new RangeError('no'))).catch(() => undefined);
  const shard = { shard: 0, items: 3, format: 'tar' };
  await traceShard(shard, () => Promise.resolve({ skipped: false }));
  await traceShard(shard, () => Promise.resolve({ skipped: true }));

  const { samples, types } = await scrape();
  const of = (name: string) => samples.get(name);
  const attention = 'operation="attention",backend="cpu"';
  expect(of(`attention_bias_operation_seconds_count{${attention}}`)).toBe(2);
  expect(of(`attention_bias_operation_seconds_count{${attention},code="ERR_VALUE"}`)).toBe(1);
  expect(of(`attention_bias_operation_seconds_bucket{le="+Inf",${attention}}`)).toBe(2);
  expect(of(`attention_bias_operation_seconds_sum{${attention}}`)).toBeGreaterThan(0);
  expect(of('attention_bias_stage_seconds_count{stage="read"}')).toBe(1);
  expect(of('attention_bias_items_total{outcome="ok"}')).toBe(2);
  expect(of('attention_bias_items_total{outcome="failed"}')).toBe(1);
  expect(of('attention_bias_shards_total{outcome="ok"}')).toBe(1);
  expect(of('attention_bias_shards_total{outcome="skipped"}')).toBe(1);
  expect(of('attention_bias_failures_total{kind="operation",name="attention",code="ERR_VALUE"}')).toBe(1);
  expect(of('attention_bias_failures_total{kind="item",name="frame",code="RangeError"}')).toBe(1);
  expect(of('attention_bias_bytes_total{kind="operation",name="toDevice"}')).toBe(32);
  expect(of('attention_bias_bytes_total{kind="item",name="frame"}')).toBe(100);
  expect(of('attention_bias_operations_running')).toBe(0);
  expect(of('attention_bias_attention_busy_ratio')).toBeGreaterThan(0);
  expect(of('attention_bias_attention_busy_ratio')).toBeLessThan(1);
  expect(of('attention_bias_info{version="0.1.0"}')).toBe(1);
  expect(of('process_resident_memory_bytes')).toBeGreaterThan(1e6);
  expect(types.get('attention_bias_operation_seconds')).toBe('histogram');
  expect(types.get('attention_bias_items_total')).toBe('counter');
  expect(types.get('attention_bias_attention_busy_ratio')).toBe('gauge');
});

test('an operation under way is running', async () => {
  using device = await open({ device: 'cpu', threads: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  // Seconds of work, which the abort ends.
  const pending = errorOf(() => device.attention({ ...constantInputs(4000, 40_000), signal }));
  expect((await scrape()).samples.get('attention_bias_operations_running')).toBe(1);
  controller.abort();
  await pending;
  expect((await scrape()).samples.get('attention_bias_operations_running')).toBe(0);
});

test('a closed server counts no more, and another begins at none', async () => {
  const count = async () => (await scrape()).samples.get('attention_bias_items_total{outcome="ok"}');
  const item = () => traceItem({ index: 0, item: 'a' }, () => Promise.resolve());
  await item();
  expect(await count()).toBe(1);
  const { url } = server;
  await server.close();
  await expect(fetch(`${url}/metrics`)).rejects.toThrow();
  await item();
  server = await serveMetrics({ port: 0 });
  expect(await count()).toBeUndefined();
  await item();
  expect(await count()).toBe(1);
});

test('/healthz says whether the process can work', async () => {
  let trouble: string | undefined;
  await server.close();
  server = await serveMetrics({ port: 0, trouble: () => trouble });
  const health = async () => {
    const response = await fetch(`${server.url}/healthz`);
    return [response.status, await response.text()];
  };
  expect(await health()).toEqual([200, 'ok\n']);
  trouble = 'Redis does not answer';
  expect(await health()).toEqual([503, 'Redis does not answer\n']);
  trouble = undefined;
  expect(await health()).toEqual([200, 'ok\n']);
});

test('anything else is refused', async () => {
  expect((await fetch(`${server.url}/`)).status).toBe(404);
  expect((await fetch(`${server.url}/metrics`, { method: 'POST', body: 'x' })).status).toBe(405);
  const head = await fetch(`${server.url}/metrics?x=1`, { method: 'HEAD' });
  expect([head.status, await head.text()]).toEqual([200, '']);
});

test('this machine alone is listened to; an address that is taken, or a port that is none, is said', async () => {
  expect(server.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
  const { port } = other.address() as AddressInfo;
  await expectError(() => serveMetrics({ port }), 'ERR_IO', `127.0.0.1:${port}`, 'EADDRINUSE');
  other.close();
  for (const wrong of [-1, 65536, 1.5, NaN])
    await expectError(() => serveMetrics({ port: wrong }), 'ERR_VALUE', '--metrics-port', String(wrong));
});

test('without prom-client the error names what to install', () => {
  const metrics = JSON.stringify(join(__dirname, '../dist/pipeline/metrics.js'));
  const program = `
    const Module = require('node:module');
    const resolve = Module._resolveFilename;
    Module._resolveFilename = function (name, ...rest) {
      if (name === 'prom-client') throw Object.assign(new Error('no'), { code: 'MODULE_NOT_FOUND' });
      return resolve.call(this, name, ...rest);
    };
    require(${metrics}).serveMetrics({ port: 0 }).catch(({ code, message }) => console.log(code, message));`;
  const { stdout, status } = spawnSync(process.execPath, ['-e', program], { encoding: 'utf8' });
  expect({ stdout, status }).toEqual({
    stdout: 'ERR_VALUE metrics for Prometheus need the package prom-client. Run: npm install prom-client\n',
    status: 0,
  });
});
