// The addon's state in one environment: node's main thread, or one worker_thread. No state is shared between
// them.
#pragma once

#include <memory>
#include <unordered_set>

#include "addon/buffers.h"
#include "addon/node_api.h"
#include "addon/storage.h"

namespace attention_bias::addon {

class Device;
class Operation;

class Environment : public Napi::Addon<Environment> {
 public:
  Environment(Napi::Env env, Napi::Object exports);

  // The constructor of DeviceBuffer.
  Napi::Function device_buffer() const { return device_buffer_.Value(); }
  // Whether JavaScript can resize an ArrayBuffer, whatever its own properties say.
  bool is_resizable(napi_value buffer) const;
  Buffers& buffers() { return *buffers_; }
  const std::shared_ptr<MemoryAccount>& account() const { return account_; }

  // Devices with threads, which end with the environment at the latest.
  void add(Device* device) { devices_.insert(device); }
  void remove(Device* device) { devices_.erase(device); }

  // An operation is under way, or has been settled: the event loop goes on while any is.
  void operation_started();
  void operation_settled();
  // On any thread of a device: has the device finish the operation on the JavaScript thread. Takes no memory
  // of C++'s: a device's thread has nobody to tell of a failure.
  void post_finished(Operation* operation) noexcept;

 private:
  Napi::Value info(const Napi::CallbackInfo& info);
  Napi::Value cuda(const Napi::CallbackInfo& info);
  Napi::Value memory(const Napi::CallbackInfo& info);
  Napi::Value check_tensor(const Napi::CallbackInfo& info);
  void release(const Napi::CallbackInfo& info);
  void set_external_limit(const Napi::CallbackInfo& info);
  Napi::Value reference_attention(const Napi::CallbackInfo& info);
  Napi::Value reference_backward(const Napi::CallbackInfo& info);
  Napi::Value reference_bias(const Napi::CallbackInfo& info);
  Napi::Value reference_deformable(const Napi::CallbackInfo& info);
  Napi::Value reference_multihead(const Napi::CallbackInfo& info);
  Napi::Value measure_peaks(const Napi::CallbackInfo& info);

  static void teardown(void* environment);
  static void on_finished(napi_env env, napi_value, void* environment, void* operation);

  napi_env env_;
  std::shared_ptr<MemoryAccount> account_ = std::make_shared<MemoryAccount>();
  std::shared_ptr<Buffers> buffers_ = std::make_shared<Buffers>();
  std::unordered_set<Device*> devices_;
  Napi::FunctionReference device_buffer_;
  Napi::FunctionReference resizable_;  // ArrayBuffer.prototype's getter; empty where the engine has none
  napi_threadsafe_function finished_ = nullptr;
  int64_t operations_ = 0;
};

}  // namespace attention_bias::addon
