// The thread of one device that runs its operations, one after the other in the order of their calls. It is
// among the backend's compute threads.
//
// Its own thread rather than libuv's pool, for two reasons: an operation of seconds would hold one of the
// four threads that files and DNS share; and node waits for pool work that has begun before it runs any
// cleanup hook, so that worker.terminate() and process.exit() would wait for whole operations.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "addon/operation.h"
#include "core/backend.h"

namespace attention_bias::addon {

class Dispatcher {
 public:
  // `done` is called on the dispatcher's thread after each operation that ran.
  Dispatcher(std::unique_ptr<Backend> backend, std::function<void(Operation*)> done);
  // Stops the running operation between tiles, forgets the queued ones, and joins.
  ~Dispatcher();
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  const Backend& backend() const { return *backend_; }

  void push(Operation* operation);
  // Takes an operation out of the queue; false where it has begun.
  bool remove(Operation* operation);

 private:
  void loop();

  std::unique_ptr<Backend> backend_;
  std::function<void(Operation*)> done_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation*> queue_;
  Operation* running_ = nullptr;
  bool stopping_ = false;
  std::thread thread_;  // last, so that it starts when the rest is there
};

}  // namespace attention_bias::addon
