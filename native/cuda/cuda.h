// What this binary and this machine offer of CUDA. The runtime is linked in; a machine with no driver loads
// the same binary and gets a reason.
#pragma once

#include <string>
#include <vector>

#include "core/operations.h"

namespace attention_bias::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
};

struct Status {
  bool built = false;
  std::string toolkit;        // such as 13.0; empty where not built
  std::string architectures;  // such as 80-real 90-real
  std::string reason;         // why no device can be used; empty where one can
  int driver = 0;             // the CUDA version that the driver supports, as 13000; 0: no driver
  std::vector<DeviceInfo> devices;
};

Status status();

// `project` on a device: points and matrices are copied there and cells back. ERR_DEVICE where there is no
// such device, ERR_MEMORY where its memory does not suffice.
void project(const ProjectProblem& problem, int device);

// Runs the kernels of this binary on a device and compares with the host. Empty where they agree, else what
// is wrong.
std::string self_test(int device);

}  // namespace attention_bias::cuda
