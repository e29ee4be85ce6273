// Which device scripts/gpu-check would measure: a line of JSON, or the reason why there is none, and 3.
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { kindOf } from './kind.mjs';

const built = new URL('../dist/index.js', import.meta.url);
try {
  if (!existsSync(built)) throw new Error('dist/ is missing: npm run build');
  const { open } = createRequire(import.meta.url)('../dist/index.js');
  const device = await open({ device: 'cuda' });
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  console.log(JSON.stringify({ version, measured: kindOf(device.info), ...device.info }));
  device.close();
} catch (error) {
  console.error(error.message);
  process.exitCode = 3;
}
