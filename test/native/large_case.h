// Shapes whose products pass 2^31 and 2^32, sparse so that they run in seconds: what a query sees is a few
// keys, held against float64; large tensors are pages that nobody has written to.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"
#include "core/backend.h"

namespace attention_bias::test {

constexpr int64_t k31 = int64_t{1} << 31, k32 = int64_t{1} << 32;

// Zeros that take memory only where they are written to. Null where the system has no such room.
template <class T>
class Zeros {
 public:
  explicit Zeros(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    void* const memory =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = memory == MAP_FAILED ? nullptr : static_cast<T*>(memory);
  }
  ~Zeros() {
    if (data_) munmap(data_, bytes_);
  }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;

  T* data() const { return data_; }

 private:
  size_t bytes_;
  T* data_;
};

// Row q of an attention of one head that sees keys [first, last), in float64.
struct Row {
  std::vector<double> out;
  double lse;
};
inline Row exact(const AttentionProblem& p, int64_t q, int64_t first, int64_t last) {
  std::vector<double> scores;
  double greatest = -INFINITY;
  for (int64_t k = first; k < last; ++k) {
    double score = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      score += static_cast<double>(p.query.at(q * p.head_dim + d)) * p.key.at(k * p.head_dim + d);
    }
    scores.push_back(score * p.scale);
    greatest = std::fmax(greatest, scores.back());
  }
  Row row = {std::vector<double>(static_cast<size_t>(p.value_dim)), 0};
  double sum = 0;
  for (int64_t k = first; k < last; ++k) {
    const double weight = std::exp(scores[static_cast<size_t>(k - first)] - greatest);
    sum += weight;
    for (int64_t d = 0; d < p.value_dim; ++d) row.out[d] += weight * p.value.at(k * p.value_dim + d);
  }
  for (double& x : row.out) x /= sum;
  row.lse = greatest + std::log(sum);
  return row;
}

inline void check_row(const AttentionProblem& p, int64_t q, int64_t first, int64_t last) {
  const Row want = exact(p, q, first, last);
  for (int64_t d = 0; d < p.value_dim; ++d) {
    const double got = p.out[q * p.value_dim + d];
    report(std::fabs(got - want.out[d]) <= 1e-5, __FILE__, __LINE__,
           "out of row " + std::to_string(q) + ": " + show(got) + " and " + show(want.out[d]));
  }
  CHECK(std::fabs(p.lse[q] - want.lse) <= 1e-5 * std::fmax(1, std::fabs(want.lse)));
}

// An attention of one head of `dim` whose key tensor, zeros, has more than 2^31 elements, of which two
// queries see the last, through a window of `left` keys before their own: gathered where that is narrow, in
// tiles where it is wide.
inline void check_last_keys(Backend* backend, float* key, float* value, int64_t keys, int64_t dim,
                            int64_t left) {
  Random r(9);
  std::vector<float> query(static_cast<size_t>(2 * dim)), out(2), lse(2);
  for (float& x : query) x = r.normal();
  for (int64_t k = keys - left - 2; k < keys; ++k) {
    value[k] = r.normal();
    for (int64_t d = 0; d < dim; ++d) key[k * dim + d] = r.normal() / 8;
  }
  AttentionProblem p = attention_problem({query.data(), DType::kFloat32, {1, 1, 2, dim}, "query"},
                                         {key, DType::kFloat32, {1, 1, keys, dim}, "key"},
                                         {value, DType::kFloat32, {1, 1, keys, 1}, "value"}, NAN);
  Program bias(p.extent);
  bias.add_sliding_window(left, 0, Align::kBottomRight, "bias[0]");
  p.bias = &bias;
  p.out = out.data();
  p.lse = lse.data();
  backend->attention(p, nullptr);
  check_row(p, 0, keys - left - 2, keys - 1);
  check_row(p, 1, keys - left - 1, keys);
}

}  // namespace attention_bias::test
