// The limits of docs/limits.md that are TypeScript's or the addon's: at each, and one past it. The others have their tests in
// test/native/large_test.cc, manifest.test.ts and formats/.
import { truncate, writeFile } from 'node:fs/promises';

import { readJob } from '../lib/job.js';
import { writeNpz } from '../lib/formats/npy.js';
import { open } from '../lib/open.js';
import { temporaryFolder } from './formats/temporary.js';
import { expectError } from './support.js';

test('dimensions of a tensor', async () => {
  using device = await open({ device: 'cpu', threads: 1 });
  device.tensor([1, 1, 1, 1, 1, 1, 1, 2]).dispose();
  await expectError(() => device.tensor([1, 1, 1, 1, 1, 1, 1, 1, 2]), 'ERR_SHAPE', '1 to 8 dimensions');
});

test('elements of a tensor, and memory that no system has', async () => {
  using device = await open({ device: 'cpu', threads: 1 });
  await expectError(() => device.tensor([2 ** 27, 2 ** 26]), 'ERR_MEMORY', '36028797018963968 bytes');
  await expectError(() => device.tensor([2 ** 27, 2 ** 26 + 1]), 'ERR_SHAPE', 'at most 2^53 elements');
  await expectError(() => device.tensor([2 ** 53 + 2]), 'ERR_SHAPE');
});

test('the results of an operation are refused before it runs', async () => {
  using device = await open({ device: 'cpu', threads: 1 });
  const bias = [{ type: 'causal' as const }];
  const shape = [1, 1, 2 ** 26, 2 ** 27] as const;
  await expectError(() => device.bias({ shape, bias }), 'ERR_MEMORY', '36028797018963968 bytes');
  await expectError(() => device.bias({ shape: [1, 1, 1, 2 ** 30 + 1], bias }), 'ERR_SHAPE', '2^30');
});

test('threads', async () => {
  (await open({ device: 'cpu', threads: 1024 })).close();
  await expectError(() => open({ device: 'cpu', threads: 1025 }), 'ERR_VALUE', '1 to 1024');
});

test('bytes of a job file', async () => {
  await using folder = await temporaryFolder();
  const job = JSON.stringify({ op: 'bias', shape: [1, 1, 2, 2], bias: [] });
  await writeFile(folder.file('job.json'), job + ' '.repeat(2 ** 26 - job.length));
  expect(await readJob(folder.file('job.json'))).toMatchObject({ op: 'bias' });
  await truncate(folder.file('job.json'), 2 ** 26 + 1);
  await expectError(() => readJob(folder.file('job.json')), 'ERR_FORMAT', 'at most 67108864 bytes');
});

test('bytes of a name in an npz file', async () => {
  await using folder = await temporaryFolder();
  const tensor = { data: Float32Array.of(1), shape: [1] };
  await writeNpz(folder.file('x'), { ['x'.repeat(2 ** 16 - 16)]: tensor });
  await expectError(
    () => writeNpz(folder.file('x'), { ['x'.repeat(2 ** 16 - 15)]: tensor }),
    'ERR_VALUE',
    'at most 65520 bytes',
  );
});
