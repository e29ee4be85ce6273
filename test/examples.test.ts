// Each example runs as a user runs it: `attention-bias` by its name, as an ES module, on the built package.
import { execFile } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';

const root = join(__dirname, '..');
const says: Record<string, RegExp> = {
  'abort.mjs': /^ERR_ABORTED: TimeoutError\n$/,
  'alibi.mjs':
    /^head 0, slope 0.5: looks 1\.5 tokens back on average\nhead 7, slope 0.00390625: looks 2[34]\d\.\d tokens back on average\n$/,
  'aqr.mjs':
    /^cameras work: 6[23] % of the attention goes to them\ncameras are dark: 0 % of the attention goes to them\n$/,
  'beit.mjs': /^\{"out":\[1,12,197,64\]\}\n$/,
  'cmt-bias.mjs': /^\{"shape":\[1,8,900,32\],"first":\[(-?[\d.e-]+,){3}-?[\d.e-]+\]\}\n$/,
  'cmt.mjs': /^\{"out":\[1,100,256\]\}\n$/,
  'conditional-detr.mjs': /^\{"out":\[1,8,300,32\],"scale":0\.125\}\n$/,
  'deformable-detr.mjs': /^\{"out":\[1,300,256\]\}\n$/,
  'denoising.mjs':
    /^\{"groups":3,"groupSize":4,"out":\[2,1,32,32\]\}\na query of group 1 sees \.{4}x{4}\.{4}x{20}\na matching query sees   \.{12}x{20}\n$/,
  'device-memory.mjs': /^(\{"frame":\d,"shape":\[1,8,100,32\],"finite":true\}\n){3}$/,
  'mome.mjs': /^\{"local":\[1,8,100,32\],"out":\[1,8,100,32\],"queries":100\}\n$/,
  'swin-v2.mjs': /^\{"windows":\[16,3,64,32\],"map":\[1,32,32,96\]\}\n$/,
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
