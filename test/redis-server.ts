/** A redis-server of Debian's package on a free port of loopback, with its files in a folder of its own. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const hasRedis = spawnSync('redis-server', ['--version']).status === 0;

export interface RedisServer {
  readonly url: string;
  start(): Promise<void>;
  /** by SIGTERM: what it holds is on the disk */
  stop(): Promise<void>;
  /** forgets what is on the disk */
  wipe(): void;
  /** stops it and takes its files away */
  remove(): Promise<void>;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

export async function redisServer(): Promise<RedisServer> {
  const port = await freePort();
  const folder = mkdtempSync(join(tmpdir(), 'attention-bias-redis-'));
  let child: ChildProcess | undefined;
  const server: RedisServer = {
    url: `redis://127.0.0.1:${port}`,
    async start() {
      const settings = {
        port: String(port),
        bind: '127.0.0.1',
        dir: folder,
        appendonly: 'yes',
        save: '',
        'maxmemory-policy': 'noeviction',
      };
      const args = Object.entries(settings).flatMap(([name, value]) => [`--${name}`, value]);
      child = spawn('redis-server', args, { stdio: ['ignore', 'pipe', 'inherit'] });
      let said = '';
      for await (const chunk of child.stdout!) {
        said += String(chunk);
        if (said.includes('Ready to accept connections')) break;
      }
      if (!said.includes('Ready to accept connections')) throw new Error(`redis-server ended: ${said}`);
    },
    async stop() {
      if (child?.exitCode !== null) return;
      child.kill('SIGTERM');
      await once(child, 'exit');
    },
    wipe() {
      rmSync(join(folder, 'appendonlydir'), { recursive: true, force: true });
    },
    async remove() {
      await server.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  await server.start();
  return server;
}
