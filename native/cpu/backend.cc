#include "cpu/backend.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"

namespace attention_bias::cpu {

namespace {

struct Isa {
  std::string name;
  bool supported;
  Kernels kernels;
};

#define AB_KERNELS(isa)                                                                               \
  Kernels {                                                                                           \
    isa::query_block, isa::attention_scratch_floats, isa::attention, isa::bias_rows, isa::bias_copies \
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
  return {{"x86-64-v2", v2, AB_KERNELS(x86_64_v2)},
          {"x86-64-v3", v3, AB_KERNELS(x86_64_v3)},
          {"x86-64-v4", v4, AB_KERNELS(x86_64_v4)}};
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
  const int64_t key_run = ceil_div(ceil_div(e.keys, key_runs), 64) * 64;
  return {query_run, ceil_div(e.queries, query_run), key_run, ceil_div(e.keys, key_run)};
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
  State(int threads, const Isa& chosen) : isa(chosen), pool(threads), scratch(static_cast<size_t>(threads)) {}

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

  Isa isa;
  ThreadPool pool;
  std::vector<Scratch> scratch;  // one a worker
  Scratch partial;
  Scratch widened[3];  // query, key and value
};

Backend::Backend(int threads, const std::string& isa) {
  if (threads < 1 || threads > 1024) {
    throw expected(ErrorCode::kValue, "an integer from 1 to 1024", "threads", std::to_string(threads));
  }
  state_ = std::make_unique<State>(threads, choose(isa));
}

Backend::~Backend() = default;

BackendInfo Backend::info() const {
  BackendInfo info;
  info.name = processor_name();
  info.isa = state_->isa.name;
  info.threads = state_->pool.size();
  return info;
}

void Backend::attention(const AttentionProblem& given, AbortFlag abort) {
  const AttentionProblem p = state_->in_f32(given, abort);
  if (p.precision != Precision::kF32) {
    throw expected(ErrorCode::kValue, "\"f32\"", "precision on the cpu backend", "another");
  }
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
  const int64_t scratch_floats = kernels.attention_scratch_floats(p, static_cast<int32_t>(c.query_run));

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
    if (split) {
      task.out = partial + (key_index * all_rows + first) * p.value_dim;
      task.partial = states + key_index * all_rows + first;
    } else {
      task.out = p.out + first * p.value_dim;
      task.lse = p.lse + first;
    }
    if (!kernels.attention(task)) throw_aborted();
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

void Backend::router(const RouterProblem& p, AbortFlag abort) {
  const int64_t run = std::max<int64_t>(1, 64 * 1024 / (p.features * p.outputs));
  state_->run(ceil_div(p.rows, run), abort, [&](int64_t item, int) {
    for (int64_t row = item * run; row < std::min(p.rows, (item + 1) * run); ++row) {
      for (int64_t m = 0; m < p.outputs; ++m) {
        double sum = p.bias[m];
        for (int64_t i = 0; i < p.features; ++i) {
          sum += static_cast<double>(p.input[row * p.features + i]) * p.weight[m * p.features + i];
        }
        p.out[p.out_index(row, m)] = static_cast<float>(1 / (1 + std::exp(-sum)));
      }
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
