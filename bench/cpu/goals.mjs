// The goals on one AVX-512 processor with two threads, and how far they could go at most there (ceiling).

const V4 = 'x86-64-v4';
const V3 = 'x86-64-v3';

/** How far below a goal a run may be before --gate fails it: PyTorch's own time moves by ±7 %. */
const SLACK = 0.9;

/** peer's ms / own ms of a case; `peerCase` where the peer's figure is another case's. */
const faster = (name, isa, who, way, goal, ceiling, peerCase = name) => ({
  what: `${name}, ${isa}, over ${who} ${way}`.trim(),
  goal,
  ceiling,
  unit: '×',
  reach: ({ own, peer }) => peer(peerCase, who, way).ms / own(name, isa).ms,
});

const goals = [
  faster('cmt modality', V4, 'PyTorch', 'built', 2, 2.2),
  faster('cmt modality', V4, 'PyTorch', 'given', 1.8, 1.95),
  faster('cmt modality', V3, 'PyTorch', 'built', 1.8, 2.2),
  faster('cmt modality + spatial', V4, 'PyTorch', 'given', 1.7, 1.9),
  {
    what: `cmt modality + spatial, ${V4}, of the time with modality alone`,
    goal: 1.05,
    most: true,
    unit: '×',
    reach: ({ own }) => own('cmt modality + spatial', V4).ms / own('cmt modality', V4).ms,
  },
  faster('cmt modality, bf16', V4, 'PyTorch', 'built', 3.6, 4),
  faster('cmt modality, bf16', V4, 'PyTorch', 'bf16 given', 3.2, 4),
  faster('cmt LAM windows', V4, 'PyTorch', 'boolean', 60, 100),
  ...['dense modality', 'dense modality, bf16'].map((name) => ({
    what: `${name}, ${V4}, of a fill's speed`,
    goal: 0.95,
    ceiling: 1,
    unit: '×',
    // The fastest of either.
    reach({ own, bytes }) {
      const { min, fillGBs } = own(name, V4);
      return bytes(name) / min / 1e6 / fillGBs;
    },
  })),
  faster('dense modality, fresh memory', V4, 'PyTorch', 'built', 2.5, 3.5),
  faster('Swin', V4, 'PyTorch', 'given', 5, 6.5),
  faster('Swin', V4, 'PyTorch', 'built', 7, 8.5),
  faster('cmt modality', V4, 'ONNX Runtime', 'onnx', 2.5),
  {
    what: `cmt modality, ${V4}, memory beyond inputs and outputs`,
    goal: 64,
    most: true,
    unit: ' MiB',
    reach({ own }) {
      const { extraMib } = own('cmt modality', V4);
      if (extraMib === undefined) throw new Error('not measured');
      return extraMib;
    },
  },
  faster('cmt modality', V4, 'PyTorch', 'flex', 4),
  faster('cmt modality backward', V4, 'PyTorch', 'learned', 6, 6.7),
  faster('cmt modality backward', V4, 'PyTorch', 'given', 1.9, 2.2),
  {
    what: `cmt modality backward, ${V4}, of the forward's time`,
    goal: 2.5,
    most: true,
    unit: '×',
    reach: ({ own }) => own('cmt modality backward', V4).ms / own('cmt modality', V4).ms,
  },
];

/**
 * Each goal with what a record reached: { what, goal, ceiling, unit, reached, met, near }; `why` in place of the last three where
 * a figure is missing. `near`: no farther below than a run may move.
 */
export function judge({ figures, cases }) {
  const find = (name, who, way) => {
    const figure = figures.find((f) => f.case === name && f.who === who && f.way === way);
    if (figure?.ms === undefined) throw new Error(figure?.skip ?? `${who} ${way} not run`);
    if (figure.wrong) throw new Error(`${who} ${way}: wrong output`);
    return figure;
  };
  const context = {
    own: (name, isa) => find(name, isa, 'own'),
    peer: find,
    bytes: (name) => cases.find((item) => item.name === name).bytes,
  };
  return goals.map(({ reach, most = false, ...goal }) => {
    try {
      const reached = reach(context);
      const meets = (slack) => (most ? reached <= goal.goal / slack : reached >= goal.goal * slack);
      return { ...goal, most, reached, met: meets(1), near: meets(SLACK) };
    } catch (error) {
      return { ...goal, most, why: error.message };
    }
  });
}
