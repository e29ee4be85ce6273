#include "addon/dispatcher.h"

#include <algorithm>
#include <utility>

namespace attention_bias::addon {

Dispatcher::Dispatcher(std::unique_ptr<Backend> backend, std::function<void(Operation*)> done)
    : backend_(std::move(backend)), done_(std::move(done)), thread_([this] { loop(); }) {}

Dispatcher::~Dispatcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    queue_.clear();
    if (running_) running_->abort();
  }
  changed_.notify_one();
  thread_.join();
}

void Dispatcher::push(Operation* operation) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(operation);
  }
  changed_.notify_one();
}

bool Dispatcher::remove(Operation* operation) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find(queue_.begin(), queue_.end(), operation);
  if (found == queue_.end()) return false;
  queue_.erase(found);
  return true;
}

void Dispatcher::loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    running_ = queue_.front();
    queue_.pop_front();
    lock.unlock();
    running_->run(backend_.get());
    lock.lock();
    Operation* const finished = running_;
    running_ = nullptr;
    lock.unlock();
    done_(finished);
    lock.lock();
  }
}

}  // namespace attention_bias::addon
