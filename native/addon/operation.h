// One call of an operation on its way: read from JavaScript on its thread, run on another, finished on the
// first again.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "addon/arguments.h"
#include "addon/buffers.h"
#include "addon/node_api.h"
#include "core/backend.h"

namespace attention_bias::addon {

// The float32 tensors that an operation writes: the caller's own, or new ones.
class Outputs {
 public:
  explicit Outputs(std::shared_ptr<MemoryAccount> account) : account_(std::move(account)) {}

  // While arguments are read: the output is the optional tensor in the field of its name, else a new one.
  void declare(const char* name, Fields* arguments);
  // An output that can't be given.
  void declare(const char* name);

  // On any thread: where to write. ERR_DTYPE or ERR_SHAPE for a given one of another shape.
  float* take(const char* name, const Shape& shape, const char* letters);

  // ERR_VALUE where a given one shares memory with any other tensor.
  void require_apart(const Arguments& arguments) const;

  // JavaScript thread: { [name]: { buffer, shape } } of the new ones.
  Napi::Object to_js(Napi::Env env, Buffers* buffers);

 private:
  struct Output {
    std::string name;
    TensorView* given;
    Shape shape;
    std::shared_ptr<Storage> storage;
  };
  std::shared_ptr<MemoryAccount> account_;
  std::vector<Output> outputs_;
};

// What is left of an operation once its arguments are read: checks of values, outputs, and the work itself.
using Compute = std::function<void(Backend*, Outputs*, AbortFlag)>;
using ReadOperation = Compute (*)(Fields*, Outputs*);

Error aborted_error();

class Operation {
 public:
  // Reads the arguments. Throws Error, or what JavaScript throws in a getter.
  Operation(Napi::Env env, const char* name, ReadOperation read, Napi::Value arguments,
            const Buffers& buffers, std::shared_ptr<MemoryAccount> account);
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  Napi::Promise promise() const { return deferred_.Promise(); }

  // Any thread. Keeps what is thrown for finish().
  void run(Backend* backend);
  // Any thread: makes run() stop between tiles.
  void abort() { aborted_ = true; }

  // JavaScript thread: settles the promise.
  void finish(Napi::Env env, Buffers* buffers);
  // The same for one that never ran.
  void reject(Napi::Env env, const Error& error);

 private:
  Napi::Promise::Deferred deferred_;
  Arguments arguments_;
  Outputs outputs_;
  Compute compute_;
  std::atomic<bool> aborted_{false};
  std::optional<Error> error_;
};

}  // namespace attention_bias::addon
