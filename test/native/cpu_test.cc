// The CPU backend against the float64 reference, on every instruction set of this machine, with 1, 2 and 3
// threads.
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "attention_case.h"
#include "check.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/near_lists.h"
#include "cpu/scratch.h"
#include "cpu/thread_pool.h"
#include "multihead_case.h"

namespace attention_bias::test {
namespace {

double greatest_error = 0, greatest_bf16_error = 0;
uint32_t seeds = 200;  // fewer with the argument `quick`, for emulated processors

constexpr double kBf16Tolerance = 1e-2;

float to_bf16_and_back(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bf16_to_float(static_cast<uint16_t>(nearest_bf16(bits)));
}

void check_case(Case& c, double tolerance = 2e-6) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  // Probabilities are rounded as well: where outputs are few and cancel out, 2.3 times as much was seen.
  const double bf16_tolerance = std::fmax(kBf16Tolerance, 3 * error_of_rounding(c, out, to_bf16_and_back));
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    for (int threads = 1; threads <= 3; ++threads) {
      cpu::Backend backend(threads, isa);
      for (const bool bf16 : {false, true}) {
        if (bf16 && threads != 2 && isa != "x86-64-v4") continue;  // float32 once more: no kernel of its own
        context = name + ", " + isa + ", threads " + std::to_string(threads) + (bf16 ? ", bf16" : "");
        c.problem.precision = bf16 ? Precision::kBf16 : Precision::kF32;
        run_twice(c, [&](int) { backend.attention(c.problem, nullptr); });
        double& greatest = bf16 ? greatest_bf16_error : greatest_error;
        greatest = std::fmax(greatest, check_results(c, out, lse, bf16 ? bf16_tolerance : tolerance,
                                                     bf16 ? kBf16Tolerance : tolerance));
      }
    }
  }
  c.problem.precision = Precision::kF32;
  context = name;
}

void random_stacks() {
  for (uint32_t seed = 0; seed < seeds; ++seed) check_case(*random_case(seed));
}

// The program's bias by every instruction set, in float32 and in bfloat16, into outputs at any place in
// memory, with a guard on both sides. `tolerance` is of finite entries in float32; bfloat16 is the nearest to
// the float32.
void check_bias(const Program& bias, double tolerance) {
  std::vector<double> want(static_cast<size_t>(element_count(bias_shape(bias), "bias")));
  reference_bias(bias, want.data());
  const std::string name = context;
  constexpr size_t kGuard = 64;
  constexpr float kUntouched = 123.0f;
  constexpr uint16_t kUntouchedBf16 = 0x42f6;
  size_t place = 0;  // elements past an alignment of the allocator's
  for (const std::string& isa : cpu::supported_isas()) {
    context = name + ", " + isa;
    cpu::Backend backend(2, isa);
    place = (place + 5) % 32;
    std::vector<float> buffer(want.size() + 2 * kGuard, kUntouched);
    float* const got = buffer.data() + kGuard - place;
    backend.bias({&bias, got}, nullptr);
    std::vector<uint16_t> buffer_bf16(buffer.size(), kUntouchedBf16);
    uint16_t* const bf16 = buffer_bf16.data() + kGuard - place;
    backend.bias({&bias, bf16, DType::kBfloat16}, nullptr);
    for (size_t i = 0; i < want.size(); ++i) {
      const bool good = std::isinf(want[i]) ? got[i] == want[i] : std::fabs(got[i] - want[i]) <= tolerance;
      if (!good)
        report(false, __FILE__, __LINE__,
               "element " + std::to_string(i) + ": " + show(got[i]) + " for " + show(want[i]));
      if (bf16[i] != bias_to_bf16(got[i]))
        report(false, __FILE__, __LINE__,
               "element " + std::to_string(i) + " in bfloat16: " + show(bf16[i]) + " for " + show(got[i]));
    }
    bool untouched = true;
    for (size_t i = 0; i < buffer.size(); ++i) {
      if (i >= kGuard - place && i < kGuard - place + want.size()) continue;
      untouched &= buffer[i] == kUntouched && buffer_bf16[i] == kUntouchedBf16;
    }
    CHECK(untouched);
  }
  context = name;
}

// ---- the row kernel, called itself ------------------------------------------------------------------------

struct RowKernel {
  std::string isa;
  decltype(cpu::Kernels::row_scratch_floats) row_scratch_floats;
  decltype(cpu::Kernels::attention_rows) attention_rows;
  decltype(cpu::Kernels::gather_scratch_floats) gather_scratch_floats;
  decltype(cpu::Kernels::gather) gather;
};

std::vector<RowKernel> row_kernels() {
  std::vector<RowKernel> kernels;
  const std::vector<std::string> supported = cpu::supported_isas();
#define AB_ROW_KERNEL(isa)                                                                                \
  if (kernels.size() < supported.size()) {                                                                \
    kernels.push_back({supported[kernels.size()], cpu::isa::row_scratch_floats, cpu::isa::attention_rows, \
                       cpu::isa::gather_scratch_floats, cpu::isa::gather});                               \
  }
  AB_FOR_EACH_ISA(AB_ROW_KERNEL)  // both lists go from the least to the best
#undef AB_ROW_KERNEL
  return kernels;
}

// Calls run(kernel) for each instruction set, and holds what it leaves in the case against the reference.
template <class Run>
void check_rows(Case& c, Run run, double tolerance = 2e-6) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::string name = context;
  for (const RowKernel& kernel : row_kernels()) {
    context = name + ", " + kernel.isa;
    run_twice(c, [&](int) { run(kernel); });
    greatest_error = std::fmax(greatest_error, check_results(c, out, lse, tolerance, tolerance));
  }
  context = name;
}

cpu::AttentionTask task_of(const Case& c, int64_t row, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
  const AttentionProblem& p = c.problem;
  cpu::AttentionTask task = {};
  task.problem = &p;
  task.b = row / p.extent.heads;
  task.h = row % p.extent.heads;
  task.q0 = static_cast<int32_t>(q0);
  task.q1 = static_cast<int32_t>(q1);
  task.k0 = static_cast<int32_t>(k0);
  task.k1 = static_cast<int32_t>(k1);
  task.out = p.out + (row * p.extent.queries + q0) * p.value_dim;
  task.lse = p.lse + row * p.extent.queries + q0;
  return task;
}

void run_rows(const Case& c, const RowKernel& kernel, const float* biases) {
  const Extent& e = c.problem.extent;
  cpu::Scratch scratch;
  for (int64_t row = 0; row < e.batch * e.heads; ++row) {
    for (int64_t q0 = 0; q0 < e.queries; q0 += 5) {
      const int64_t q1 = std::min(e.queries, q0 + 5);
      cpu::AttentionTask task = task_of(c, row, q0, q1, 0, e.keys);
      task.scratch = scratch.floats(kernel.row_scratch_floats(c.problem, static_cast<int32_t>(q1 - q0)));
      CHECK(kernel.attention_rows(task, biases ? biases + (row * e.queries + q0) * e.keys : nullptr));
    }
  }
}

// In parts of the keys, joined here in float64.
void run_rows_in_parts(const Case& c, const RowKernel& kernel, int64_t part_keys) {
  const AttentionProblem& p = c.problem;
  const Extent& e = p.extent;
  cpu::Scratch scratch;
  for (int64_t row = 0; row < e.batch * e.heads; ++row) {
    const int64_t parts = (e.keys + part_keys - 1) / part_keys;
    std::vector<float> outs(static_cast<size_t>(parts * e.queries * p.value_dim));
    std::vector<SoftmaxState> states(static_cast<size_t>(parts * e.queries));
    for (int64_t i = 0; i < parts; ++i) {
      cpu::AttentionTask task =
          task_of(c, row, 0, e.queries, i * part_keys, std::min(e.keys, (i + 1) * part_keys));
      task.out = outs.data() + i * e.queries * p.value_dim;
      task.lse = nullptr;
      task.partial = states.data() + i * e.queries;
      task.scratch = scratch.floats(kernel.row_scratch_floats(p, task.q1));
      CHECK(kernel.attention_rows(task, nullptr));
    }
    for (int64_t q = 0; q < e.queries; ++q) {
      double base = -kInf, sum = 0;
      bool seen = false;
      for (int64_t i = 0; i < parts; ++i) {
        const SoftmaxState& part = states[static_cast<size_t>(i * e.queries + q)];
        seen |= part.seen;
        if (weighs(part)) base = std::fmax(base, part.base);
      }
      std::vector<double> out(static_cast<size_t>(p.value_dim));
      for (int64_t i = 0; i < parts; ++i) {
        const SoftmaxState& part = states[static_cast<size_t>(i * e.queries + q)];
        if (!part.seen) continue;
        const double factor = weighs(part) ? std::exp(part.base - base) : 0;
        sum += part.sum * factor;
        for (int64_t d = 0; d < p.value_dim; ++d) {
          out[static_cast<size_t>(d)] +=
              outs[static_cast<size_t>((i * e.queries + q) * p.value_dim + d)] * factor;
        }
      }
      const int64_t at = row * e.queries + q;
      for (int64_t d = 0; d < p.value_dim; ++d) {
        p.out[at * p.value_dim + d] = seen ? static_cast<float>(out[static_cast<size_t>(d)] / sum) : 0.0f;
      }
      p.lse[at] = !seen ? -kInf : sum == 0 ? kNan : static_cast<float>(base + std::log(sum));
    }
  }
}

void rows() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    auto c = random_case(seed);
    const Extent& e = c->problem.extent;
    const std::string name = context;
    context = "rows, " + name;
    check_rows(*c, [&](const RowKernel& kernel) { run_rows(*c, kernel, nullptr); });
    context = "rows in parts, " + name;
    const int64_t part = 1 + seed * 37 % 700;
    check_rows(*c, [&](const RowKernel& kernel) { run_rows_in_parts(*c, kernel, part); });

    context = "rows of given biases, " + name;
    const Shape shape = bias_shape(*c->bias);
    std::vector<double> exact(static_cast<size_t>(element_count(shape, "bias")));
    reference_bias(*c->bias, exact.data());
    std::vector<float> biases;
    for (int64_t b = 0; b < e.batch; ++b) {
      for (int64_t h = 0; h < e.heads; ++h) {
        const int64_t head = (shape[0] > 1 ? b : 0) * shape[1] + (shape[1] > 1 ? h : 0);
        const auto first = exact.begin() + head * e.queries * e.keys;
        biases.insert(biases.end(), first, first + e.queries * e.keys);
      }
    }
    check_rows(*c, [&](const RowKernel& kernel) { run_rows(*c, kernel, biases.data()); });
  }
  special_cases([](Case& c) {
    check_rows(c, [&](const RowKernel& kernel) { run_rows(c, kernel, nullptr); });
    check_rows(c, [&](const RowKernel& kernel) { run_rows_in_parts(c, kernel, 100); });
  });
  Random r(12);
  for (const int64_t d : {1, 3, 4, 8, 15, 16, 17, 32, 40, 48, 64, 100, 128, 256, 300}) {
    context = "rows, head dim " + std::to_string(d);
    auto c = make_case({1, 2, 3, 700}, d, 301 - d, r);
    check_rows(*c, [&](const RowKernel& kernel) { run_rows(*c, kernel, nullptr); });
  }
  context = "rows, long ones keep their accuracy";
  auto c = make_case({1, 1, 2, 56400}, 32, 32, r);
  for (int64_t i = 0; i < 64; ++i)
    floats(c->problem.query)[i] *= 0.01f;  // so that all keys weigh about the same
  check_rows(*c, [&](const RowKernel& kernel) { run_rows(*c, kernel, nullptr); });
}

// The queries of each batch row out of order, and some of the heads at once.
void run_gather(const Case& c, const RowKernel& kernel, uint32_t seed) {
  const Extent& e = c.problem.extent;
  const KeyBound bound = c.bias->key_bound();
  cpu::Scratch scratch;
  std::vector<int32_t> queries;
  for (int32_t q = 0; q < e.queries; ++q) queries.push_back(q);
  std::shuffle(queries.begin(), queries.end(), std::mt19937(seed));
  const int64_t heads = 1 + seed % 3;
  for (int64_t b = 0; b < e.batch; ++b) {
    for (int64_t h = 0; h < e.heads; h += heads) {
      cpu::GatherTask task = {};
      task.problem = &c.problem;
      task.bound = &bound;
      task.bias_by_head = c.bias->depends_on_head();
      task.b = b;
      task.h0 = h;
      task.h1 = std::min(e.heads, h + heads);
      task.queries = queries.data();
      task.count = static_cast<int32_t>(e.queries);
      task.scratch = scratch.floats(kernel.gather_scratch_floats(c.problem, bound));
      CHECK(kernel.gather(task));
    }
  }
}

void gathered() {
  int64_t hidden_rows = 0, bad_rows = 0, all_rows = 0, narrow = 0;
  for (uint32_t seed = 0; seed < 2 * seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.2) ? r.integer(500, 2500) : r.integer(1, 300);
    const int64_t queries = r.chance(0.3) && keys < 300 ? keys : r.integer(1, 90);
    auto c =
        make_case({r.integer(1, 2), r.integer(1, 4), queries, keys}, r.integer(1, 40), r.integer(1, 40), r);
    if (r.chance(0.7)) add_random_windows(c->bias.get(), r, c->tensors);
    if (r.chance(0.5)) add_narrow_window(c->bias.get(), r);
    const std::string kinds = add_random_terms(c->bias.get(), r.integer(0, 3), r, c->tensors);
    context = "gather, seed " + std::to_string(seed) + ", kinds" + kinds;
    const Extent& e = c->problem.extent;
    if (r.chance(0.3)) {  // what only some rows, or none, may show
      const int64_t key = r.integer(0, keys - 1);
      const float bad = r.chance(0.3) ? kInf : r.chance(0.5) ? -kInf : kNan;
      floats(c->problem.key)[key * c->problem.head_dim] = bad;
      // Not an infinity: times a probability that is 0 in float32 alone, it is NaN here and not in the
      // reference.
      floats(c->problem.value)[(keys - 1 - key) * c->problem.value_dim] = kNan;
    }
    // Rows that a window leaves only keys of shiftedWindow's −100 have scores rounded to 4e-6.
    const double tolerance = kinds.find(" 10") == std::string::npos ? 2e-6 : 4e-6;
    check_rows(
        *c, [&](const RowKernel& kernel) { run_gather(*c, kernel, seed); }, tolerance);
    for (const float lse : c->lse) hidden_rows += lse == -kInf, bad_rows += std::isnan(lse), ++all_rows;

    // What the backend makes of it, gathering or not, and whatever its threads.
    check_case(*c, tolerance);
    narrow += c->bias->key_bound().most_keys * 4 <= e.keys;
    for (const std::string& isa : cpu::supported_isas()) {
      std::vector<float> out[2];
      for (const int threads : {1, 3}) {
        cpu::Backend backend(threads, isa);
        backend.attention(c->problem, nullptr);
        out[threads == 3] = c->out;
      }
      if (c->bias->key_bound().most_keys * 4 > e.keys || e.keys > 256) continue;  // then keys may be split
      CHECK(std::memcmp(out[0].data(), out[1].data(), out[0].size() * 4) == 0);
    }
  }
  context = "gather: many rows see keys, and some none or NaN; many cases see few keys";
  CHECK(hidden_rows > 0 && bad_rows > 0 && hidden_rows + bad_rows < all_rows / 2);
  CHECK(narrow > seeds / 4);
}

// ---- the kernel of short rows, called itself and by the backend
// --------------------------------------------

struct ShortKernel {
  std::string isa;
  decltype(cpu::Kernels::shared_bias_floats) shared_bias_floats;
  decltype(cpu::Kernels::expand_bias) expand_bias;
  decltype(cpu::Kernels::short_scratch_floats) short_scratch_floats;
  decltype(cpu::Kernels::attention_short) attention_short;
};

std::vector<ShortKernel> short_kernels() {
  std::vector<ShortKernel> kernels;
  const std::vector<std::string> supported = cpu::supported_isas();
#define AB_SHORT_KERNEL(isa)                                                                           \
  if (kernels.size() < supported.size()) {                                                             \
    kernels.push_back({supported[kernels.size()], cpu::isa::shared_bias_floats, cpu::isa::expand_bias, \
                       cpu::isa::short_scratch_floats, cpu::isa::attention_short});                    \
  }
  AB_FOR_EACH_ISA(AB_SHORT_KERNEL)
#undef AB_SHORT_KERNEL
  return kernels;
}

// The whole case in two runs of rows; every batch row and head has its biases written anew. False when the
// flag stopped it.
bool run_short(const Case& c, const ShortKernel& kernel, AbortFlag abort) {
  const Extent& e = c.problem.extent;
  const int64_t rows = e.batch * e.heads;
  const int64_t floats =
      kernel.shared_bias_floats(static_cast<int32_t>(e.queries), static_cast<int32_t>(e.keys));
  const bool biased = c.bias->term_count() != 0;
  cpu::Scratch scratch, biases;
  std::vector<const float*> of_batch;
  cpu::ShortTask task = {};
  task.problem = &c.problem;
  if (biased) {
    float* const to = biases.floats(rows * floats);
    for (int64_t row = 0; row < rows; ++row) {
      kernel.expand_bias(*c.bias, row / e.heads, row % e.heads, to + row * floats);
    }
    for (int64_t b = 0; b < e.batch; ++b) of_batch.push_back(to + b * e.heads * floats);
    task.biases = of_batch.data();
    task.head_stride = floats;
  }
  for (const Term& term : c.bias->terms()) {
    task.hides |= visit(term, [](const auto& t) { return std::decay_t<decltype(t)>::kHides; });
  }
  task.scratch = scratch.floats(kernel.short_scratch_floats(c.problem));
  task.abort = abort;
  for (const int64_t end : {rows / 3, rows}) {
    task.row0 = task.row1, task.row1 = end;
    if (!kernel.attention_short(task)) return false;
  }
  return true;
}

// Checks the kernel against the reference, and that the backend's results are the kernel's bits whatever the
// number of threads, so that it is what ran.
void check_short(Case& c, bool by_backend, double tolerance) {
  std::vector<double> out(c.out.size()), lse(c.lse.size());
  reference_attention(c.problem, out.data(), lse.data());
  const std::string name = context;
  for (const ShortKernel& kernel : short_kernels()) {
    context = name + ", " + kernel.isa;
    run_twice(c, [&](int) { CHECK(run_short(c, kernel, nullptr)); });
    greatest_error = std::fmax(greatest_error, check_results(c, out, lse, tolerance, tolerance));
    const std::vector<float> kernel_out = c.out, kernel_lse = c.lse;
    for (int threads = 1; by_backend && threads <= 3; ++threads) {
      context = name + ", " + kernel.isa + ", threads " + std::to_string(threads);
      cpu::Backend backend(threads, kernel.isa);
      std::fill(c.out.begin(), c.out.end(), 123.0f);
      std::fill(c.lse.begin(), c.lse.end(), 123.0f);
      backend.attention(c.problem, nullptr);
      CHECK(std::memcmp(kernel_out.data(), c.out.data(), c.out.size() * 4) == 0);
      CHECK(std::memcmp(kernel_lse.data(), c.lse.data(), c.lse.size() * 4) == 0);
    }
  }
  context = name;
}

void short_rows() {
  int64_t hidden_rows = 0, all_rows = 0, with_nan = 0, swin = 0;
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed + 700);
    const int64_t keys = r.chance(0.3) ? r.integer(1, 20) : r.integer(1, 192);
    const int64_t queries = r.chance(0.5) ? keys : r.integer(1, 150);
    const int64_t d = r.chance(0.3) ? 32 : r.integer(1, 70), dv = r.chance(0.5) ? d : r.integer(1, 70);
    const int64_t batch = 4 * r.integer(3, 5);
    auto c = make_case({batch, r.integer(1, 3), queries, keys}, d, dv, r);
    const Extent& e = c->problem.extent;
    Tensors& t = c->tensors;
    std::string kinds;
    const auto path = [&] { return "bias[" + std::to_string(c->bias->term_count()) + "]"; };
    for (int64_t left = r.integer(0, 3); left > 0; --left) {
      const int kind = std::vector<int>{0, 1, 3, 9, 10, 10, 11, 12, 13}[static_cast<size_t>(r.integer(0, 8))];
      const Shape shape = {1, r.chance(0.5) ? 1 : e.heads, r.chance(0.3) ? 1 : e.queries, e.keys};
      if (kind == 0) {
        const double hidden = r.chance(0.5) ? 0 : 0.3;
        c->bias->add_dense(
            t.f32(shape, "bias", [&] { return r.chance(hidden) ? -INFINITY : 2 * r.normal(); }), path());
      } else if (kind == 1) {
        c->bias->add_mask(t.u8(shape, "visible", [&] { return uint8_t(r.chance(0.6)); }), path());
      } else if (kind == 10 && e.queries == e.keys && !c->bias->depends_on_batch()) {
        c->bias->add_shifted_window({2 * e.keys, 2}, {e.keys, 1}, {r.integer(0, e.keys - 1), 0}, -100,
                                    path());
        ++swin;
      } else if (kind == 12) {
        const auto factor = [&] { return 0.5f * r.normal(); };
        const TensorView query_factors = t.f32({1, 1, e.queries, 3}, "queryFactors", factor);
        c->bias->add_low_rank(query_factors, t.f32({1, e.heads, e.keys, 3}, "keyFactors", factor), 0.7,
                              path());
      } else if (kind == 10 || !add_random_term(c->bias.get(), kind, r, t)) {
        continue;
      }
      kinds += " " + std::to_string(kind);
    }
    if (r.chance(0.4)) {  // a key that is hidden of all queries but the first, and not a number
      const int64_t key = r.integer(0, keys - 1);
      hide_but_first(*c, {key});
      kinds += " 1";
      for (int64_t row = 0; row < e.batch * e.heads; row += 2) {
        floats(c->problem.value)[(row * keys + key) * dv] = kNan;
        if (row % 4 == 0) floats(c->problem.key)[(row * keys + key) * d] = r.chance(0.5) ? kNan : kInf;
      }
      ++with_nan;
    }
    const bool narrow = c->bias->key_bound().most_keys * 3 <= keys;  // which are gathered
    context = "short rows, seed " + std::to_string(seed + 700) + ", kinds" + kinds;
    // Rows that see nothing but shiftedWindow's −100 have scores rounded to 4e-6.
    check_short(*c, !narrow, kinds.find(" 10") == std::string::npos ? 2e-6 : 4e-6);
    for (const float lse : c->lse) hidden_rows += lse == -kInf, ++all_rows;
  }
  context = "short rows: rows that see no key, keys that are NaN, shifted windows";
  CHECK(hidden_rows > 0 && hidden_rows < all_rows / 2 && with_nan > seeds / 5 && swin > seeds / 20);

  context = "short rows with every key visible, 256 of them";
  Random r(8);
  for (const int64_t queries : {1, 15, 16, 17, 24, 47, 48, 49, 52, 97, 150}) {
    check_short(*make_case({12, 1, queries, 256}, 16, 40, r), true, 2e-6);
  }
  special_cases([](Case& c) {
    if (c.problem.extent.keys <= 300) check_short(c, false, 2e-6);
  });

  context = "short rows, abort";
  auto c = make_case({12, 2, 49, 49}, 32, 32, r);
  const std::atomic<bool> abort{true};
  for (const ShortKernel& kernel : short_kernels()) {
    CHECK(!run_short(*c, kernel, &abort));
    cpu::Backend backend(2, kernel.isa);
    CHECK_ERROR(backend.attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
  }
}

// ---- local additive terms, listed once a call
// --------------------------------------------------------------

// Adds a spatial term on one or two segments. `greatest` of either sign is its value at a centre of weight 1.
void add_spatial_term(Case& c, Random& r, double greatest) {
  const Extent& e = c.problem.extent;
  std::vector<SpatialSegmentSpec> segments;
  int64_t start = r.chance(0.5) ? 0 : r.integer(0, e.keys - 1);
  for (int64_t left = r.integer(1, 2); left > 0 && start < e.keys; --left) {
    const int64_t length = left == 1 ? e.keys - start : r.integer(1, e.keys - start);
    segments.push_back({random_grid(start, length, e, r, c.tensors), r.uniform(0.3f, 12),
                        c.tensors.f32({e.batch, e.queries}, "weights", [&] { return r.uniform(0, 1); })});
    start += length;
  }
  c.bias->add_spatial(greatest, segments, "bias[" + std::to_string(c.bias->term_count()) + "]");
}

// Whether the lists hold what the program's terms come to, each element in its block's and tile's place.
void check_lists(const Case& c, int32_t query_block) {
  const Extent& e = c.problem.extent;
  cpu::NearLists lists;
  const auto run = [](int64_t count, const std::function<void(int64_t, int)>& body) {
    for (int64_t i = count - 1; i >= 0; --i) body(i, 0);
  };
  for (int time = 0; time < 2; ++time) CHECK(lists.build(c.problem, query_block, run));  // and anew
  std::vector<double> want(static_cast<size_t>(element_count(bias_shape(*c.bias), "bias"))), got(want.size());
  reference_bias(*c.bias, want.data());
  for (int64_t b = 0; b < e.batch; ++b) {
    for (int64_t q0 = 0; q0 < e.queries; q0 += query_block) {
      const cpu::NearBlock& block = lists.of_batch(b)[q0 / query_block];
      for (int64_t k0 = 0; k0 < e.keys; k0 += cpu::kTileKeys) {
        const int64_t tile = k0 / cpu::kTileKeys;
        for (uint32_t i = block.begins[tile]; i < block.ends[tile]; ++i) {
          const cpu::NearElement& element = block.elements[i];
          const int64_t q = q0 + element.at % query_block, k = k0 + element.at / query_block;
          CHECK(q < e.queries && k < e.keys && element.bias != 0);
          got[static_cast<size_t>((b * e.queries + q) * e.keys + k)] += element.bias;
        }
      }
    }
  }
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::fabs(got[i] - want[i]) <= 2e-5) continue;  // 2 ulp of the largest summand, 90
    report(false, __FILE__, __LINE__,
           "element " + std::to_string(i) + ": " + show(got[i]) + " for " + show(want[i]));
  }
}

void listed() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed + 3000);
    const int64_t keys = r.chance(0.2) ? r.integer(1100, 2600) : r.integer(1, 700);
    const bool many = keys < 200;  // batch rows and heads, so that threads don't change how they are cut
    auto c = make_case({many ? 6 : r.integer(1, 2), many ? 4 : r.integer(1, 3), r.integer(1, 120), keys},
                       r.integer(1, 40), r.integer(1, 40), r);
    context = "listed, seed " + std::to_string(seed + 3000);
    for (int64_t left = r.integer(1, 3); left > 0; --left) add_spatial_term(*c, r, r.uniform(-6, 6));
    // Rows of which nearly all weight is lost or won. Beyond about 100 float32 can't tell their scores apart.
    const bool great = r.chance(0.3);
    if (great) add_spatial_term(*c, r, r.chance(0.5) ? 90 : -90);
    check_lists(*c, static_cast<int32_t>(r.integer(1, 50)));
    const std::string kinds = add_random_terms(c->bias.get(), r.integer(0, 2), r, c->tensors);
    context += ", other kinds" + kinds;
    check_case(*c, great ? 4e-6 : 2e-6);  // a score of 90 is itself rounded to 4e-6
    if (!many) continue;
    for (const std::string& isa : cpu::supported_isas()) {
      std::vector<float> first;
      for (int threads = 1; threads <= 3; ++threads) {
        cpu::Backend backend(threads, isa);
        backend.attention(c->problem, nullptr);
        if (threads == 1) first = c->out;
        CHECK(std::memcmp(first.data(), c->out.data(), first.size() * 4) == 0);
      }
    }
  }
  context = "listed: values beyond every other score, of both signs";
  Random r(31);
  for (const double greatest : {1e4, -1e4, 1e30, -1e30, 3e38, -3e38}) {
    auto c = make_case({1, 2, 60, 900}, 8, 8, r);
    c->bias->add_spatial(greatest,
                         {{{100, {20, 30}, c->tensors.f32({1, 60, 2}, "centers", [&] { return 2.0f; })},
                           0.5,
                           c->tensors.f32({1, 60}, "weights", [] { return 1.0f; })}},
                         "bias[0]");
    check_case(*c);
  }
  context = "listed: too many elements for lists";
  auto c = make_case({1, 1, 900, 4800}, 2, 2, r);
  c->bias->add_spatial(2,
                       {{{0, {60, 80}, c->tensors.f32({1, 900, 2}, "centers", [] { return 30.0f; })},
                         200,
                         c->tensors.f32({1, 900}, "weights", [&] { return r.uniform(0, 1); })}},
                       "bias[0]");
  cpu::NearLists lists;
  CHECK(!lists.build(c->problem, 48, [](int64_t count, const std::function<void(int64_t, int)>& body) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
  }));
  if (seeds >= 400) check_case(*c);
}

void bias_rows() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed);
    const int64_t keys = r.chance(0.2) ? r.integer(2000, 5000) : r.integer(1, 300);
    const int64_t queries = r.chance(0.5) && keys < 400 ? keys : r.integer(1, 40);
    Tensors tensors;
    Program bias({r.integer(1, 3), r.integer(1, 3), queries, keys});
    const std::string kinds = add_random_terms(&bias, r.integer(0, 3) + 1, r, tensors);
    context = "bias, seed " + std::to_string(seed) + ", kinds" + kinds;
    // Terms here stay below 128 (shiftedWindow's -100): 2 ulp of the largest summand are at most 1.6e-5.
    check_bias(bias, 1.6e-5);
  }
}

// Stacks of modality, spatial and window alone, whose rows are filled segment by segment.
void bias_of_segments() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    Random r(seed + 9000);
    Tensors tensors;
    Program bias({r.integer(1, 2), 1, r.integer(1, 12), r.integer(1, 6000)});
    context = "bias of segments, seed " + std::to_string(seed) + ", kinds";
    for (int64_t left = r.integer(1, 4); left > 0; --left) {
      const int kind = static_cast<int>(r.integer(6, 8));
      context += " " + std::to_string(kind);
      add_random_term(&bias, kind, r, tensors);
    }
    check_bias(bias, 8e-6);
  }
  Random r(5);
  Tensors tensors;
  const auto weight = [&] { return r.uniform(0, 1); };
  const auto middle = [&] { return 150.5f; };
  Program wide({1, 1, 3, 90600});
  context = "runs longer than a part";
  wide.add_modality(5, {{300, 90000, tensors.f32({1, 3}, "weights", weight)}}, "bias[0]");
  wide.add_spatial(5,
                   {{{300, {300, 300}, tensors.f32({1, 3, 2}, "centers", middle)},
                     140,
                     tensors.f32({1, 3}, "weights", weight)}},
                   "bias[1]");
  check_bias(wide, 2e-6);
  wide.add_window({{{300, {300, 300}, tensors.f32({1, 3, 2}, "centers", middle)}, 281}}, "bias[2]");
  check_bias(wide, 2e-6);

  context = "sums beyond float32 stay finite";
  Program great({1, 1, 2, 700});
  for (const int sign : {1, -1}) {
    const auto one = [&] { return 1.0f; };
    great.add_modality(sign * 1.7e38, {{0, 100, tensors.f32({1, 2}, "weights", one)}}, "bias[0]");
    great.add_spatial(sign * 3e38,
                      {{{0, {20, 30}, tensors.f32({1, 2, 2}, "centers", [] { return 2.0f; })},
                        4,
                        tensors.f32({1, 2}, "weights", one)}},
                      "bias[1]");
    for (const std::string& isa : cpu::supported_isas()) {
      std::vector<float> got(1400);
      std::vector<uint16_t> bf16(1400);
      cpu::Backend backend(1, isa);
      backend.bias({&great, got.data()}, nullptr);
      backend.bias({&great, bf16.data(), DType::kBfloat16}, nullptr);
      // Key (2, 2) is the centre's; with the other sign's terms it is 0.
      CHECK_EQ(got[62], sign > 0 ? kGreatestFloat : 0.0f);
      CHECK_EQ(bf16[62], sign > 0 ? 0x7f7f : 0);
      for (size_t i = 0; i < got.size(); ++i) {
        if (!std::isfinite(got[i]) || bf16[i] != bias_to_bf16(got[i]))
          CHECK_EQ(got[i], bf16_to_float(bf16[i]));
      }
    }
  }
}

// Batch rows that are alike are computed once. B is a multiple of the number of windows, and not one of 4
// MiB.
void bias_of_windows() {
  Random r(6);
  const auto next = [&] { return r.normal(); };
  struct {
    std::vector<int64_t> resolution, window, shift;
    int64_t different;
  } const cases[] = {
      {{28, 35}, {7, 7}, {3, 3}, 4}, {{28, 35}, {7, 7}, {0, 3}, 2}, {{28, 35}, {7, 7}, {3, 0}, 2},
      {{28, 35}, {7, 7}, {0, 0}, 1}, {{7, 35}, {7, 7}, {3, 3}, 2},  {{28, 5}, {7, 5}, {2, 1}, 2},
      {{3, 2}, {3, 2}, {1, 1}, 1},   {{16, 16}, {2, 2}, {1, 1}, 4},
  };
  for (const auto& c : cases) {
    for (const int with : {0, 1, 2}) {
      const int64_t tokens = c.window[0] * c.window[1];
      const int64_t windows = c.resolution[0] * c.resolution[1] / tokens, batch = 3 * windows;
      Tensors tensors;
      Program bias({batch, 2, tokens, tokens});
      bias.add_shifted_window(c.resolution, c.window, c.shift, -100, "bias[0]");
      if (with > 0) {
        const int64_t pairs = (2 * c.window[0] - 1) * (2 * c.window[1] - 1);
        bias.add_relative_position(c.window, tensors.f32({pairs, 2}, "table", next), false, "bias[1]");
      }
      // Something of each batch row's own.
      if (with > 1)
        bias.add_padding(
            tensors.u8({batch, tokens}, "ignore", [&] { return static_cast<uint8_t>(r.chance(0.1)); }),
            "bias[2]");
      context = "windows of " + to_string(c.window) + " in " + to_string(c.resolution) + ", shift " +
                to_string(c.shift) + ", terms " + std::to_string(with + 1);
      int64_t different = 0;
      for (int64_t b = 0; b < batch; ++b) different += bias.first_alike(b) == b;
      CHECK_EQ(different, with > 1 ? batch : c.different);
      check_bias(bias, 1.6e-5);
    }
  }
}

void shapes() {
  Random r(11);
  for (const int64_t d : {1, 7, 8, 31, 32, 64, 96, 128, 192, 256, 300}) {
    for (const int64_t queries : {1, 5, 49}) {
      context = "head dim " + std::to_string(d) + ", queries " + std::to_string(queries);
      auto c = make_case({1, 2, queries, 131}, d, d, r);
      check_case(*c);
    }
  }
  context = "many keys, one query";
  check_case(*make_case({1, 1, 1, 20000}, 32, 32, r));
  context = "long rows keep their accuracy";
  auto c = make_case({1, 1, 30, 56400}, 32, 32, r);
  check_case(*c, 1e-6);
}

// That the kernel of bfloat16 is taken where there is one: elsewhere its precision is float32 once more.
void bf16_is_taken() {
  context = "bf16 is taken";
  Random r(9);
  auto c = make_case({1, 2, 100, 1000}, 32, 32, r);
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::Backend backend(2, isa);
    c->problem.precision = Precision::kF32;
    backend.attention(c->problem, nullptr);
    const std::vector<float> f32 = c->out;
    c->problem.precision = Precision::kBf16;
    backend.attention(c->problem, nullptr);
#if defined(AB_ISAS_X86_64)
    const bool has = isa == "x86-64-v4" && cpu::x86_64_v4::has_bf16();
#else
    const bool has = false;
#endif
    CHECK_EQ(c->out != f32, has);
  }
}

// Biases that fit float32, but not after the change of units that the bfloat16 kernel makes.
void great_biases() {
  Random r(5);
  for (const float great : {3.3e38f, -3.3e38f, -2.5e38f}) {
    for (const bool by_query : {false, true}) {
      context = "biases to " + show(great) + (by_query ? " by query" : " by key");
      auto c = make_case({1, 1, 60, 700}, 8, 8, r);
      const int64_t count = by_query ? 60 : 700;
      int64_t i = 0;
      c->bias->add_dense(c->tensors.f32({1, 1, by_query ? count : 1, by_query ? 1 : count}, "bias",
                                        [&] { return great * (i++ % 50 == 0 ? 1.0f : 0.9f); }),
                         "bias[0]");
      check_case(*c);
    }
  }
  const double greatest_before = greatest_error;
  // A base that rises from a far one to what float32 can't reach from there by adding, within a row and
  // between blocks of keys.
  for (const float low : {-4.29e11f, -3e30f}) {
    for (const float high : {-1.14e5f, 3.0f}) {
      for (const int64_t from : {70, 600}) {
        context =
            "biases that rise from " + show(low) + " to " + show(high) + " at key " + std::to_string(from);
        auto c = make_case({1, 1, 60, 700}, 8, 8, r, 0.01f);
        int64_t i = 0;
        c->bias->add_dense(c->tensors.f32({1, 1, 1, 700}, "bias", [&] { return i++ < from ? low : high; }),
                           "bias[0]");
        check_case(*c, 2e-4);  // scores of 1e5 are themselves rounded to 4e-3
      }
    }
  }
  greatest_error = greatest_before;
}

// Threads that are woken after a pause begin on CPUs of their own.
void woken_apart() {
#if defined(__linux__)
  context = "woken threads";
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) {
    printf("woken threads: not tested, on one CPU\n");
    return;
  }
  constexpr int kRounds = 40;
  cpu::ThreadPool pool(2);
  int together = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> begun{0};
    int cpus[2] = {-1, -2};
    pool.run(2, [&](int64_t, int worker) {
      cpus[worker] = sched_getcpu();
      ++begun;
      // So that the other thread takes the other item; it may have to wait for a CPU.
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
      while (begun < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    together += cpus[0] == cpus[1];
  }
  report(together <= kRounds / 4, __FILE__, __LINE__,
         "on one CPU in " + std::to_string(together) + " of " + std::to_string(kRounds) + " rounds");
  cpu_set_t after;
  CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&after, &allowed));
#endif
}

// ---- linear layers and multi-head attention
// -------------------------------------------------------------------------

double greatest_linear_error = 0, greatest_multihead_error = 0;

// Calls run(backend) on every instruction set, with 1, 2 and 3 threads.
template <class Run>
void on_every_backend(Run run) {
  const std::string name = context;
  for (const std::string& isa : cpu::supported_isas()) {
    for (int threads = 1; threads <= 3; ++threads) {
      context = name + ", " + isa + ", threads " + std::to_string(threads);
      cpu::Backend backend(threads, isa);
      run(&backend, threads);
    }
  }
  context = name;
}

void check_linear_everywhere(LinearCase& c) {
  std::vector<float> first;
  on_every_backend([&](cpu::Backend* backend, int threads) {
    greatest_linear_error =
        std::fmax(greatest_linear_error, check_linear(c, [&] { backend->linear(c.problem, nullptr); }));
    const std::vector<float> got = c.out->values();
    if (threads == 1) first = got;
    CHECK(std::memcmp(first.data(), got.data(), got.size() * 4) == 0);
  });
}

void linear_layers() {
  for (uint32_t seed = 0; seed < seeds; ++seed) check_linear_everywhere(*random_linear(seed));
  Random r(41);
  const auto sizes = [](int64_t tokens, int64_t features, int64_t outputs, int64_t out_heads) {
    LinearProblem p;
    p.batch = 1;
    p.tokens = tokens;
    p.features = features;
    p.outputs = outputs;
    p.out_heads = out_heads;
    return p;
  };
  context = "linear: every number of rows of a tile, and of outputs of a panel";
  for (int64_t tokens = 1; tokens <= 13; ++tokens) {
    check_linear_everywhere(*make_linear(sizes(tokens, 17, 5 * tokens, 1), false, true, false, r));
  }
  context = "linear: DETR's sizes";
  check_linear_everywhere(*make_linear(sizes(300, 256, 256, 8), true, true, false, r));
  context = "linear: long sums";
  check_linear_everywhere(*make_linear(sizes(20, 1024, 64, 1), false, true, true, r));
  check_linear_everywhere(*make_linear(sizes(7, 9000, 30, 1), true, false, false, r));

  context = "linear, abort";
  auto c = make_linear(sizes(2000, 64, 64, 1), false, true, false, r);
  const std::atomic<bool> abort{true};
  CHECK_ERROR(cpu::Backend(2, "").linear(c->problem, &abort), ErrorCode::kAborted, "aborted");
}

void multihead() {
  for (uint32_t seed = 0; seed < seeds; ++seed) {
    const auto c = random_multihead(seed);
    on_every_backend([&](cpu::Backend* backend, int) {
      for (int time = 0; time < 2; ++time) {  // and with the memory of the first
        greatest_multihead_error =
            std::fmax(greatest_multihead_error,
                      check_multihead(*c, 3e-6, [&] { backend->multihead(c->problem, nullptr); }));
      }
      c->problem.precision = Precision::kBf16;
      check_multihead(*c, 2e-2, [&] { backend->multihead(c->problem, nullptr); });
      c->problem.precision = Precision::kF32;
    });
  }
  check_hidden_rows([](const MultiheadProblem& p) {
    on_every_backend([&](cpu::Backend* backend, int) { backend->multihead(p, nullptr); });
  });
  context = "multihead, abort and precision";
  const auto c = random_multihead(1);
  cpu::Backend backend(2, "");
  const std::atomic<bool> abort{true};
  CHECK_ERROR(backend.multihead(c->problem, &abort), ErrorCode::kAborted, "aborted");
  c->problem.precision = Precision::kTf32;
  CHECK_ERROR(backend.multihead(c->problem, nullptr), ErrorCode::kValue, "tf32");
}

void multihead_refusals() {
  context = "refusals of linear and multihead";
  Tensors t;
  const auto zero = [] { return 0.0f; };
  const auto f = [&](const Shape& shape, const char* name) { return t.f32(shape, name, zero); };
  const TensorView query = f({2, 5, 12}, "query"), key = f({2, 9, 12}, "key"), value = f({2, 9, 12}, "value");
  const TensorView in = f({36, 12}, "inProjWeight"), out = f({12, 12}, "outProjWeight");
  const MultiheadTensors good = {&query, &key, &value, nullptr, nullptr, &in, nullptr, &out, nullptr};
  CHECK_EQ(multihead_problem(good, 3).extent.heads, 3);
  for (const int64_t heads : {0, -1, 5, 24}) {
    CHECK_ERROR(multihead_problem(good, heads), ErrorCode::kValue, "a divisor of E = 12 for heads");
  }
  const auto refused = [&](const TensorView* MultiheadTensors::*field, const Shape& shape, const char* part) {
    const TensorView wrong = f(shape, "wrong");
    MultiheadTensors tensors = good;
    tensors.*field = &wrong;
    CHECK_ERROR(multihead_problem(tensors, 3), ErrorCode::kShape, std::string(part) + " for wrong");
  };
  refused(&MultiheadTensors::query, {5, 12}, "[B, Q, E]");
  refused(&MultiheadTensors::key, {9, 12}, "[B, K, E]");
  refused(&MultiheadTensors::key, {1, 9, 12}, "[2, 9, 12]");
  refused(&MultiheadTensors::key, {2, 9, 13}, "[2, 9, 12]");
  refused(&MultiheadTensors::value, {2, 8, 12}, "[2, 9, 12]");
  refused(&MultiheadTensors::query_pos, {1, 5, 12}, "[2, 5, 12]");
  refused(&MultiheadTensors::key_pos, {2, 5, 12}, "[2, 9, 12]");
  refused(&MultiheadTensors::in_weight, {12, 12}, "[36, 12]");
  refused(&MultiheadTensors::in_bias, {12}, "[36]");
  refused(&MultiheadTensors::out_weight, {12, 13}, "[12, 12]");
  refused(&MultiheadTensors::out_bias, {36}, "[12]");
  const TensorView ids = t.i32({2, 5, 12}, "queryPos", [] { return 0; });
  MultiheadTensors tensors = good;
  tensors.query_pos = &ids;
  CHECK_ERROR(multihead_problem(tensors, 3), ErrorCode::kDtype, "float32 [B, Q, E] for queryPos");

  const TensorView weight = f({7, 12}, "weight"), bias = f({8}, "bias");
  CHECK_EQ(linear_problem(query, weight, nullptr).rows(), 10);
  CHECK_ERROR(linear_problem(query, weight, &bias), ErrorCode::kShape, "[7] for bias");
  CHECK_ERROR(linear_problem(bias, weight, nullptr), ErrorCode::kShape, "[.., E] = [12] for bias");
  CHECK_ERROR(linear_problem(query, bias, nullptr), ErrorCode::kShape, "[N, E] for bias");
  CHECK_ERROR(linear_problem(ids, weight, nullptr), ErrorCode::kDtype, "float32 [.., E] for queryPos");
}

void aborts() {
  context = "abort";
  Random r(3);
  auto c = make_case({1, 4, 900, 8000}, 32, 32, r);
  cpu::Backend backend(2, "");
  std::atomic<bool> abort{true};
  CHECK_ERROR(backend.attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
  abort = false;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    abort = true;
  });
  CHECK_ERROR(backend.attention(c->problem, &abort), ErrorCode::kAborted, "aborted");
  later.join();
  backend.attention(c->problem, nullptr);  // and the backend works on
  CHECK(std::isfinite(c->lse[0]));
}

void refusals() {
  context = "refusals";
  Tensors t;
  const auto zero = [] { return 0.0f; };
  const TensorView q = t.f32({2, 2, 7, 8}, "query", zero), k = t.f32({2, 2, 33, 8}, "key", zero);
  CHECK_ERROR(attention_problem(q, k, t.f32({2, 2, 32, 8}, "value", zero), NAN), ErrorCode::kShape, "value");
  CHECK_ERROR(attention_problem(t.f32({2, 7, 8}, "query", zero), k, k, NAN), ErrorCode::kShape, "query");
  CHECK_ERROR(attention_problem(q, t.f32({2, 2, 33, 9}, "key", zero), k, NAN), ErrorCode::kShape, "key");
  CHECK_ERROR(attention_problem(q, k, k, kInf), ErrorCode::kValue, "scale");
  CHECK_ERROR(attention_problem(t.f32({1, 1, 1, 8193}, "query", zero), t.f32({1, 1, 1, 8193}, "key", zero),
                                t.f32({1, 1, 1, 1}, "value", zero), NAN),
              ErrorCode::kShape, "8192");
  CHECK_ERROR(cpu::Backend(0, ""), ErrorCode::kValue, "threads");
  CHECK_ERROR(cpu::Backend(1, "x86-64-v9"), ErrorCode::kValue, "x86-64-v9");
}

}  // namespace
}  // namespace attention_bias::test

int main(int count, char** arguments) {
  using namespace attention_bias::test;
  if (count > 1 && std::string(arguments[1]) == "quick") seeds = 30;
  random_stacks();
  rows();
  gathered();
  short_rows();
  listed();
  bias_rows();
  bias_of_segments();
  bias_of_windows();
  special_cases([](Case& c) { check_case(c); });
  shapes();
  linear_layers();
  multihead();
  multihead_refusals();
  great_biases();
  woken_apart();
  bf16_is_taken();
  aborts();
  refusals();
  printf("greatest relative errors: f32 %.3g, bf16 %.3g, linear %.3g, multihead %.3g\n", greatest_error,
         greatest_bf16_error, greatest_linear_error, greatest_multihead_error);
  return finish("cpu");
}
