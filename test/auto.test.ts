// What `auto` makes of a GPU that is there and computes wrong, right, or not at all: a binding whose CUDA devices are made
// up, upon the real one.
import { open } from '../lib/index.js';
import * as loader from '../lib/native.js';
import type { NativeBinding, NativeDevice } from '../lib/binding.js';

const real = loader.native();

/** The real binding with one CUDA device, whose prepare() and selfTest() end as given. */
function withGpu(ends: { prepare?: Error; selfTest?: Error }): {
  binding: NativeBinding;
  closed: () => number;
} {
  let closed = 0;
  const end = (error: Error | undefined): Promise<never> =>
    (error ? Promise.reject(error) : Promise.resolve({})) as Promise<never>;
  const gpu = {
    prepare: () => end(ends.prepare),
    selfTest: () => end(ends.selfTest),
    info: () => ({
      name: 'GPU',
      computeCapability: '9.0',
      multiprocessors: 1,
      memoryBytes: 1,
      isa: '',
      threads: 0,
      kernelMs: 0,
    }),
    close: () => (closed += 1),
  } as unknown as NativeDevice;
  const Device = function (options: { backend: string }): NativeDevice {
    return options.backend === 'cuda' ? gpu : new real.Device(options as { backend: 'cpu'; threads: number });
  };
  const binding = Object.assign(Object.create(real) as NativeBinding, { Device });
  return { binding, closed: () => closed };
}

const native = (message: string): Error => Object.assign(new Error(message), { code: 'ERR_DEVICE' });
let warning: jest.SpyInstance;
beforeEach(() => {
  delete process.env.ATTENTION_BIAS_DEVICE;
  warning = jest.spyOn(process, 'emitWarning').mockImplementation();
});
afterEach(() => {
  jest.restoreAllMocks();
});

test('a GPU that computes as the host does is taken', async () => {
  jest.spyOn(loader, 'native').mockReturnValue(withGpu({}).binding);
  const device = await open();
  expect(device.info).toMatchObject({ backend: 'cuda', name: 'GPU' });
  expect(warning).not.toHaveBeenCalled();
});

test('one that fails its self-test is left alone, with a warning', async () => {
  const { binding, closed } = withGpu({ selfTest: native('attention in f32 has an error of 0.5') });
  jest.spyOn(loader, 'native').mockReturnValue(binding);
  using device = await open({ device: 'auto' });
  expect(device.info.backend).toBe('cpu');
  expect(closed()).toBe(1);
  expect(warning).toHaveBeenCalledTimes(1);
  expect(warning).toHaveBeenCalledWith(
    'GPU is left unused, since its self-test failed: attention in f32 has an error of 0.5',
    { type: 'AttentionBiasWarning', detail: 'attention-bias doctor tells more' },
  );
});

test('where none can be used there is nothing to warn of', async () => {
  const { binding, closed } = withGpu({ prepare: native('no NVIDIA driver is installed') });
  jest.spyOn(loader, 'native').mockReturnValue(binding);
  using device = await open();
  expect(device.info.backend).toBe('cpu');
  expect(closed()).toBe(1);
  expect(warning).not.toHaveBeenCalled();
  await expect(open({ device: 'cuda' })).rejects.toMatchObject({
    code: 'ERR_DEVICE',
    message:
      'expected a device that can be used for device but received "cuda:0": no NVIDIA driver is installed',
  });
});

test('any other error of the GPU is the caller’s', async () => {
  const { binding } = withGpu({ prepare: Object.assign(new Error('none'), { code: 'ERR_MEMORY' }) });
  jest.spyOn(loader, 'native').mockReturnValue(binding);
  await expect(open()).rejects.toMatchObject({ code: 'ERR_MEMORY', message: 'none' });
});
