// The JavaScript class DeviceBuffer: a block of a device's memory, which JavaScript can't read, as tensors
// hold it. JavaScript thread only. dispose() lets go of the memory, else the garbage collector does.
#pragma once

#include <cstdint>
#include <memory>

#include "addon/node_api.h"
#include "addon/storage.h"

namespace attention_bias::addon {

class DeviceBuffer : public Napi::ObjectWrap<DeviceBuffer> {
 public:
  static Napi::Function define(Napi::Env env);
  static Napi::Object create(Napi::Env env, std::shared_ptr<Storage> storage);
  // The buffer that a value is; nullptr for any other value.
  static DeviceBuffer* from(Napi::Env env, Napi::Value value);

  // Only by create().
  explicit DeviceBuffer(const Napi::CallbackInfo& info);
  ~DeviceBuffer() override;

  // Null once disposed.
  const std::shared_ptr<Storage>& storage() const { return storage_; }

 private:
  void dispose(const Napi::CallbackInfo& info);
  void let_go(Napi::Env env);

  std::shared_ptr<Storage> storage_;
};

}  // namespace attention_bias::addon
