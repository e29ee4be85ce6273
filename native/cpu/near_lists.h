// What local additive terms (spatial) come to, listed once a call for all heads, in the order in which
// attention_kernel.cc meets it: by batch row, block of queries and tile of keys.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/operations.h"
#include "cpu/kernels.h"

namespace attention_bias::cpu {

template <class Element>
class NearListsOf {
 public:
  // Calls body(item, worker) for all items below count, in any order, on any threads.
  using Run = std::function<void(int64_t count, const std::function<void(int64_t, int)>& body)>;

  // Lists the elements for blocks of query_block queries. False where no term is local and additive, where
  // they touch so many elements that the lists would take 4 M of them, or where one can't be listed.
  bool build(const AttentionProblem& problem, int32_t query_block, const Run& run);

  // The blocks of a batch row.
  const NearBlockOf<Element>* of_batch(int64_t b) const { return views_.data() + b * blocks_; }

 private:
  struct Block {
    std::vector<Element> elements;
    std::vector<uint32_t> begins, ends;  // of each tile
  };
  std::vector<Block> lists_;  // [B][blocks_]
  std::vector<NearBlockOf<Element>> views_;
  int64_t blocks_ = 0;
};

using NearLists = NearListsOf<NearElement>;
using NearGradients = NearListsOf<NearGradient>;

}  // namespace attention_bias::cpu
