// 64-bit index paths of the CPU backend. Argument `large`: what takes 5 GB.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "core/deformable.h"
#include "core/multihead.h"
#include "cpu/backend.h"
#include "large_case.h"

namespace attention_bias::test {
namespace {

cpu::Backend& backend() {
  static cpu::Backend two(2, "");
  return two;
}

// Q·K beyond 2^32 under a band that is gathered (narrow) or tiled (wide), and its gradients.
void pairs(int64_t left) {
  constexpr int64_t kTokens = 70000, kDim = 4;
  static_assert(kTokens * kTokens > k32, "");
  context = "70000 × 70000 pairs, a window of " + std::to_string(left + 1);
  Random r(static_cast<uint32_t>(left));
  auto c = make_case({1, 1, kTokens, kTokens}, kDim, kDim, r);
  c->bias->add_sliding_window(left, 0, Align::kTopLeft, "bias[0]");
  const AttentionProblem& p = c->problem;
  backend().attention(p, nullptr);
  for (int64_t q = 0; q < kTokens; q += 997) check_row(p, q, std::max<int64_t>(0, q - left), q + 1);
  check_row(p, kTokens - 1, kTokens - 1 - left, kTokens);

  // The gradient by a value is Σ_q probability·grad_out.
  std::vector<float> grad_out(c->out.size(), 0.0f), grads[3];
  for (auto& grad : grads) grad.resize(static_cast<size_t>(kTokens * kDim), 123.0f);
  for (float& x : grad_out) x = r.normal();
  BackwardProblem backward;
  backward.attention = p;
  backward.grad_out = grad_out.data();
  backward.grad_query = grads[0].data();
  backward.grad_key = grads[1].data();
  backward.grad_value = grads[2].data();
  backend().attention_backward(backward, nullptr);
  for (const int64_t k : {int64_t{0}, int64_t{50}, int64_t{46341}, int64_t{65536}, kTokens - 1}) {
    double want = 0;
    for (int64_t q = k; q <= std::min(kTokens - 1, k + left); ++q) {
      double score = 0;
      for (int64_t d = 0; d < kDim; ++d) score += double{p.query.at(q * kDim + d)} * p.key.at(k * kDim + d);
      want += std::exp(score * p.scale - p.lse[q]) * grad_out[static_cast<size_t>(q * kDim)];
    }
    const double got = grads[2][static_cast<size_t>(k * kDim)];
    report(std::fabs(got - want) <= 1e-4 * std::fmax(1, std::fabs(want)), __FILE__, __LINE__,
           "grad_value of key " + std::to_string(k) + ": " + show(got) + " and " + show(want));
  }
}

// A key tensor of more than 2^31, or 2^32, elements, of which a query sees the last.
void elements(int64_t count, int64_t left) {
  constexpr int64_t kDim = 2048;
  const int64_t keys = count / kDim + 64;
  context = std::to_string(keys * kDim) + " elements, a window of " + std::to_string(left + 1);
  const Zeros<float> key(keys * kDim), value(keys);
  if (!key.data() || !value.data()) {
    printf("%s: left out, since the system gives no room\n", context.c_str());
    return;
  }
  check_last_keys(&backend(), key.data(), value.data(), keys, kDim, left);
}

// A mask of more than 2^32 elements that shows its last rows alone something.
void large_mask() {
  constexpr int64_t kTokens = 66000;
  static_assert(kTokens * kTokens > k32, "");
  context = "a mask of 66000 × 66000";
  const Zeros<uint8_t> visible(kTokens * kTokens);
  if (!visible.data()) return;
  Random r(2);
  auto c = make_case({1, 1, kTokens, kTokens}, 4, 4, r);
  for (int64_t q = kTokens - 3; q < kTokens; ++q) {
    std::memset(visible.data() + q * kTokens + q - 5, 1, 3);
  }
  c->bias->add_mask({visible.data(), DType::kUint8, {1, 1, kTokens, kTokens}, "visible"}, "bias[0]");
  c->bias->add_sliding_window(8, 0, Align::kTopLeft, "bias[1]");
  backend().attention(c->problem, nullptr);
  for (int64_t q = kTokens - 3; q < kTokens; ++q) check_row(c->problem, q, q - 5, q - 2);
  CHECK_EQ(c->problem.lse[kTokens - 4], -kInf);
  CHECK_EQ(c->problem.out[4 * (kTokens - 4)], 0.0f);
}

// Deformable attention at the last pixel of a value tensor of more than 2^31 elements.
void large_deformable() {
  constexpr int64_t kWidth = 1024, kDim = 2048, kPixels = kWidth * kWidth + kWidth;
  static_assert(kPixels * kDim > k31, "");
  context = "deformable value of 2^31 elements";
  const Zeros<float> value(kPixels * kDim);
  if (!value.data()) return;
  for (int64_t d = 0; d < kDim; ++d) value.data()[(kPixels - 1) * kDim + d] = static_cast<float>(d);
  float location[2] = {(kWidth - 0.5f) / kWidth, (kWidth + 0.5f) / (kWidth + 1)}, weight = 2;
  std::vector<float> out(kDim);
  DeformableProblem p = deformable_problem(
      {value.data(), DType::kFloat32, {1, kPixels, 1, kDim}, "value"}, {{kWidth + 1, kWidth}},
      {location, DType::kFloat32, {1, 1, 1, 1, 1, 2}, "samplingLocations"},
      {&weight, DType::kFloat32, {1, 1, 1, 1, 1}, "attentionWeights"});
  p.out = out.data();
  backend().deformable(p, nullptr);
  for (int64_t d = 1; d < kDim; ++d) CHECK(std::fabs(out[static_cast<size_t>(d)] / (2.0f * d) - 1) < 1e-3);
}

// A fused bias of more than 2^31 elements, and a copy of as many bytes: they are written, 4 GB.
void written() {
  constexpr int64_t kQueries = 65536, kKeys = 32769;
  static_assert(kQueries * kKeys > k31, "");
  context = "a bias of 2^31 elements";
  const Zeros<uint16_t> out(kQueries * kKeys), copied(kQueries * kKeys);
  Program bias({1, 1, kQueries, kKeys});
  bias.add_causal(Align::kTopLeft, "bias[0]");
  backend().bias({&bias, out.data(), DType::kBfloat16}, nullptr);
  for (int64_t q = 0; q < kQueries; q += 101) {
    for (const int64_t k :
         {int64_t{0}, q / 2, std::min(q, kKeys - 1), std::min(q + 1, kKeys - 1), kKeys - 1}) {
      CHECK_EQ(out.data()[q * kKeys + k], k <= q ? 0x0000 : 0xff80);
    }
  }
  context = "a copy of 4 GB";
  out.data()[kQueries * kKeys - 1] = 0x1234;
  backend().copy(copied.data(), out.data(), 2 * kQueries * kKeys, nullptr);
  CHECK_EQ(copied.data()[kQueries * kKeys - 1], 0x1234);
  CHECK_EQ(copied.data()[kKeys - 1], 0xff80);
}

// What can't be addressed is refused, before anything is allocated.
void limits() {
  context = "limits";
  constexpr int64_t kMost = int64_t{1} << 30;
  float one = 0;
  const auto view = [&](const Shape& shape, const char* name) {
    return TensorView{&one, DType::kFloat32, shape, name};
  };
  const auto attention = [&](int64_t queries, int64_t keys, int64_t dim, int64_t value_dim) {
    attention_problem(view({1, 1, queries, dim}, "query"), view({1, 1, keys, dim}, "key"),
                      view({1, 1, keys, value_dim}, "value"), NAN);
  };
  attention(1, kMost, kMaxHeadDim, kMaxHeadDim);
  attention(1 << 23, kMost, 1, 1);
  CHECK_ERROR(attention((1 << 23) + 1, kMost, 1, 1), ErrorCode::kShape, "at most 2^53 elements");
  CHECK_ERROR(attention(1, kMost + 1, 1, 1), ErrorCode::kShape, "at most 2^30 queries and keys");
  CHECK_ERROR(attention(kMost + 1, 1, 1, 1), ErrorCode::kShape, "at most 2^30 queries and keys");
  CHECK_ERROR(attention(1, 1, kMaxHeadDim + 1, 1), ErrorCode::kShape, "a head dim of at most 8192 for query");
  CHECK_ERROR(attention(1, 1, 1, kMaxHeadDim + 1), ErrorCode::kShape, "a head dim of at most 8192 for value");
  CHECK_EQ(element_count({k31, k31 / 512}, "out"), int64_t{1} << 53);
  CHECK_ERROR(element_count({k31, k31 / 512 + 1}, "out"), ErrorCode::kShape, "at most 2^53 elements for out");
  CHECK_ERROR(element_count({k32, k32, k32, k32}, "out"), ErrorCode::kShape, "at most 2^53 elements for out");
  CHECK_ERROR(element_count({1, 0}, "out"), ErrorCode::kShape, "dimensions of at least 1 for out");
  CHECK_ERROR(Program({1, k32, kMost, kMost}), ErrorCode::kShape, "at most 2^53 elements");
  Program bias({1, 1, 1, 1});
  for (int i = 0; i < 64; ++i) bias.add_causal(Align::kTopLeft, "bias");
  CHECK_ERROR(bias.add_causal(Align::kTopLeft, "bias[64]"), ErrorCode::kTerm, "at most 64 terms");
  CHECK_ERROR(cpu::Backend(0, ""), ErrorCode::kValue, "an integer from 1 to 1024 for threads");
  CHECK_ERROR(cpu::Backend(1025, ""), ErrorCode::kValue, "an integer from 1 to 1024 for threads");
  const TensorView location = view({1, 1, 1, 1, 1, 2}, "samplingLocations"),
                   weight = view({1, 1, 1, 1, 1}, "attentionWeights");
  deformable_problem(view({1, kMost, 1, 1}, "value"), {{1 << 15, 1 << 15}}, location, weight);
  CHECK_ERROR(deformable_problem(view({1, kMost + 1, 1, 1}, "value"), {{kMost + 1, 1}}, location, weight),
              ErrorCode::kShape, "at most 2^30 pixels for value");
  CHECK_ERROR(deformable_problem(view({1, 1, 1, kMaxHeadDim + 1}, "value"), {{1, 1}}, location, weight),
              ErrorCode::kShape, "a head dim of at most 8192 for value");
  CHECK_ERROR(deformable_problem(view({1, 1, 1, 1}, "value"), {{1, 1}},
                                 view({1, kMost + 1, 1, 1, 1, 2}, "samplingLocations"),
                                 view({1, kMost + 1, 1, 1, 1}, "attentionWeights")),
              ErrorCode::kShape, "at most 2^30 queries, and H·L·P for samplingLocations");
  const auto low_rank = [&](int64_t rank) {
    std::vector<float> factors(static_cast<size_t>(rank));
    const TensorView view = {factors.data(), DType::kFloat32, {1, 1, 1, rank}, "factors"};
    Program({1, 1, 1, 1}).add_low_rank(view, view, 1, "bias[0]");
  };
  low_rank(kMaxHeadDim);
  CHECK_ERROR(low_rank(kMaxHeadDim + 1), ErrorCode::kShape, "a rank of at most 8192 for factors");
  const auto multihead = [&](int64_t features, int64_t heads) {
    const TensorView query = view({1, 1, features}, "query"), key = view({1, 1, features}, "key"),
                     in = view({3 * features, features}, "inProjWeight"),
                     out = view({features, features}, "outProjWeight");
    multihead_problem({&query, &key, &key, nullptr, nullptr, &in, nullptr, &out, nullptr}, heads);
  };
  multihead(2 * kMaxHeadDim, 2);
  CHECK_ERROR(multihead(2 * kMaxHeadDim, 1), ErrorCode::kShape, "a head dim of at most 8192 for query");
}

}  // namespace
}  // namespace attention_bias::test

int main(int argc, char** argv) {
  using namespace attention_bias::test;
  limits();
  pairs(3);
  pairs(300);
  for (const int64_t count : {k31, k32}) {
    for (const int64_t left : {3, 700}) elements(count, left);
  }
  large_mask();
  large_deformable();
  if (argc > 1 && std::string(argv[1]) == "large") written();
  return finish("large");
}
