// Each example runs as a user runs it: `attention-bias` by its name, as an ES module, on the built package.
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const root = join(__dirname, '..');
const says: Record<string, RegExp> = {
  'abort.mjs': /^ERR_ABORTED: TimeoutError\n$/,
  'cmt-bias.mjs': /^\{"shape":\[1,8,900,32\],"first":\[(-?[\d.e-]+,){3}-?[\d.e-]+\]\}\n$/,
  'device-memory.mjs': /^(\{"frame":\d,"shape":\[1,8,100,32\],"finite":true\}\n){3}$/,
  'swin.mjs':
    /^\{"out":\[64,3,49,32\],"lse":\[64,3,49\]\}\nwindow 64: token 1 sees token 49 with a bias of -(99|100)\.\d\n$/,
};

test('every example has a test', () => {
  expect(
    readdirSync(join(root, 'examples'))
      .filter((name) => name.endsWith('.mjs'))
      .sort(),
  ).toEqual(Object.keys(says).sort());
});

test.each(Object.entries(says))(
  '%s',
  async (name, pattern) => {
    const { error, stdout } = await new Promise<{ error: Error | null; stdout: string }>((resolve) => {
      execFile(process.execPath, [join('examples', name)], { cwd: root }, (error, stdout) => {
        resolve({ error, stdout });
      });
    });
    expect(error).toBeNull();
    expect(stdout).toMatch(pattern);
  },
  60_000,
);
