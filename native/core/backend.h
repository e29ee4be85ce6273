// What computes the operations: a processor's threads, a GPU.
#pragma once

#include <memory>
#include <string>

#include "core/deformable.h"
#include "core/multihead.h"
#include "core/operations.h"
#include "core/values.h"

namespace attention_bias {

struct BackendInfo {
  std::string name;  // the processor's, or the GPU's
  // of a processor
  std::string isa;
  int threads = 0;
  // of a GPU
  std::string compute_capability;  // such as 9.0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};

// Where a tensor's memory is: the system's; the system's, but page-locked, so that a GPU copies it by itself;
// or a GPU's own, which the host can't read.
enum class Place { kHost, kPinned, kDevice };

struct MemoryUse {
  int64_t used_bytes = 0;    // of tensors and operations
  int64_t cached_bytes = 0;  // kept for the next
  int64_t limit_bytes = 0;   // of both together; 0: none
  int64_t free_bytes = 0;    // of the GPU's
  int64_t total_bytes = 0;
};

// Pinned memory and a GPU's own. Any thread; outlives its backend while anybody holds it.
class MemorySource {
 public:
  MemorySource() = default;
  virtual ~MemorySource() = default;
  MemorySource(const MemorySource&) = delete;
  MemorySource& operator=(const MemorySource&) = delete;

  // Zero-filled, or nobody knows what. ERR_MEMORY naming `what`, with how much was asked for and is free.
  virtual void* allocate(Place place, int64_t bytes, bool zero, const std::string& what) = 0;
  virtual void release(void* memory) noexcept = 0;
  virtual MemoryUse use() = 0;
  // Gives back what is only kept for the next.
  virtual void trim() = 0;
};

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Before all else, on the thread that will run the operations: what takes its time. ERR_DEVICE with the
  // reason where the device can't be used.
  virtual void prepare() {}
  // After prepare().
  virtual BackendInfo info() const = 0;
  // Memory of the backend's own; null where the system's is all there is.
  virtual std::shared_ptr<MemorySource> memory() const { return nullptr; }

  // Each blocks until it is done; one operation runs at a time. Memory of a problem is the host's, pinned or
  // not, or of memory(). Throws ERR_ABORTED when the flag was seen set (outputs are then undefined),
  // ERR_MEMORY where memory can't be had, ERR_VALUE for a precision or dtype that the backend lacks.
  virtual void attention(const AttentionProblem& problem, AbortFlag abort) = 0;
  // Where `out` and `lse` are null it attends first.
  virtual void attention_backward(const BackwardProblem& problem, AbortFlag abort) = 0;
  virtual void bias(const BiasProblem& problem, AbortFlag abort) = 0;
  virtual void linear(const LinearProblem& problem, AbortFlag abort) = 0;
  virtual void multihead(const MultiheadProblem& problem, AbortFlag abort) = 0;
  virtual void router(const RouterProblem& problem, AbortFlag abort) = 0;
  virtual void router_backward(const RouterBackwardProblem& problem, AbortFlag abort) = 0;
  virtual void project(const ProjectProblem& problem, AbortFlag abort) = 0;
  virtual void deformable(const DeformableProblem& problem, AbortFlag abort) = 0;
  virtual void deformable_backward(const DeformableBackwardProblem& problem, AbortFlag abort) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes, AbortFlag abort) = 0;
  // ERR_VALUE for the first check that fails, wherever the tensors are.
  virtual void check_values(const std::vector<ValueCheck>& checks, AbortFlag abort) = 0;

  // Runs the kernels of this binary and compares with the host. Empty where they agree, else what is wrong.
  virtual std::string self_test() { return ""; }

  // Milliseconds that a device took for the last operation, from its first kernel to its last; 0 where nobody
  // measures. Copies are in it where kernels waited for them: where inputs came from the host in pieces.
  virtual double kernel_ms() const { return 0; }
};

}  // namespace attention_bias
