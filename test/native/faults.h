// Faults that a test asks for: the n-th request for memory (failing_allocator.cc), for a thread, or to an
// emulated device fails. Without a test that asks, nothing does.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

namespace attention_bias::faults {

enum class Kind { kMemory, kThread, kDeviceMemory, kDevice };
constexpr const char* kKinds[] = {"memory", "thread", "deviceMemory", "device"};

// As CUDA's runtime names them.
struct Fault {
  const char* name;
  const char* text;
  bool lasts;  // every later call of the process fails too
};
constexpr Fault kFaults[] = {
    {"cudaErrorLaunchOutOfResources", "too many resources requested for launch", false},
    {"cudaErrorLaunchFailure", "unspecified launch failure", true},
    {"cudaErrorECCUncorrectable", "uncorrectable ECC error encountered", true},
    {"cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable", true},
};
constexpr int kDevices = 2;

struct Plan {
  std::atomic<int64_t> left{0};  // requests to the one that fails; 0: none does
  std::atomic<bool> lasts{false};
  std::atomic<int64_t> seen{0};
};
inline Plan plans[4];
inline std::atomic<const Fault*> next_fault{nullptr};
inline std::atomic<const Fault*> lasting[kDevices] = {};
inline thread_local int suspended = 0;

// Requests of this thread neither count nor fail.
struct Suspended {
  Suspended() { ++suspended; }
  ~Suspended() { --suspended; }
  Suspended(const Suspended&) = delete;
  Suspended& operator=(const Suspended&) = delete;
};

// The n-th request from now on fails, and no other; with −n, or of a device's memory, all that follow too.
// 0: none. Returns how many there were since the last call.
inline int64_t arm(Kind kind, int64_t n) {
  Plan& plan = plans[static_cast<int>(kind)];
  plan.lasts = n < 0 || kind == Kind::kDeviceMemory;
  plan.left = n < 0 ? -n : n;
  return plan.seen.exchange(0);
}

// Whether this request is the one.
inline bool fails(Kind kind) {
  if (suspended > 0) return false;
  Plan& plan = plans[static_cast<int>(kind)];
  ++plan.seen;
  int64_t left = plan.left.load(std::memory_order_relaxed);
  do {
    if (left <= 0) return false;
    if (left == 1 && plan.lasts) return true;
  } while (!plan.left.compare_exchange_weak(left, left - 1));
  return left == 1;
}

inline const Fault* lost(int device) { return lasting[device]; }

// What a call to a device ends with; null: nothing.
inline const Fault* of_call(int device) {
  if (const Fault* fault = lasting[device]) return fault;
  if (!fails(Kind::kDevice)) return nullptr;
  const Fault* fault = next_fault;
  if (fault && fault->lasts) lasting[device] = fault;
  return fault;
}

// Devices are as after a start of the process.
inline void restore() {
  for (int i = 0; i < 4; ++i) arm(static_cast<Kind>(i), 0);
  for (std::atomic<const Fault*>& fault : lasting) fault = nullptr;
}

// Blocks of operator new that are not deleted yet.
int64_t live_blocks();

}  // namespace attention_bias::faults
