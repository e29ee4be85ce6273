// The goals on one H100, as arithmetic over the figures of bench/gpu.mjs (own) and bench/peers/torch_gpu.py (peers).
//
// A figure has { name, precision, ms } and of a peer { peer }; without `ms` it was not measured. Of several ways of a peer
// to one thing, such as SDPA's backends, the fastest counts.

const causal = [
  'causal ALiBi 4096×64',
  'causal ALiBi 4096×128',
  'causal ALiBi 16384×64',
  'causal ALiBi 16384×128',
];
const given = ['sdpa given', 'efficient given', 'cudnn given'];
const built = ['sdpa built', 'efficient built', 'cudnn built'];

/** own(name, precision) and peer(name, precision, peers) give milliseconds, or throw what is missing. */
const goals = [
  atMost('(a) CMT, modality, bf16', 160, 'µs', ({ own }) => 1000 * own('cmt modality', 'bf16')),
  faster('(a) over FlexAttention', 3, 'cmt modality', ['flex']),
  faster('(a) over SDPA, bias given', 6, 'cmt modality', given),
  faster('(a) over SDPA, bias built', 8, 'cmt modality', built),
  cost('bias cost, modality, bf16', 5, 'cmt modality'),
  cost('bias cost, modality + spatial, bf16', 15, 'cmt modality + spatial'),
  atMost('(a) CMT, modality, tf32', 260, 'µs', ({ own }) => 1000 * own('cmt modality', 'tf32')),
  atMost('(a) CMT, modality, f32', 600, 'µs', ({ own }) => 1000 * own('cmt modality', 'f32')),
  atLeast(
    'LAM windows over own dense, bf16',
    8,
    '×',
    ({ own }) => own('cmt none', 'bf16') / own('cmt LAM windows', 'bf16'),
  ),
  ...causal.flatMap((name) => [
    atLeast(
      `(c) ${name}, of unbiased FlashAttention`,
      85,
      '%',
      ({ own, peer }) => (100 * peer(name, 'bf16', ['flash unbiased'])) / own(name, 'bf16'),
    ),
    faster(`(c) ${name}, over FlexAttention`, 1.2, name, ['flex']),
  ]),
  atMost(
    'backward of (a), f32, of its forward',
    2.5,
    '×',
    ({ own }) => own('cmt modality backward', 'f32') / own('cmt modality', 'f32'),
  ),
  atLeast(
    'forward and backward of (a), f32, over FlexAttention',
    3,
    '×',
    ({ own, peer }) =>
      peer('cmt modality training', 'f32', ['flex']) /
      (own('cmt modality', 'f32') + own('cmt modality backward', 'f32')),
  ),
  faster('(d) Swin over SDPA, expanded mask', 4, 'Swin', given),
  ...['float32', 'bfloat16'].map((dtype) =>
    atLeast(
      `(e) dense bias, ${dtype}, of cudaMemset`,
      90,
      '%',
      ({ own, peer }) =>
        (100 * peer('dense modality + spatial', dtype, ['cudaMemset'])) /
        own('dense modality + spatial', dtype),
    ),
  ),
];

function atMost(what, limit, unit, reach) {
  return { what, goal: `≤ ${limit} ${unit}`, unit, reach, met: (value) => value <= limit };
}

function atLeast(what, limit, unit, reach) {
  return { what, goal: `≥ ${limit} ${unit}`, unit, reach, met: (value) => value >= limit };
}

function faster(what, times, name, peers) {
  return atLeast(what, times, '×', ({ own, peer }) => peer(name, 'bf16', peers) / own(name, 'bf16'));
}

/** What a bias adds to the time of the same shape without one. */
function cost(what, percent, name) {
  return atMost(what, percent, '%', ({ own }) => 100 * (own(name, 'bf16') / own('cmt none', 'bf16') - 1));
}

function fastest(figures, what) {
  const times = figures.map(({ ms, problems = [] }) => (problems.length === 0 ? ms : undefined));
  const measured = times.filter((ms) => ms !== undefined);
  if (measured.length > 0) return Math.min(...measured);
  const reasons = figures.map(({ notRun, problems = [] }) => problems[0] ?? notRun);
  throw new Error(`${what}: ${reasons[0] ?? 'not measured'}`);
}

/** Each goal with what was reached: { what, goal, reached, unit, met }; `why` in place of the last three where a figure is missing. */
export function judge(ownFigures, peerFigures) {
  const of = (list, name, precision) =>
    list.filter((figure) => figure.name === name && figure.precision === precision);
  const own = (name, precision) => fastest(of(ownFigures, name, precision), `own ${name}, ${precision}`);
  const peer = (name, precision, peers) =>
    fastest(
      of(peerFigures, name, precision).filter((figure) => peers.includes(figure.peer)),
      `${peers.join(' or ')}, ${name}`,
    );
  return goals.map(({ what, goal, unit, reach, met }) => {
    try {
      const reached = reach({ own, peer });
      return { what, goal, reached, unit, met: met(reached) };
    } catch (error) {
      return { what, goal, why: error.message };
    }
  });
}
