// A fixed team of threads for one caller at a time. Work is handed out item by item, so that a team whose
// threads are disturbed by others still ends together. Our own threads, not OpenMP's: they end with the pool,
// and the pool with the JavaScript environment that made it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace attention_bias::cpu {

// Which CPUs the threads of a round run on. A virtual machine's kernel can hold a CPU that has idled for some
// milliseconds for one that the host took away, and then wakes a thread on the CPU of the one that woke it:
// they share it until the kernel balances its load, and work that takes 3.5 ms on two CPUs takes 7. So a
// thread that wakes on a CPU that another of its team runs on moves to one that none does.
class Cpus {
 public:
  explicit Cpus(int threads) : cpus_(static_cast<size_t>(threads)) {}

  // Where thread 0 is: the one that wakes the others, and stays. The others' places of the last round are
  // forgotten.
  void begin();
  // Called by another as it begins.
  void enter(int thread);

 private:
  std::vector<std::atomic<int>> cpus_;  // by thread; −1: not known
};

class ThreadPool {
 public:
  // `size` threads, the caller of run() among them. ERR_MEMORY where the system gives none.
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // body(item, worker) for each item in [0, count), worker in [0, size()). Returns when all are done; the
  // first exception stops the handing out and is thrown again here.
  void run(int64_t count, const std::function<void(int64_t item, int worker)>& body);

 private:
  void work(int worker);
  void serve(int worker);
  void stop();

  Cpus cpus_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  uint64_t round_ = 0;  // counts calls of run()
  int busy_ = 0;        // threads still in this round
  bool stopping_ = false;
  const std::function<void(int64_t, int)>* body_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
};

}  // namespace attention_bias::cpu
