#include "cpu/backend.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/router.h"
#include "cpu/kernels.h"
#include "cpu/near_lists.h"
#include "cpu/scratch.h"
#include "cpu/term_gradients.h"
#include "cpu/thread_pool.h"

namespace attention_bias::cpu {

namespace {

struct Isa {
  std::string name;
  bool supported;
  Kernels kernels;
};

#define AB_KERNELS(isa)                                                                                    \
  Kernels {                                                                                                \
    isa::query_block, isa::attention_scratch_floats, isa::attention, isa::has_bf16,                        \
        isa::bf16_scratch_floats, isa::attention_bf16, isa::left_over_rows, isa::row_scratch_floats,       \
        isa::attention_rows, isa::gather_scratch_floats, isa::gather, isa::shared_bias_floats,             \
        isa::expand_bias, isa::short_scratch_floats, isa::attention_short, isa::backward_scratch_floats,   \
        isa::backward, isa::row_sums, isa::flush_grad_sums, isa::linear_panels, isa::packed_weight_floats, \
        isa::pack_weight, isa::linear_scratch_floats, isa::linear, isa::bias_rows, isa::bias_copies,       \
        isa::peak_fma, isa::peak_bf16, isa::peak_fill, isa::peak_read, isa::deformable_scratch_floats,     \
        isa::deformable_rows, isa::deformable_gradient_rows, isa::deformable_value_gradient                \
  }

// Best last.
std::vector<Isa> isas() {
#if defined(AB_ISAS_X86_64)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return {
#if !defined(AB_WITHOUT_X86_64_V2)
    {"x86-64-v2", v2, AB_KERNELS(x86_64_v2)},
#endif
        {"x86-64-v3", v3, AB_KERNELS(x86_64_v3)}, {
      "x86-64-v4", v4, AB_KERNELS(x86_64_v4)
    }
  };
#elif defined(__aarch64__)
  return {{"arm64", true, AB_KERNELS(arm64)}};
#else
  return {{"generic", true, AB_KERNELS(generic)}};
#endif
}

Isa choose(const std::string& name) {
  std::string known;
  Isa best;
  best.supported = false;
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    if (name == isa.name) return isa;
    known += (known.empty() ? "" : ", ") + isa.name;
    best = isa;
  }
  if (!name.empty()) throw expected(ErrorCode::kValue, "one of " + known, "the instruction set", name);
  if (!best.supported) {
    throw Error(ErrorCode::kDevice, "this processor lacks what the CPU backend needs: at least x86-64-v2");
  }
  return best;
}

[[noreturn]] void throw_aborted() { throw Error(ErrorCode::kAborted, "the operation was aborted"); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How an attention is cut into pieces: runs of queries of every batch row and head, times runs of keys. By
// the shape and the number of threads only, so that the same call gives the same bits.
struct Pieces {
  int64_t query_run, query_runs, key_run, key_runs;
};

constexpr int64_t kPiecesPerThread = 8;
constexpr int64_t kLeastKeyRun = 1024;               // below it merging costs more than it spreads
constexpr int64_t kStateFloats = 256 * 1024;         // of one piece's queries: 1 MB, for L2
constexpr int64_t kSharedTileFloats = 1024 * 1024;   // of a thread's tiles that batch rows share: 4 MB
constexpr int64_t kSharedRows = 64;                  // batch rows whose gradients are summed up in float32
constexpr int64_t kPartialFloats = 6 * 1024 * 1024;  // of all partial results: 24 MB

Pieces cut(const AttentionProblem& p, int64_t query_block, int threads) {
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads;
  const int64_t fit = kStateFloats / state_floats(p) / query_block * query_block;
  int64_t query_run = std::min(e.queries, std::max(query_block, fit));
  int64_t key_runs = 1;
  const int64_t wanted = threads == 1 ? 1 : threads * kPiecesPerThread;
  if (rows * ceil_div(e.queries, query_run) < wanted) {
    key_runs = std::min(ceil_div(wanted, rows * ceil_div(e.queries, query_run)), e.keys / kLeastKeyRun);
    key_runs = std::min(key_runs, kPartialFloats / (rows * e.queries * (p.value_dim + 3)));
    key_runs = std::max<int64_t>(key_runs, 1);
    const int64_t query_runs = ceil_div(wanted, rows * key_runs);
    query_run = std::min(query_run, ceil_div(ceil_div(e.queries, query_runs), query_block) * query_block);
  }
  // Runs of keys end at multiples of a tile.
  const int64_t key_run = ceil_div(ceil_div(e.keys, key_runs), kTileKeys) * kTileKeys;
  return {query_run, ceil_div(e.queries, query_run), key_run, ceil_div(e.keys, key_run)};
}

// The same for gradients: a group is a run of batch rows and heads over a run of keys, and goes over its
// queries in runs. Groups share no key's gradient; what keys come to for a query is summed up after.
struct BackwardPieces {
  int64_t row_run, row_runs, query_run, key_run, key_runs;
};

BackwardPieces cut_backward(const BackwardProblem& problem, int64_t query_block, int threads) {
  const AttentionProblem& p = problem.attention;
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads;
  const int64_t wanted = threads == 1 ? 1 : threads * kPiecesPerThread;
  BackwardPieces c = {};
  c.row_run = TermGradients::shares_pairs(problem) ? rows : ceil_div(rows, std::min(rows, wanted));
  c.row_runs = ceil_div(rows, c.row_run);
  const int64_t partial = rows * e.queries * packed_dims(p);
  int64_t key_runs = std::min(ceil_div(wanted, c.row_runs), e.keys / kLeastKeyRun);
  key_runs = std::max<int64_t>(1, std::min(key_runs, kPartialFloats / partial));
  c.key_run = ceil_div(ceil_div(e.keys, key_runs), kTileKeys) * kTileKeys;
  c.key_runs = ceil_div(e.keys, c.key_run);
  const int64_t fit = kStateFloats / (2 * packed_dims(p) + p.value_dim) / query_block * query_block;
  c.query_run = std::min(e.queries, std::max(query_block, fit));
  return c;
}

// Memory for SharedTiles of a thread, cleared when a group of tasks begins.
class SharedTileMemory {
 public:
  // Whether the batch rows of a group are worth it: several of each head, and terms that they have in common.
  static bool pays(const BackwardProblem& problem, int64_t row_run, int64_t tiles, int64_t tile_floats) {
    const AttentionProblem& p = problem.attention;
    if (!p.bias || __builtin_popcountll(p.bias->batch_terms()) == p.bias->term_count()) return false;
    return row_run >= 2 * p.extent.heads && tiles * tile_floats <= kSharedTileFloats;
  }

  void bound_by(MemoryLimit* limit) { memory_.bound_by(limit); }

  const SharedTiles* begin(int64_t tiles, int64_t tile_floats) {
    float* const memory = memory_.floats(2 * tiles * tile_floats);
    bias_of_.assign(static_cast<size_t>(tiles), -1);
    std::fill_n(memory, tiles * tile_floats, 0.0f);
    shared_ = {memory, memory + tiles * tile_floats, bias_of_.data()};
    return &shared_;
  }

 private:
  Scratch memory_;
  std::vector<int64_t> bias_of_;
  SharedTiles shared_ = {};
};

// The gradients by a panel's rows, of queries or of keys: as pieces leave them, of all batch rows and heads
// by run of keys, and what they sum up to.
struct RowGradients {
  float* out;      // null where nobody wants them
  Shape shape;     // of out: [1|B, 1|H, tokens, dims]
  int64_t copies;  // the runs of keys that each leave a share
  float* to;       // [copies][B, H, tokens, dims]: `out` itself where nothing is to be summed up

  // The memory that `to` needs apart from `out`.
  int64_t partial_floats(const Extent& e) const {
    if (!out || (copies == 1 && shape[0] == e.batch && shape[1] == e.heads)) return 0;
    return copies * e.batch * e.heads * shape[2] * shape[3];
  }
  float* row(int64_t index) const { return out ? to + index * shape[3] : nullptr; }

  // Element i of out.
  void sum_up(const Extent& e, int64_t i) const {
    const int64_t floats = shape[2] * shape[3], all = e.batch * e.heads * floats;
    const int64_t in_row = i % floats, h0 = i / floats % shape[1], b0 = i / floats / shape[1];
    double sum = 0;
    for (int64_t b = b0; b < e.batch; b += shape[0]) {
      for (int64_t h = h0; h < e.heads; h += shape[1]) {
        const float* copy = to + (b * e.heads + h) * floats + in_row;
        for (int64_t n = 0; n < copies; ++n) sum += static_cast<double>(copy[n * all]);
      }
    }
    out[i] = static_cast<float>(sum);
  }
};

// What a visited key costs beside one of a tile, at head dim 32 on x86-64-v2 and v4; both grow alike with it.
// Under windows 2.8: 3.6 ns against 1.3. Under sliding windows alone neighbouring rows see the same keys, so
// that they come from L1: 2. But there the tiles off the band are skipped, and those on it cost as much as
// its width and 256 keys.
constexpr int64_t kGatherPrice = 3, kBandPrice = 2;
constexpr int64_t kBandEdge = 256;

// Whether few enough keys are visible to a row that visiting them one by one costs less than tiles do: by the
// shape and the terms, never by a tensor's values.
bool gathers(const Extent& e, const KeyBound& bound) {
  if (bound.term >= 0) return kGatherPrice * bound.most_keys <= e.keys;
  return kBandPrice * bound.most_keys <= std::min(e.keys, bound.most_keys + kBandEdge);
}

constexpr int64_t kGatherHeads = 4;
constexpr int64_t kLeastGatherRun = 8, kMostGatherRun = 64;  // queries of a piece

// Batch rows and heads with few keys are attended whole, from biases that were written once for all batch
// rows alike: where those are several, and the biases small enough to stay in a cache. On two Zen 4 cores 1.1
// to 2 times as fast as tiles at 8 to 256 keys; but no tile is skipped, and a causal mask of 256 keys is 7 %
// slower, one of 192 16 % faster.
constexpr int64_t kShortKeys = 256, kShortHidingKeys = 192;
constexpr int64_t kShortRowsPerThread = 4;
constexpr int64_t kLeastAlike = 4;
constexpr int64_t kSharedBiasFloats = 2 * 1024 * 1024;  // 8 MB

// Queries of a piece of deformable attention, at most; channels of a part of its gradient, at least: a line.
constexpr int64_t kMostDeformableRun = 64;
constexpr int64_t kLeastChannels = 16;
// Rows of a linear layer that pass by its panels together: they stay in L2, and are multiples of a kernel's
// tile.
constexpr int64_t kLinearRows = 96, kLeastLinearRows = 6;
constexpr int64_t kPackAlone = 128 * 1024;  // weights that are packed before another thread has woken up
constexpr int64_t kLinearRunFloats = 128 * 1024;  // of their features: 512 KB

// The key in the middle of those that a query sees, or −1 where it sees none.
int32_t middle_key(const AttentionProblem& p, const KeyBound& bound, int64_t b, int32_t q) {
  const Term* terms = p.bias->term_data();
  const Tile row = {b, 0, q, q + 1, 0, static_cast<int32_t>(p.extent.keys)};
  int64_t count = 0;
  visible_runs(bound, terms, row, q, [&](int32_t begin, int32_t end) { count += end - begin; });
  int64_t left = count / 2;
  int32_t middle = -1;
  visible_runs(bound, terms, row, q, [&](int32_t begin, int32_t end) {
    if (left >= 0 && left < end - begin) middle = begin + static_cast<int32_t>(left);
    left -= end - begin;
  });
  return middle;
}

// Joins the partial results of one query: unnormalised outputs `stride` floats apart, and their states.
void merge(const float* partial, const SoftmaxState* states, int64_t stride, int64_t state_stride,
           int64_t parts, int64_t value_dim, float* out, float* lse) {
  SoftmaxState joined = {0.0f, 0.0f, false};
  bool any = false;
  for (int64_t i = 0; i < parts; ++i) {
    const SoftmaxState& part = states[i * state_stride];
    joined.seen |= part.seen;
    if (!weighs(part)) continue;
    joined.base = any ? std::max(joined.base, part.base) : part.base;
    any = true;
  }
  std::fill(out, out + value_dim, 0.0f);
  for (int64_t i = 0; i < parts; ++i) {
    const SoftmaxState& part = states[i * state_stride];
    if (!part.seen) continue;
    const float factor = rebase(part, joined.base);  // 0·NaN and 0·∞ are NaN, as in one piece
    joined.sum += part.sum * factor;
    for (int64_t d = 0; d < value_dim; ++d) out[d] += partial[i * stride + d] * factor;
  }
  const float scale = output_scale(joined);
  for (int64_t d = 0; d < value_dim; ++d) out[d] *= scale;
  *lse = log_sum_exp(joined);
}

void require_precision(Precision precision) {
  if (precision != Precision::kTf32) return;
  throw expected(ErrorCode::kValue, "\"f32\" or \"bf16\"", "precision on the cpu backend", "\"tf32\"");
}

}  // namespace

int64_t packed_dims(const AttentionProblem& p) { return p.head_dim + (p.bias ? p.bias->low_rank_dims() : 0); }

int64_t state_floats(const AttentionProblem& p) { return packed_dims(p) + 3 * (p.value_dim + 1) + 3; }

bool aborted(AbortFlag abort) { return abort && abort->load(std::memory_order_relaxed); }

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas()) {
    if (isa.supported) names.push_back(isa.name);
  }
  return names;
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t at = line.find(": ");
    if (at != std::string::npos) return line.substr(at + 2);
  }
  return "unknown";
}

struct Backend::State {
  State(int threads, const Isa& chosen, std::shared_ptr<MemoryLimit> bound)
      : limit(std::move(bound)), isa(chosen), pool(threads), scratch(static_cast<size_t>(threads)) {
    for (Scratch& one : scratch) one.bound_by(limit.get());
    for (Scratch* one : {&biases, &forward, &row_sums, &partial, &packed}) one->bound_by(limit.get());
    for (Scratch& one : widened) one.bound_by(limit.get());
    for (Scratch& one : between) one.bound_by(limit.get());
  }

  // Runs body on the pool; ERR_ABORTED when the flag was set before it ended.
  void run(int64_t count, AbortFlag abort, const std::function<void(int64_t, int)>& body) {
    pool.run(count, [&](int64_t item, int worker) {
      if (aborted(abort)) throw_aborted();
      body(item, worker);
    });
  }

  // The problem with tensors of float32: bfloat16 ones are copied.
  AttentionProblem in_f32(AttentionProblem p, AbortFlag abort) {
    const Extent& e = p.extent;
    const int64_t heads = e.batch * e.heads;
    const auto widen = [&](HeadRows* rows, int64_t count, Scratch* copy) {
      if (rows->dtype == DType::kFloat32) return;
      float* const floats = copy->floats(count);
      constexpr int64_t kRun = 64 * 1024;
      run(ceil_div(count, kRun), abort, [&](int64_t item, int) {
        for (int64_t i = item * kRun; i < std::min(count, (item + 1) * kRun); ++i) {
          floats[i] = bf16_to_float(rows->bf16()[i]);
        }
      });
      *rows = {floats, DType::kFloat32};
    };
    widen(&p.query, heads * e.queries * p.head_dim, &widened[0]);
    widen(&p.key, heads * e.keys * p.head_dim, &widened[1]);
    widen(&p.value, heads * e.keys * p.value_dim, &widened[2]);
    return p;
  }

  // Attention of rows that see few keys, sorted so that neighbours see much the same: at CMT's windows a
  // fifth faster than in the caller's order.
  void gather(const AttentionProblem& p, const KeyBound& bound, AbortFlag abort) {
    const Extent& e = p.extent;
    const int64_t rows = e.batch * e.queries;
    const Counted lists(limit.get(), rows * 12, "the order of an operation's queries");
    std::vector<std::pair<int32_t, int32_t>> by_key(static_cast<size_t>(rows));  // (middle key, query)
    constexpr int64_t kRun = 64;
    run(ceil_div(rows, kRun), abort, [&](int64_t item, int) {
      for (int64_t row = item * kRun; row < std::min(rows, (item + 1) * kRun); ++row) {
        const int32_t q = static_cast<int32_t>(row % e.queries);
        by_key[static_cast<size_t>(row)] = {middle_key(p, bound, row / e.queries, q), q};
      }
    });
    std::vector<int32_t> queries(static_cast<size_t>(rows));
    for (int64_t b = 0; b < e.batch; ++b) {
      const auto first = by_key.begin() + b * e.queries;
      std::sort(first, first + e.queries);
      std::transform(first, first + e.queries, queries.begin() + b * e.queries,
                     [](const auto& pair) { return pair.second; });
    }
    // Heads in one piece share what the other terms come to; without such, a head at a time keeps more of its
    // keys in L2.
    const bool shares = bound.rest != 0 && !p.bias->depends_on_head();
    const int64_t heads_run = shares ? std::min(e.heads, kGatherHeads) : 1;
    const int64_t head_runs = ceil_div(e.heads, heads_run);
    const int64_t wanted = ceil_div(pool.size() * kPiecesPerThread, e.batch * head_runs);
    const int64_t query_run = std::clamp(ceil_div(e.queries, wanted), kLeastGatherRun, kMostGatherRun);
    const int64_t query_runs = ceil_div(e.queries, query_run);
    const int64_t scratch_floats = isa.kernels.gather_scratch_floats(p, bound);
    run(e.batch * head_runs * query_runs, abort, [&](int64_t item, int worker) {
      const int64_t q0 = item % query_runs * query_run, row = item / query_runs;
      GatherTask task = {};
      task.problem = &p;
      task.bound = &bound;
      task.bias_by_head = p.bias->depends_on_head();
      task.b = row / head_runs;
      task.h0 = row % head_runs * heads_run;
      task.h1 = std::min(e.heads, task.h0 + heads_run);
      task.queries = queries.data() + task.b * e.queries + q0;
      task.count = static_cast<int32_t>(std::min(query_run, e.queries - q0));
      task.scratch = scratch[static_cast<size_t>(worker)].floats(scratch_floats);
      task.abort = abort;
      if (!isa.kernels.gather(task)) throw_aborted();
    });
  }

  // Attends and returns true where the keys are few and the bias is shared by many batch rows.
  bool attend_short(const AttentionProblem& p, AbortFlag abort) {
    const Extent& e = p.extent;
    const Kernels& kernels = isa.kernels;
    const int64_t rows = e.batch * e.heads;
    if (e.keys > kShortKeys || rows < kShortRowsPerThread * pool.size()) return false;
    ShortTask shared = {};
    shared.hides =
        p.bias && std::any_of(p.bias->terms().begin(), p.bias->terms().end(), [](const Term& term) {
          return visit(term, [](const auto& t) { return std::decay_t<decltype(t)>::kHides; });
        });
    if (shared.hides && e.keys > kShortHidingKeys) return false;
    shared.problem = &p;
    std::vector<const float*> of_batch;
    if (p.bias && p.bias->term_count() != 0) {
      std::vector<int64_t> own;  // batch rows that are the first of their kind
      for (int64_t b = 0; b < e.batch; ++b) {
        if (p.bias->first_alike(b) == b) own.push_back(b);
        if (kLeastAlike * static_cast<int64_t>(own.size()) > e.batch) return false;
      }
      const int64_t heads = p.bias->depends_on_head() ? e.heads : 1;
      const int64_t floats =
          kernels.shared_bias_floats(static_cast<int32_t>(e.queries), static_cast<int32_t>(e.keys));
      const int64_t kinds = static_cast<int64_t>(own.size());
      if (kinds * heads * floats > kSharedBiasFloats) return false;
      float* const to = biases.floats(kinds * heads * floats);
      run(kinds * heads, abort, [&](int64_t item, int) {
        kernels.expand_bias(*p.bias, own[static_cast<size_t>(item / heads)], item % heads,
                            to + item * floats);
      });
      of_batch.resize(static_cast<size_t>(e.batch));
      for (size_t i = 0; i < own.size(); ++i) {
        of_batch[static_cast<size_t>(own[i])] = to + static_cast<int64_t>(i) * heads * floats;
      }
      for (int64_t b = 0; b < e.batch; ++b) {
        of_batch[static_cast<size_t>(b)] = of_batch[static_cast<size_t>(p.bias->first_alike(b))];
      }
      shared.biases = of_batch.data();
      shared.head_stride = heads > 1 ? floats : 0;
    }
    const int64_t rows_run = std::clamp<int64_t>(rows / (pool.size() * kPiecesPerThread), 1, 64);
    const int64_t scratch_floats = kernels.short_scratch_floats(p);
    run(ceil_div(rows, rows_run), abort, [&](int64_t item, int worker) {
      ShortTask task = shared;
      task.row0 = item * rows_run;
      task.row1 = std::min(rows, task.row0 + rows_run);
      task.scratch = scratch[static_cast<size_t>(worker)].floats(scratch_floats);
      task.abort = abort;
      if (!kernels.attention_short(task)) throw_aborted();
    });
    return true;
  }

  // Whether all are finite.
  bool all_finite(const float* values, int64_t count, AbortFlag abort) {
    constexpr int64_t kRun = 64 * 1024;
    std::atomic<bool> finite{true};
    run(ceil_div(count, kRun), abort, [&](int64_t item, int) {
      const int64_t end = std::min(count, (item + 1) * kRun);
      float zero = 0;  // NaN once a value is not finite
      for (int64_t i = item * kRun; i < end; ++i) zero += values[i] * 0.0f;
      if (zero != 0.0f) finite = false;
    });
    return finite;
  }

  // Deformable attention, or with `backward` its gradients that each query has of its own.
  void deformable_rows(const DeformableProblem& p, const DeformableBackwardProblem* backward,
                       AbortFlag abort) {
    const auto rows = backward ? isa.kernels.deformable_gradient_rows : isa.kernels.deformable_rows;
    const int64_t floats = isa.kernels.deformable_scratch_floats(p);
    const int64_t rows_run =
        std::clamp<int64_t>(p.rows() / (pool.size() * kPiecesPerThread), 1, kMostDeformableRun);
    run(ceil_div(p.rows(), rows_run), abort, [&](int64_t item, int worker) {
      rows({&p, backward, item * rows_run, std::min(p.rows(), (item + 1) * rows_run),
            scratch[static_cast<size_t>(worker)].floats(floats)});
    });
  }

  std::shared_ptr<MemoryLimit> limit;  // first: it outlives what it counts
  Isa isa;
  ThreadPool pool;
  std::vector<Scratch> scratch;  // one a worker
  Scratch biases;                // expand_bias's
  NearLists near;
  NearGradients near_gradients;
  Scratch forward;   // out and lse, for gradients
  Scratch row_sums;  // likewise
  Scratch partial;
  Scratch widened[3];  // query, key and value
  Scratch packed;      // a linear layer's weights
  Scratch between[5];  // the members of MultiheadMemory
};

Backend::Backend(int threads, const std::string& isa, std::shared_ptr<MemoryLimit> limit) {
  if (threads < 1 || threads > 1024) {
    throw expected(ErrorCode::kValue, "an integer from 1 to 1024", "threads", std::to_string(threads));
  }
  state_ = std::make_unique<State>(threads, choose(isa), std::move(limit));
}

Backend::~Backend() = default;

Peaks measure_peaks(int threads, const std::string& isa) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRepeats = 40;
  constexpr int64_t kRounds = 256 * 1024;  // a few milliseconds
  constexpr int64_t kItemsPerThread = 4;
  constexpr int64_t kFloats = 48 * 1024 * 1024, kRun = 1024 * 1024;  // 192 MB, beyond any cache

  Backend backend(threads, isa);
  ThreadPool& pool = backend.state_->pool;
  const Kernels& kernels = backend.state_->isa.kernels;
  // The fastest of some repeats, in units of work a nanosecond.
  const auto best = [&](int64_t items, double work, const std::function<void(int64_t)>& body) {
    double least = 0;
    for (int i = 0; i < kRepeats; ++i) {
      const auto start = Clock::now();
      pool.run(items, [&](int64_t item, int) { body(item); });
      const double ns = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
      if (i == 0 || ns < least) least = ns;
    }
    return work / least;
  };
  const auto rate = [&](int64_t (*peak)(int64_t, float*)) {
    float once = 0.999f;
    const int64_t items = kItemsPerThread * threads;
    const double work = static_cast<double>(items * peak(1, &once) * kRounds);
    return best(items, work, [&](int64_t) {
      float sink = 0.999f;
      peak(kRounds, &sink);
    });
  };
  Peaks peaks = {};
  peaks.fma_gflops = rate(kernels.peak_fma);
  if (kernels.has_bf16()) peaks.bf16_gflops = rate(kernels.peak_bf16);
  // In huge pages where there are any, as tensors are.
  constexpr int64_t kPage = 2 * 1024 * 1024;
  Scratch memory;
  float* floats = memory.floats(kFloats + kPage / 4);
  floats += (kPage - reinterpret_cast<intptr_t>(floats) % kPage) % kPage / 4;
#if defined(MADV_HUGEPAGE)
  madvise(floats, 4 * kFloats, MADV_HUGEPAGE);  // a hint
#endif
  const double bytes = 4.0 * kFloats;
  peaks.fill_gb_s =
      best(kFloats / kRun, bytes, [&](int64_t i) { kernels.peak_fill(floats + i * kRun, kRun, 1); });
  std::vector<float> sums(kFloats / kRun);
  peaks.read_gb_s = best(kFloats / kRun, bytes, [&](int64_t i) {
    sums[static_cast<size_t>(i)] = kernels.peak_read(floats + i * kRun, kRun);
  });
  // Looked at, so that the reading is not left out.
  if (sums[0] < 0) peaks.read_gb_s = 0;
  return peaks;
}

BackendInfo Backend::info() const {
  BackendInfo info;
  info.name = processor_name();
  info.isa = state_->isa.name;
  info.threads = state_->pool.size();
  return info;
}

void Backend::attention(const AttentionProblem& given, AbortFlag abort) {
  const AttentionProblem p = state_->in_f32(given, abort);
  require_precision(p.precision);
  if (p.bias) {
    const KeyBound bound = p.bias->key_bound();
    if (gathers(p.extent, bound)) return state_->gather(p, bound, abort);
  }
  if (state_->attend_short(p, abort)) return;
  State& s = *state_;
  const Kernels& kernels = s.isa.kernels;
  const Extent& e = p.extent;
  const Pieces c = cut(p, kernels.query_block(), s.pool.size());
  const int64_t all_rows = e.batch * e.heads * e.queries;
  const bool split = c.key_runs > 1;

  // Partial results by run of keys: outputs, then states.
  float* partial = nullptr;
  SoftmaxState* states = nullptr;
  if (split) {
    static_assert(sizeof(SoftmaxState) == 3 * sizeof(float), "states are counted as 3 floats");
    partial = s.partial.floats(c.key_runs * all_rows * (p.value_dim + 3));
    states = reinterpret_cast<SoftmaxState*>(partial + c.key_runs * all_rows * p.value_dim);
  }
  // Where bfloat16 has no instruction, and for few keys (above), float32 is as fast.
  const bool bf16 = p.precision == Precision::kBf16 && kernels.has_bf16();
  const auto attend = bf16 ? kernels.attention_bf16 : kernels.attention;
  const auto piece_floats = bf16 ? kernels.bf16_scratch_floats : kernels.attention_scratch_floats;
  const int64_t scratch_floats = std::max(piece_floats(p, static_cast<int32_t>(c.query_run)),
                                          kernels.row_scratch_floats(p, kernels.query_block()));

  // Not where all queries are rows.
  const int64_t first_run = std::min(e.queries, c.query_run);
  const bool listed = kernels.left_over_rows(static_cast<int32_t>(first_run)) < first_run &&
                      s.near.build(p, kernels.query_block(),
                                   [&](int64_t count, const auto& body) { s.run(count, abort, body); });

  s.run(e.batch * e.heads * c.query_runs * c.key_runs, abort, [&](int64_t item, int worker) {
    const int64_t key_index = item % c.key_runs, rest = item / c.key_runs;
    const int64_t row = rest / c.query_runs, q0 = rest % c.query_runs * c.query_run;
    const int64_t k0 = key_index * c.key_run;
    const int64_t first = row * e.queries + q0;
    AttentionTask task = {};
    task.problem = &p;
    task.b = row / e.heads;
    task.h = row % e.heads;
    task.q0 = static_cast<int32_t>(q0);
    task.q1 = static_cast<int32_t>(std::min(e.queries, q0 + c.query_run));
    task.k0 = static_cast<int32_t>(k0);
    task.k1 = static_cast<int32_t>(std::min(e.keys, k0 + c.key_run));
    task.scratch = s.scratch[static_cast<size_t>(worker)].floats(scratch_floats);
    task.abort = abort;
    task.near = listed ? s.near.of_batch(task.b) : nullptr;
    if (split) {
      task.out = partial + (key_index * all_rows + first) * p.value_dim;
      task.partial = states + key_index * all_rows + first;
    } else {
      task.out = p.out + first * p.value_dim;
      task.lse = p.lse + first;
    }
    const int32_t left_over = bf16 ? 0 : kernels.left_over_rows(task.q1 - task.q0);
    if (left_over != 0) {
      AttentionTask rows = task;
      rows.q0 = task.q1 -= left_over;
      const int64_t before = rows.q0 - task.q0;
      rows.out += before * p.value_dim;
      if (rows.lse) rows.lse += before;
      if (rows.partial) rows.partial += before;
      if (!kernels.attention_rows(rows, nullptr)) throw_aborted();
      if (before == 0) return;
    }
    if (!attend(task)) throw_aborted();
  });
  if (!split) return;

  constexpr int64_t kRows = 64;
  s.run(ceil_div(all_rows, kRows), abort, [&](int64_t item, int) {
    for (int64_t row = item * kRows; row < std::min(all_rows, (item + 1) * kRows); ++row) {
      merge(partial + row * p.value_dim, states + row, all_rows * p.value_dim, all_rows, c.key_runs,
            p.value_dim, p.out + row * p.value_dim, p.lse + row);
    }
  });
}

void Backend::attention_backward(const BackwardProblem& given, AbortFlag abort) {
  State& s = *state_;
  BackwardProblem problem = given;
  AttentionProblem& p = problem.attention;
  const Extent& e = p.extent;
  const int64_t rows = e.batch * e.heads;
  p = s.in_f32(p, abort);
  p.precision = Precision::kF32;  // of gradients at every precision
  if (!p.out) {
    p.out = s.forward.floats(rows * e.queries * (p.value_dim + 1));
    p.lse = p.out + rows * e.queries * p.value_dim;
    attention(p, abort);
  }
  const Kernels& kernels = s.isa.kernels;
  const auto run = [&](int64_t count, const auto& body) { s.run(count, abort, body); };

  const BackwardPieces c = cut_backward(problem, kernels.query_block(), s.pool.size());
  const auto hides = [](const Term& term) {
    return visit(term, [](const auto& t) { return std::decay_t<decltype(t)>::kHides; });
  };
  const bool careful = p.bias && std::any_of(p.bias->terms().begin(), p.bias->terms().end(), hides) &&
                       !(s.all_finite(p.query.f32(), rows * e.queries * p.head_dim, abort) &&
                         s.all_finite(p.key.f32(), rows * e.keys * p.head_dim, abort) &&
                         s.all_finite(p.value.f32(), rows * e.keys * p.value_dim, abort) &&
                         s.all_finite(problem.grad_out, rows * e.queries * p.value_dim, abort));
  const bool listed = s.near_gradients.build(p, kernels.query_block(), run);

  // By panel, which are the head's own dims and each lowRank term's.
  std::vector<RowGradients> by_query, by_key;
  const auto add_panel = [&](float* query, Shape query_shape, float* key, Shape key_shape) {
    by_query.push_back({query, std::move(query_shape), c.key_runs, nullptr});
    by_key.push_back({key, std::move(key_shape), 1, nullptr});
  };
  add_panel(problem.grad_query, {e.batch, e.heads, e.queries, p.head_dim}, problem.grad_key,
            {e.batch, e.heads, e.keys, p.head_dim});
  for (size_t i = 0; p.bias && i < p.bias->learnables().size(); ++i) {
    const Learnable& learnable = p.bias->learnables()[i];
    const Term& term = p.bias->terms()[static_cast<size_t>(learnable.term)];
    if (term.type != TermType::kLowRank || learnable.slot != 0) continue;
    const bool wanted = !problem.grad_terms.empty();
    add_panel(wanted ? problem.grad_terms[i] : nullptr, learnable.tensor.shape,
              wanted ? problem.grad_terms[i + 1] : nullptr, p.bias->learnables()[i + 1].tensor.shape);
  }
  int64_t partial_floats = 0;
  for (const auto* gradients : {&by_query, &by_key}) {
    for (const RowGradients& g : *gradients) partial_floats += g.partial_floats(e);
  }
  float* partial = s.partial.floats(partial_floats);
  for (auto* gradients : {&by_query, &by_key}) {
    for (RowGradients& g : *gradients) {
      g.to = g.partial_floats(e) == 0 ? g.out : partial;
      partial += g.partial_floats(e);
    }
  }

  const int64_t groups = c.row_runs * c.key_runs;
  const Counted sums(s.limit.get(), TermGradients::most_bytes(problem, groups),
                     "the sums of an operation's gradients");
  TermGradients terms(problem, groups);
  const int64_t scratch_floats = kernels.backward_scratch_floats(p, static_cast<int32_t>(c.query_run));
  const int64_t tile_floats = kTileKeys * kernels.query_block();
  const int64_t tiles = e.heads * ceil_div(e.queries, kernels.query_block()) * ceil_div(e.keys, kTileKeys);
  const bool shares = SharedTileMemory::pays(problem, c.row_run, tiles, tile_floats);
  std::vector<SharedTileMemory> shared_tiles(static_cast<size_t>(shares ? s.pool.size() : 0));
  for (SharedTileMemory& memory : shared_tiles) memory.bound_by(s.limit.get());
  RowSum* row_sums = nullptr;
  if (std::any_of(p.lse, p.lse + rows * e.queries, is_far)) {
    row_sums = reinterpret_cast<RowSum*>(s.row_sums.floats(2 * rows * e.queries));
    const int64_t block = kernels.query_block(), blocks = ceil_div(e.queries, block);
    s.run(rows * blocks, abort, [&](int64_t item, int worker) {
      BackwardTask task = {};
      task.problem = &problem;
      task.b = item / blocks / e.heads;
      task.h = item / blocks % e.heads;
      task.q0 = static_cast<int32_t>(item % blocks * block);
      task.q1 = static_cast<int32_t>(std::min(e.queries, task.q0 + block));
      task.k1 = static_cast<int32_t>(e.keys);
      task.near = listed ? s.near_gradients.of_batch(task.b) : nullptr;
      task.scratch = s.scratch[static_cast<size_t>(worker)].floats(scratch_floats);
      task.abort = abort;
      if (!kernels.row_sums(task, static_cast<int32_t>(c.key_run), row_sums)) throw_aborted();
    });
  }
  s.run(groups, abort, [&](int64_t group, int worker) {
    const int64_t key_index = group % c.key_runs, row0 = group / c.key_runs * c.row_run;
    const int64_t row1 = std::min(rows, row0 + c.row_run), k0 = key_index * c.key_run;
    BackwardTask task = {};
    task.problem = &problem;
    task.k0 = static_cast<int32_t>(k0);
    task.k1 = static_cast<int32_t>(std::min(e.keys, k0 + c.key_run));
    task.careful = careful;
    task.row_sums = row_sums;
    task.scratch = s.scratch[static_cast<size_t>(worker)].floats(scratch_floats);
    task.abort = abort;
    if (!problem.grad_terms.empty()) {
      task.sinks = terms.enter(group, row0 / e.heads, (row1 - 1) / e.heads + 1);
    }
    if (shares) task.shared = shared_tiles[static_cast<size_t>(worker)].begin(tiles, tile_floats);
    std::vector<float*> grad_query(by_query.size()), grad_key(by_key.size());
    task.grad_query = grad_query.data();
    task.grad_key = grad_key.data();
    for (int64_t row = row0; row < row1; ++row) {
      task.b = row / e.heads;
      task.h = row % e.heads;
      task.near = listed ? s.near_gradients.of_batch(task.b) : nullptr;
      task.grad_value = problem.grad_value + row * e.keys * p.value_dim;
      for (int64_t q0 = 0; q0 < e.queries; q0 += c.query_run) {
        task.q0 = static_cast<int32_t>(q0);
        task.q1 = static_cast<int32_t>(std::min(e.queries, q0 + c.query_run));
        task.adds = q0 != 0;
        for (size_t i = 0; i < by_query.size(); ++i) {
          grad_query[i] = by_query[i].row((key_index * rows + row) * e.queries + q0);
          grad_key[i] = by_key[i].row(row * e.keys);
        }
        if (!kernels.backward(task)) throw_aborted();
      }
      const bool last = row + 1 == row1 || (row + 1 - row0) % (kSharedRows * e.heads) == 0;
      if (task.shared && task.sinks && last) kernels.flush_grad_sums(task);
    }
  });
  for (const auto* gradients : {&by_query, &by_key}) {
    for (const RowGradients& g : *gradients) {
      if (g.partial_floats(e) == 0) continue;
      constexpr int64_t kRun = 4096;
      const int64_t count = element_count(g.shape, "");
      run(ceil_div(count, kRun), [&](int64_t item, int) {
        for (int64_t i = item * kRun; i < std::min(count, (item + 1) * kRun); ++i) g.sum_up(e, i);
      });
    }
  }
  terms.join(run);
}

void Backend::bias(const BiasProblem& p, AbortFlag abort) {
  const Shape shape = bias_shape(*p.bias);
  const int64_t block = shape[1] * shape[2];  // rows of a batch row
  const int64_t row_bytes = shape[3] * static_cast<int64_t>(dtype_bytes(p.dtype));
  std::vector<int64_t> own;  // batch rows that are like none before them
  for (int64_t b = 0; b < shape[0]; ++b) {
    if (p.bias->first_alike(b) == b) own.push_back(b);
  }
  const bool alike = static_cast<int64_t>(own.size()) < shape[0];
  // Of whole huge pages where there is enough: two threads that touch a fresh one both clear it.
  const int64_t rows = alike ? block : shape[0] * block;
  constexpr int64_t kLeast = 512 * 1024, kMost = 4 * 1024 * 1024;
  const int64_t shared = rows * row_bytes / (kPiecesPerThread * state_->pool.size());
  const int64_t run = std::max<int64_t>(1, std::min(std::max(shared, kLeast), kMost) / row_bytes);
  const int64_t runs = ceil_div(rows, run);
  state_->run(alike ? static_cast<int64_t>(own.size()) * runs : runs, abort, [&](int64_t item, int) {
    const int64_t first = alike ? own[static_cast<size_t>(item / runs)] * block : 0;
    const int64_t row0 = item % runs * run;
    state_->isa.kernels.bias_rows(p, first + row0, first + std::min(rows, row0 + run));
  });
  if (!alike) return;

  const int64_t copies = std::max<int64_t>(1, kMost / (block * row_bytes));
  state_->run(ceil_div(shape[0], copies), abort, [&](int64_t item, int) {
    state_->isa.kernels.bias_copies(p, item * copies, std::min(shape[0], (item + 1) * copies));
  });
}

void Backend::linear(const LinearProblem& p, AbortFlag abort) {
  State& s = *state_;
  const Kernels& kernels = s.isa.kernels;
  const int64_t panels = kernels.linear_panels(p);
  float* const packed = s.packed.floats(kernels.packed_weight_floats(p));
  if (p.outputs * p.features <= kPackAlone) {
    for (int64_t panel = 0; panel < panels; ++panel) kernels.pack_weight(p, panel, packed);
  } else {
    s.run(panels, abort, [&](int64_t panel, int) { kernels.pack_weight(p, panel, packed); });
  }

  const int64_t fit = kLinearRunFloats / p.features / kLeastLinearRows * kLeastLinearRows;
  const int64_t run = std::clamp(fit, kLeastLinearRows, kLinearRows);
  const int64_t runs = ceil_div(p.rows(), run);
  // Panels are shared out as well where runs are few.
  const int64_t wanted = s.pool.size() == 1 ? 1 : s.pool.size() * kPiecesPerThread;
  const int64_t panel_run = ceil_div(panels, std::min(panels, ceil_div(wanted, runs)));
  const int64_t panel_runs = ceil_div(panels, panel_run);
  const int64_t scratch_floats = kernels.linear_scratch_floats(p, run);
  s.run(runs * panel_runs, abort, [&](int64_t item, int worker) {
    LinearTask task = {};
    task.problem = &p;
    task.packed = packed;
    task.row0 = item / panel_runs * run;
    task.row1 = std::min(p.rows(), task.row0 + run);
    task.panel0 = item % panel_runs * panel_run;
    task.panel1 = std::min(panels, task.panel0 + panel_run);
    task.scratch = s.scratch[static_cast<size_t>(worker)].floats(scratch_floats);
    kernels.linear(task);
  });
}

void Backend::multihead(const MultiheadProblem& p, AbortFlag abort) {
  require_precision(p.precision);
  Scratch* const between = state_->between;
  const MultiheadSizes sizes = multihead_sizes(p);
  const MultiheadParts parts = multihead_parts(
      p, {between[0].floats(sizes.query), between[1].floats(sizes.key), between[2].floats(sizes.value),
          between[3].floats(sizes.attended), between[4].floats(sizes.lse)});
  linear(parts.query, abort);
  linear(parts.key, abort);
  linear(parts.value, abort);
  attention(parts.attention, abort);
  linear(parts.out, abort);
}

namespace {

// Calls f(row, output, features·weight + bias) for some of the router's rows.
template <class F>
void each_logit(const RouterProblem& p, int64_t row0, int64_t row1, F f) {
  for (int64_t row = row0; row < row1; ++row) {
    for (int64_t m = 0; m < p.outputs; ++m) {
      double sum = p.bias[m];
      for (int64_t i = 0; i < p.features; ++i) {
        sum += static_cast<double>(p.input[row * p.features + i]) * p.weight[m * p.features + i];
      }
      f(row, m, sum);
    }
  }
}

// Rows of a piece.
int64_t router_run(const RouterProblem& p) {
  return std::max<int64_t>(1, 64 * 1024 / (p.features * p.outputs));
}

}  // namespace

void Backend::router(const RouterProblem& p, AbortFlag abort) {
  const int64_t run = router_run(p);
  state_->run(ceil_div(p.rows, run), abort, [&](int64_t item, int) {
    each_logit(p, item * run, std::min(p.rows, (item + 1) * run), [&](int64_t row, int64_t m, double z) {
      p.out[p.out_index(row, m)] = static_cast<float>(1 / (1 + std::exp(-z)));
    });
  });
}

void Backend::router_backward(const RouterBackwardProblem& problem, AbortFlag abort) {
  const RouterProblem& p = problem.router;
  float* const delta = state_->partial.floats(p.rows * p.outputs);
  const int64_t run = router_run(p);
  state_->run(ceil_div(p.rows, run), abort, [&](int64_t item, int) {
    const int64_t row0 = item * run, row1 = std::min(p.rows, row0 + run);
    each_logit(p, row0, row1, [&](int64_t row, int64_t m, double z) {
      delta[row * p.outputs + m] = router_delta(z, problem.grad_out[p.out_index(row, m)]);
    });
    for (int64_t row = row0; row < row1; ++row) {
      for (int64_t i = 0; i < p.features; ++i) {
        problem.grad_features[row * p.features + i] = router_grad_feature(p, delta, row, i);
      }
    }
  });
  constexpr int64_t kColumns = 16;  // of a cache line
  const int64_t runs = ceil_div(p.features + 1, kColumns);
  state_->run(p.outputs * runs, abort, [&](int64_t item, int) {
    const int64_t m = item / runs, first = item % runs * kColumns;
    for (int64_t i = first; i < std::min(p.features + 1, first + kColumns); ++i) {
      *router_grad_place(problem, m, i) = router_grad_weight(p, delta, m, i);
    }
  });
}

void Backend::project(const ProjectProblem& p, AbortFlag abort) {
  const ProjectGeometry geometry = project_geometry(p);
  constexpr int64_t kRun = 1024;
  const int64_t points = p.batch * p.queries;
  state_->run(ceil_div(points, kRun), abort, [&](int64_t item, int) {
    for (int64_t i = item * kRun; i < std::min(points, (item + 1) * kRun); ++i) {
      project_point(geometry, p.reference_points + i * 3, p.lidar2img + i / p.queries * p.views * 16,
                    p.bev_centers + i * 2, p.camera_centers + i * 3);
    }
  });
}

void Backend::deformable(const DeformableProblem& p, AbortFlag abort) {
  state_->deformable_rows(p, nullptr, abort);
}

// In two passes, since the gradients by locations and weights are each one query's, and that by value is
// summed over queries: there a task owns what it writes, so that the order of sums is fixed.
void Backend::deformable_backward(const DeformableBackwardProblem& p, AbortFlag abort) {
  State& s = *state_;
  const DeformableProblem& f = p.forward;
  s.deformable_rows(f, &p, abort);

  constexpr int64_t kFill = 256 * 1024;
  s.run(ceil_div(f.value_count(), kFill), abort, [&](int64_t item, int) {
    std::fill(p.grad_value + item * kFill, p.grad_value + std::min(f.value_count(), (item + 1) * kFill),
              0.0f);
  });
  // Levels have as many samples each, whatever their size. Where they are too few for the threads, channels
  // are divided too, each part locating the samples anew.
  const int64_t parts = f.batch * f.heads * f.level_count(), threads = s.pool.size();
  const int64_t most = ceil_div(f.head_dim, kLeastChannels);
  const int64_t slices = threads == 1 ? 1 : std::clamp<int64_t>(ceil_div(2 * threads, parts), 1, most);
  const int64_t channels = ceil_div(most, slices) * kLeastChannels;
  const int64_t channel_runs = ceil_div(f.head_dim, channels);
  const int64_t floats = s.isa.kernels.deformable_scratch_floats(f);
  s.run(parts * channel_runs, abort, [&](int64_t item, int worker) {
    const int64_t d0 = item % channel_runs * channels, part = item / channel_runs;
    DeformableLevelTask task = {};
    task.backward = &p;
    task.level = part % f.level_count();
    task.h = part / f.level_count() % f.heads;
    task.b = part / f.level_count() / f.heads;
    task.d0 = d0;
    task.d1 = std::min(f.head_dim, d0 + channels);
    task.scratch = s.scratch[static_cast<size_t>(worker)].floats(floats);
    task.abort = abort;
    if (!s.isa.kernels.deformable_value_gradient(task)) throw_aborted();
  });
}

void Backend::copy(void* to, const void* from, int64_t bytes, AbortFlag abort) {
  constexpr int64_t kRun = 1024 * 1024;
  state_->run(ceil_div(bytes, kRun), abort, [&](int64_t item, int) {
    std::memcpy(static_cast<char*>(to) + item * kRun, static_cast<const char*>(from) + item * kRun,
                static_cast<size_t>(std::min(bytes - item * kRun, kRun)));
  });
}

void Backend::check_values(const std::vector<ValueCheck>& checks, AbortFlag) {
  for (const ValueCheck& check : checks) require_values(check);
}

}  // namespace attention_bias::cpu
