// What TypeScript says of the package, as its users meet it: compiled by test/types.test.ts, as ESM and as CommonJS, against the
// declarations that the exports map names. Nothing here runs.
import { AttentionBiasError, open, operations, pipeline } from 'attention-bias';
import type {
  AttentionResult,
  BackwardResult,
  BiasTerm,
  Device,
  ErrorCode,
  Tensor,
  TensorLike,
} from 'attention-bias';
import { openSafetensors } from 'attention-bias/formats';
import type { SafetensorsFile } from 'attention-bias/formats';
import { alibiTerms, aqrTerms } from 'attention-bias/presets';
import type { AqrArgs } from 'attention-bias/presets';

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
/** Compiles where A and B are the same type. */
export const same = <A, B>(_: Same<A, B>): void => undefined;

declare const like: TensorLike;
declare const aqr: AqrArgs;

export async function results(device: Device): Promise<void> {
  const attended = await device.attention({ query: like, key: like, value: like });
  same<typeof attended, AttentionResult>(true);
  same<typeof attended.out, Tensor>(true);
  same<Tensor['data'], Float32Array>(true);
  same<Tensor<'int32'>['data'], Int32Array>(true);

  const plain = await device.bias({ shape: [1, 1, 2, 2], bias: [] });
  same<typeof plain, Tensor>(true);
  const narrow = await device.bias({ shape: [1, 1, 2, 2], bias: [], dtype: 'bfloat16' });
  same<typeof narrow, Tensor<'bfloat16'>>(true);

  // By the terms that were given: a gradient that a term lacks is not there to be asked for.
  const gradients = await device.attentionBackward({
    query: like,
    key: like,
    value: like,
    gradOut: like,
    bias: [{ type: 'causal' }, { type: 'alibi', slopes: like }],
  });
  same<typeof gradients.query, Tensor>(true);
  same<(typeof gradients.terms)[1]['slopes'], Tensor>(true);
  same<(typeof gradients.terms)[0], Record<string, never>>(true); // causal has nothing to learn
  same<BackwardResult['key'], Tensor>(true);
}

export async function arguments_(device: Device): Promise<void> {
  const inputs = { query: like, key: like, value: like };
  await device.attention({
    ...inputs,
    bias: [...alibiTerms({ heads: 8 }), { type: 'slidingWindow', left: 3, right: -1 }],
  });
  // @ts-expect-error: no value
  await device.attention({ query: like, key: like });
  // @ts-expect-error: no such term
  await device.attention({ ...inputs, bias: [{ type: 'casual' }] });
  // @ts-expect-error: a field that is missing
  await device.attention({ ...inputs, bias: [{ type: 'slidingWindow', left: 3 }] });
  // @ts-expect-error: a field of another term
  await device.attention({ ...inputs, bias: [{ type: 'causal', slopes: like }] });
  // @ts-expect-error: no such precision
  await device.attention({ ...inputs, precision: 'f16' });
  // @ts-expect-error: a tensor has a shape
  await device.attention({ ...inputs, query: { data: new Float32Array(4) } });
  // @ts-expect-error: four sizes
  await device.bias({ shape: [2, 2], bias: [] });
  // @ts-expect-error: no such device
  await open({ device: 'gpu' });
  // @ts-expect-error: a dtype that no tensor has
  device.tensor([2], { dtype: 'float64' });
  // @ts-expect-error: what may be given is not what results are
  (await device.attention(inputs)).out = like;
}

export async function others(): Promise<void> {
  same<Awaited<ReturnType<typeof open>>, Device>(true);
  same<ReturnType<typeof aqrTerms>['selfAttention'], BiasTerm[]>(true);
  void aqrTerms(aqr);
  same<Awaited<ReturnType<typeof openSafetensors>>, SafetensorsFile>(true);
  const error = new AttentionBiasError('ERR_SHAPE', 'words');
  same<typeof error.code, ErrorCode>(true);
  // @ts-expect-error: no such code
  void new AttentionBiasError('ERR_OTHER', 'words');
  void [operations, pipeline];
  // @ts-expect-error: not exported
  await import('attention-bias/dist/native.js');
}
