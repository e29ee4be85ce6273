// The CPU backend: the operations of core/operations.h on a pool of threads, by kernels that are compiled
// once an instruction set and chosen when the pool is made.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/operations.h"

namespace attention_bias::cpu {

// The levels this binary has and this processor runs, best last: "x86-64-v2", "x86-64-v3", "x86-64-v4", or
// "arm64", or "generic".
std::vector<std::string> supported_isas();

// The processor's name, from the operating system.
std::string processor_name();

class Backend {
 public:
  // `threads` at least 1, the calling thread of an operation counted. `isa` empty: the best. ERR_VALUE for
  // one that is not among supported_isas().
  Backend(int threads, const std::string& isa);
  ~Backend();
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  int threads() const;
  const std::string& isa() const;

  // Each blocks until it is done, with the calling thread among the workers; one operation runs at a time.
  // Throws ERR_ABORTED when the flag was seen set (outputs are then undefined), ERR_MEMORY when scratch can't
  // be had.
  void attention(const AttentionProblem& problem, AbortFlag abort);
  void bias(const BiasProblem& problem, AbortFlag abort);
  void router(const RouterProblem& problem, AbortFlag abort);
  void project(const ProjectProblem& problem, AbortFlag abort);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace attention_bias::cpu
