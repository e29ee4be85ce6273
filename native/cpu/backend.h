// The CPU backend: the operations of core/operations.h on a pool of threads, by kernels that are compiled
// once an instruction set and chosen when the pool is made.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"
#include "core/memory_limit.h"

namespace attention_bias::cpu {

// The levels this binary has and this processor runs, best last: "x86-64-v2", "x86-64-v3", "x86-64-v4", or
// "arm64", or "generic".
std::vector<std::string> supported_isas();

// The processor's name, from the operating system.
std::string processor_name();

// What this machine does at most with some threads: the benchmarks' yardstick.
struct Peaks {
  double fma_gflops;   // float32 multiply-adds in registers, two operations each
  double bf16_gflops;  // vdpbf16ps, four a lane; 0 where the processor or the instruction set lacks it
  double fill_gb_s;    // stores of one value to 192 MB that are mapped already
  double read_gb_s;    // loads of the same
};

// Takes half a second. Arguments and errors are Backend's.
Peaks measure_peaks(int threads, const std::string& isa);

class Backend : public attention_bias::Backend {
 public:
  // `threads` at least 1, the calling thread of an operation counted. `isa` empty: the best. ERR_VALUE for
  // one that is not among supported_isas(). `limit`, if any, counts the scratch.
  Backend(int threads, const std::string& isa, std::shared_ptr<MemoryLimit> limit = nullptr);
  ~Backend() override;

  BackendInfo info() const override;

  // The calling thread is among the workers.
  void attention(const AttentionProblem& problem, AbortFlag abort) override;
  void attention_backward(const BackwardProblem& problem, AbortFlag abort) override;
  void bias(const BiasProblem& problem, AbortFlag abort) override;
  void linear(const LinearProblem& problem, AbortFlag abort) override;
  void multihead(const MultiheadProblem& problem, AbortFlag abort) override;
  void router(const RouterProblem& problem, AbortFlag abort) override;
  void router_backward(const RouterBackwardProblem& problem, AbortFlag abort) override;
  void project(const ProjectProblem& problem, AbortFlag abort) override;
  void deformable(const DeformableProblem& problem, AbortFlag abort) override;
  void deformable_backward(const DeformableBackwardProblem& problem, AbortFlag abort) override;
  void copy(void* to, const void* from, int64_t bytes, AbortFlag abort) override;
  void check_values(const std::vector<ValueCheck>& checks, AbortFlag abort) override;

 private:
  friend Peaks measure_peaks(int threads, const std::string& isa);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace attention_bias::cpu
