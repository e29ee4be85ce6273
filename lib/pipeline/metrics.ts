/** What a worker does, for Prometheus: counted from the diagnostics channels, served over HTTP. */
import { tracingChannel, type TracingChannelSubscribers } from 'node:diagnostics_channel';
import { createServer, type IncomingMessage } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import type { Options } from 'yargs';

import { AttentionBiasError, expected } from '../errors.js';
import { ioError } from '../formats/io.js';
import { channelNames, type TelemetryEvent } from '../telemetry.js';
import { BUCKETS, gauges, measure, measures, type MeasureName } from '../telemetry/measures.js';
import { WorkClocks } from '../telemetry/work.js';
import { packageVersion } from '../version.js';

export const metricsOptions = {
  'metrics-port': {
    type: 'number',
    requiresArg: true,
    describe: 'serve /metrics (Prometheus) and /healthz on this port; 0 takes a free one',
  },
  'metrics-host': {
    type: 'string',
    default: '127.0.0.1',
    requiresArg: true,
    describe: 'address that --metrics-port listens on; 0.0.0.0 for all',
  },
} as const satisfies Record<string, Options>;

/** Where the Prometheus endpoint listens. */
export interface MetricsOptions {
  /** 0 to 65535; 0 takes a free one */
  readonly port: number;
  /** default 127.0.0.1: this machine alone */
  readonly host?: string | undefined;
  /** why the process can't work at the moment; undefined or absent: it can */
  readonly trouble?: (() => string | undefined) | undefined;
}

/** A Prometheus endpoint that is open. */
export interface MetricsServer {
  /** such as `http://127.0.0.1:9464` */
  readonly url: string;
  /** ends the server, whoever is connected, and what it counts */
  close(): Promise<void>;
}

type PromClient = typeof import('prom-client');
type Registry = import('prom-client').Registry;

const load = createRequire(__filename);

function loadPromClient(): PromClient {
  try {
    return load('prom-client') as PromClient;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw cause;
    const message = 'metrics for Prometheus need the package prom-client. Run: npm install prom-client';
    throw new AttentionBiasError('ERR_VALUE', message, { cause });
  }
}

/** Fills a registry from the channels, until the function that is returned is called. */
function count({ Counter, Gauge, Histogram }: PromClient, registry: Registry): () => void {
  const registers = [registry];
  const takers = Object.fromEntries(
    Object.entries(measures).map(([name, { type, prometheus, description, labels }]) => {
      const definition = { name: prometheus, help: description, labelNames: labels, registers };
      if (type === 'counter') {
        const counter = new Counter(definition);
        return [name, (value: number, given: object) => counter.inc(given, value)];
      }
      const histogram = new Histogram({ ...definition, buckets: [...BUCKETS] });
      return [name, (value: number, given: object) => histogram.observe(given, value)];
    }),
  ) as Record<MeasureName, (value: number, labels: object) => void>;
  const clocks = new WorkClocks();
  for (const [name, { prometheus, description }] of Object.entries(gauges)) {
    const collect = function (this: { set: (value: number) => void }): void {
      this.set(clocks[name as keyof typeof gauges]);
    };
    new Gauge({ name: prometheus, help: description, registers, collect });
  }
  const subscribers: Partial<TracingChannelSubscribers<TelemetryEvent>> = {
    start: (event) => clocks.begin(event),
    asyncEnd: (event) => {
      clocks.end(event);
      measure(event, (name, value, labels) => takers[name](value, labels));
    },
  };
  const channels = channelNames.map((name) => tracingChannel<unknown, TelemetryEvent>(name));
  for (const channel of channels) channel.subscribe(subscribers as TracingChannelSubscribers<TelemetryEvent>);
  return () => {
    for (const channel of channels)
      channel.unsubscribe(subscribers as TracingChannelSubscribers<TelemetryEvent>);
  };
}

interface Answer {
  readonly status: number;
  readonly type?: string;
  readonly body: string;
}

function requirePort(port: number): void {
  if (Number.isInteger(port) && port >= 0 && port <= 65535) return;
  throw expected('ERR_VALUE', 'an integer from 0 to 65535', '--metrics-port', String(port));
}

/**
 * Counts what this process does from now on, and serves it: `/metrics` in Prometheus' text format, with prom-client's
 * default metrics of the process; `/healthz`, 200 where the process can work and 503 with the reason where it can't.
 *
 * @throws AttentionBiasError ERR_VALUE for a port that is none, and where prom-client is not installed, with what to run;
 *   ERR_IO where the address can't be listened on
 */
export async function serveMetrics({
  port,
  host = '127.0.0.1',
  trouble,
}: MetricsOptions): Promise<MetricsServer> {
  requirePort(port);
  const client = loadPromClient();
  const registry = new client.Registry();
  const answer = async ({ method, url }: IncomingMessage): Promise<Answer> => {
    if (method !== 'GET' && method !== 'HEAD') return { status: 405, body: 'GET or HEAD\n' };
    const path = url?.split('?', 1)[0];
    if (path === '/metrics') {
      return { status: 200, type: registry.contentType, body: await registry.metrics() };
    }
    if (path !== '/healthz') return { status: 404, body: '/metrics or /healthz\n' };
    const reason = trouble?.();
    return reason === undefined ? { status: 200, body: 'ok\n' } : { status: 503, body: `${reason}\n` };
  };
  const server = createServer((request, response) => {
    answer(request).then(
      ({ status, type = 'text/plain; charset=utf-8', body }) => {
        response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(body) });
        response.end(body); // a response to HEAD has no body by itself
      },
      (error: unknown) => {
        response.destroy(error instanceof Error ? error : undefined);
      },
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.on('error', (cause) => {
      reject(ioError('an address that can be listened on', `--metrics-port ${host}:${port}`, cause));
    });
    server.listen(port, host, resolve);
  });
  // From here on nothing throws: the caller has what it closes.
  client.collectDefaultMetrics({ register: registry });
  new client.Gauge({
    name: 'attention_bias_info',
    help: 'The version of the package; always 1',
    labelNames: ['version'],
    registers: [registry],
  }).set({ version: packageVersion() }, 1);
  const stopCounting = count(client, registry);
  const { address, family, port: taken } = server.address() as AddressInfo;
  return {
    url: `http://${family === 'IPv6' ? `[${address}]` : address}:${taken}`,
    async close() {
      stopCounting();
      registry.clear();
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}
