// The gradients by a bias's learnable tensors while several threads add to them: each group of pieces sums up
// in memory of its own, in float64, and the groups are joined in their order, so that the same call gives the
// same bits. A dense bias of single pairs is written where it is wanted, for which groups then share no pair.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/operations.h"
#include "cpu/kernels.h"

namespace attention_bias::cpu {

class TermGradients {
 public:
  // Calls body(item, worker) for all items below count, in any order, on any threads.
  using Run = std::function<void(int64_t count, const std::function<void(int64_t, int)>& body)>;

  // Those of lowRank terms, whose factors are dims of query and key, are left out.
  TermGradients(const BackwardProblem& problem, int64_t groups);

  // What the sums of all groups take at most.
  static int64_t most_bytes(const BackwardProblem& problem, int64_t groups);

  // Whether batch rows and heads must stay in one group, since a tensor of single pairs is theirs together.
  static bool shares_pairs(const BackwardProblem& problem);

  // Before a group's pieces, of batch rows [b0, b1): where they sum up. Any thread, each group once.
  const GradientSink* enter(int64_t group, int64_t b0, int64_t b1);

  // Writes the gradients, groups in their order.
  void join(const Run& run);

 private:
  struct Sum {
    float* out;
    int64_t elements, batch_elements;  // of the tensor; of a batch row, or 0 where they have all in common
    bool in_place;                     // added to `out`
  };
  struct Group {
    std::vector<std::vector<double>> sums;  // of each learnable
    std::vector<GradientSink> sinks;
  };
  std::vector<Sum> tensors_;
  std::vector<Group> groups_;
};

}  // namespace attention_bias::cpu
