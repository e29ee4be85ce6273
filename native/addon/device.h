// The JavaScript class Device: a backend and the operations under way on it. JavaScript thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>

#include "addon/dispatcher.h"
#include "addon/node_api.h"

namespace attention_bias::addon {

class Environment;

class Device : public Napi::ObjectWrap<Device> {
 public:
  static Napi::Function define(Napi::Env env);

  // new Device({ backend: 'cpu', threads, isa?, memoryLimit? }): ERR_VALUE for an instruction set that isn't
  // there. new Device({ backend: 'cuda', ordinal, memoryLimit? }): prepare() tells whether it is there.
  explicit Device(const Napi::CallbackInfo& info);
  ~Device() override;

  // An operation has run. False where it is none of this device's.
  bool finish(const Operation* operation);
  // The environment goes: stops all threads, drops all operations without settling their promises.
  void teardown();

 private:
  // prepare(id, {}): Promise, ERR_DEVICE where the device can't be used. Before all else.
  Napi::Value prepare(const Napi::CallbackInfo& info);
  Napi::Value self_test(const Napi::CallbackInfo& info);
  // attention(id, arguments): Promise<{ [output]: { buffer, shape, dtype } }>, and so on. `id`, a number of
  // the caller's, is for abort().
  Napi::Value attention(const Napi::CallbackInfo& info);
  Napi::Value attention_backward(const Napi::CallbackInfo& info);
  Napi::Value bias(const Napi::CallbackInfo& info);
  Napi::Value linear(const Napi::CallbackInfo& info);
  Napi::Value multihead(const Napi::CallbackInfo& info);
  Napi::Value router(const Napi::CallbackInfo& info);
  Napi::Value router_backward(const Napi::CallbackInfo& info);
  Napi::Value project(const Napi::CallbackInfo& info);
  Napi::Value deformable(const Napi::CallbackInfo& info);
  Napi::Value deformable_backward(const Napi::CallbackInfo& info);
  Napi::Value copy(const Napi::CallbackInfo& info);
  // abort(id): a queued operation rejects at once, a running one between tiles, one that ended is left alone.
  void abort(const Napi::CallbackInfo& info);
  // Running operations finish; queued ones reject, and so do further calls. ERR_DEVICE.
  void close(const Napi::CallbackInfo& info);
  Napi::Value info(const Napi::CallbackInfo& info);
  // allocate(shape, { dtype?, memory? }): a zero-filled ArrayBuffer or DeviceBuffer.
  Napi::Value allocate(const Napi::CallbackInfo& info);
  // memory(): what MemoryUse says, or null where the device has no memory of its own. trim(): see
  // MemorySource.
  Napi::Value memory(const Napi::CallbackInfo& info);
  void trim(const Napi::CallbackInfo& info);

  using Operations = std::unordered_map<int64_t, std::unique_ptr<Operation>>;
  Napi::Value start(const Napi::CallbackInfo& info, const char* name, ReadOperation read);
  // Takes an operation off the books.
  std::unique_ptr<Operation> remove(Operations::iterator entry);
  Maker maker() const;

  Environment* environment_;
  std::shared_ptr<MemoryLimit> limit_;      // of the host's memory; null: none
  std::unique_ptr<Dispatcher> dispatcher_;  // none: closed
  bool closed_ = false;
  Operations operations_;
};

}  // namespace attention_bias::addon
