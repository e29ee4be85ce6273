// What computes the operations: a processor's threads, a GPU.
#pragma once

#include "core/operations.h"

namespace attention_bias {

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  // Each blocks until it is done; one operation runs at a time. All memory of a problem is the host's. Throws
  // ERR_ABORTED when the flag was seen set (outputs are then undefined), ERR_MEMORY where memory can't be
  // had, ERR_VALUE for a precision that the backend lacks.
  virtual void attention(const AttentionProblem& problem, AbortFlag abort) = 0;
  virtual void bias(const BiasProblem& problem, AbortFlag abort) = 0;
  virtual void router(const RouterProblem& problem, AbortFlag abort) = 0;
  virtual void project(const ProjectProblem& problem, AbortFlag abort) = 0;

  // Milliseconds that a device took for the last operation's kernels, without copies; 0 where nobody
  // measures.
  virtual double kernel_ms() const { return 0; }
};

}  // namespace attention_bias
