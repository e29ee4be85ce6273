// What this binary and this machine offer of CUDA. The runtime is linked in; a machine with no driver loads
// the same binary and gets a reason.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace attention_bias::cuda {

struct DeviceInfo {
  int ordinal = 0;  // the N of cuda:N
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

// The backend of a device by its number. Its prepare() throws ERR_DEVICE where it can't be used.
// `limit_bytes` of the device's memory, used and cached together; 0: none.
std::unique_ptr<Backend> make_backend(int device, int64_t limit_bytes = 0);

// Runs a backend's kernels and compares with the host. Empty where they agree, else what is wrong.
std::string compare_with_host(Backend* backend);

}  // namespace attention_bias::cuda
