// Shapes whose products pass 2^31 and 2^32, sparse so that they run in seconds: what a query sees is a few
// keys, held against float64; large tensors are pages that nobody has written to.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <string>
#include <vector>

#include "attention_case.h"
#include "check.h"

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

}  // namespace attention_bias::test
