#include "cpu/thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <string>
#include <system_error>

#include "core/errors.h"

namespace attention_bias::cpu {

#if defined(__linux__)

void Cpus::begin() {
  for (std::atomic<int>& cpu : cpus_) cpu = -1;
  cpus_[0] = sched_getcpu();
}

void Cpus::enter(int thread) {
  const int here = sched_getcpu();
  cpus_[static_cast<size_t>(thread)] = here;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;  // more CPUs than a set holds
  cpu_set_t left = allowed;
  bool taken = false;
  for (int other = 0; other < static_cast<int>(cpus_.size()); ++other) {
    const int cpu = cpus_[static_cast<size_t>(other)];
    if (other == thread || cpu < 0) continue;
    // Of two that come at the same time, the later in the team moves.
    taken |= cpu == here && other < thread;
    if (cpu < CPU_SETSIZE) CPU_CLR(cpu, &left);
  }
  if (!taken || CPU_COUNT(&left) == 0) return;
  // It moves at once where it may no longer stay; that it may be anywhere again does not move it back.
  if (sched_setaffinity(0, sizeof left, &left) != 0) return;
  sched_setaffinity(0, sizeof allowed, &allowed);
  cpus_[static_cast<size_t>(thread)] = sched_getcpu();
}

#else

void Cpus::begin() {}
void Cpus::enter(int) {}

#endif

ThreadPool::ThreadPool(int size) : cpus_(size) {
  try {
    threads_.reserve(static_cast<size_t>(size - 1));
    for (int worker = 1; worker < size; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
  } catch (const std::system_error& e) {
    const std::string started = std::to_string(threads_.size() + 1);
    stop();
    throw Error(ErrorCode::kMemory,
                "could not start " + std::to_string(size) + " threads, only " + started + ": " + e.what());
  } catch (...) {  // no memory for one: those that run would be left behind
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t, int)>& body) {
  if (count <= 1 || threads_.empty()) {
    for (int64_t item = 0; item < count; ++item) body(item, 0);
    return;
  }
  cpus_.begin();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    body_ = &body;
    count_ = count;
    next_ = 0;
    error_ = nullptr;
    busy_ = static_cast<int>(threads_.size());
    ++round_;
  }
  wake_.notify_all();
  work(0);
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, [this] { return busy_ == 0; });
  if (error_) std::rethrow_exception(error_);
}

void ThreadPool::work(int worker) {
  try {
    for (int64_t item = next_++; item < count_; item = next_++) (*body_)(item, worker);
  } catch (...) {
    next_ = count_;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::serve(int worker) {
  uint64_t seen = 0;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
    }
    cpus_.enter(worker);
    work(worker);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--busy_ == 0) done_.notify_one();
  }
}

}  // namespace attention_bias::cpu
