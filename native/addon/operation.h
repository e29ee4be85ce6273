// One call of an operation on its way: read from JavaScript on its thread, run on another, finished on the
// first again.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "addon/arguments.h"
#include "addon/buffers.h"
#include "addon/node_api.h"
#include "core/backend.h"

namespace attention_bias::addon {

// Where an operation makes tensors.
struct Maker {
  std::shared_ptr<MemoryAccount> account;
  std::shared_ptr<MemorySource> source;  // of the device's memory; null: the host's is all there is
  std::shared_ptr<MemoryLimit> limit;    // of the host's; null: none

  std::shared_ptr<Storage> make(Place place, int64_t bytes, Storage::Contents contents,
                                const std::string& what) const;
};

// The field `memory`: "host", "pinned" or "device"; otherwise what is given.
Place read_place(Fields* arguments, Place otherwise);

// The tensors that an operation writes: the caller's own, or new ones.
class Outputs {
 public:
  explicit Outputs(Maker maker) : maker_(std::move(maker)) {}

  // While arguments are read. New outputs are made where the field `memory` says, and without it where
  // `main`, if any, is.
  void declare_place(Fields* arguments, const TensorView* main);
  // The output is the optional tensor in the field of its name, else a new one.
  void declare(const char* name, Fields* arguments);
  // An output that can't be given.
  void declare(const char* name);

  // On any thread: where to write one that is known only now.
  float* make(const std::string& name, const Shape& shape);

  // On any thread: where to write. ERR_DTYPE or ERR_SHAPE for a given one of another dtype or shape.
  void* take(const char* name, const Shape& shape, const char* letters, DType dtype);
  float* take(const char* name, const Shape& shape, const char* letters) {
    return static_cast<float*>(take(name, shape, letters, DType::kFloat32));
  }

  // ERR_VALUE where a given one shares memory with any other tensor.
  void require_apart(const Arguments& arguments) const;

  // JavaScript thread: { [name]: { buffer, shape, dtype } } of the new ones.
  Napi::Object to_js(Napi::Env env, Buffers* buffers);

 private:
  struct Output {
    std::string name;
    TensorView* given;
    Shape shape;
    DType dtype;
    std::shared_ptr<Storage> storage;
  };
  Maker maker_;
  Place place_ = Place::kHost;
  std::vector<Output> outputs_;
};

// Storage as what JavaScript has of it: an ArrayBuffer, or a DeviceBuffer.
Napi::Value buffer_to_js(Napi::Env env, Buffers* buffers, std::shared_ptr<Storage> storage, Place place);

// What is left of an operation once its arguments are read: checks of values, outputs, and the work itself.
using Compute = std::function<void(Backend*, Outputs*, AbortFlag)>;
using ReadOperation = Compute (*)(Fields*, Outputs*);

constexpr const char* kAborted = "the operation was aborted";

class Operation {
 public:
  // Reads the arguments. Throws Error, or what JavaScript throws in a getter.
  Operation(Napi::Env env, const char* name, ReadOperation read, Napi::Value arguments,
            const Buffers& buffers, Maker maker);
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  Napi::Promise promise() const { return deferred_->Promise(); }

  // Any thread. Keeps what is thrown for finish().
  void run(Backend* backend) noexcept;
  // Any thread: makes run() stop between tiles.
  void abort() { aborted_ = true; }

  // JavaScript thread: settles the promise.
  void finish(Napi::Env env, Buffers* buffers);
  // The same for one that never ran. Takes no memory of C++'s.
  void reject(Napi::Env env, ErrorCode code, const char* message);

 private:
  Arguments arguments_;
  Outputs outputs_;
  Compute compute_;
  std::atomic<bool> aborted_{false};
  std::exception_ptr thrown_;
  std::optional<Napi::Promise::Deferred>
      deferred_;  // once the arguments are read: one that never settles stays
};

}  // namespace attention_bias::addon
