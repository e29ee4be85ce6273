#include "addon/device_buffer.h"

#include <utility>

#include "addon/environment.h"

namespace attention_bias::addon {

Napi::Function DeviceBuffer::define(Napi::Env env) {
  return DefineClass(env, "DeviceBuffer", {InstanceMethod<&DeviceBuffer::dispose>("dispose")});
}

Napi::Object DeviceBuffer::create(Napi::Env env, std::shared_ptr<Storage> storage) {
  const Napi::Function constructor = env.GetInstanceData<Environment>()->device_buffer();
  return constructor.New({Napi::External<std::shared_ptr<Storage>>::New(env, &storage)});
}

DeviceBuffer* DeviceBuffer::from(Napi::Env env, Napi::Value value) {
  if (!value.IsObject()) return nullptr;
  const Napi::Object object = value.As<Napi::Object>();
  if (!object.InstanceOf(env.GetInstanceData<Environment>()->device_buffer())) return nullptr;
  // An object that only has the prototype wraps nothing.
  void* buffer = nullptr;
  return napi_unwrap(env, object, &buffer) == napi_ok ? static_cast<DeviceBuffer*>(buffer) : nullptr;
}

DeviceBuffer::DeviceBuffer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceBuffer>(info) {
  if (!info[0].IsExternal()) throw Napi::TypeError::New(info.Env(), "DeviceBuffer is made by a device");
  storage_ = std::move(*info[0].As<Napi::External<std::shared_ptr<Storage>>>().Data());
  // The collector knows nothing of the device's memory: it is told, so that lost tensors don't pile up.
  Napi::MemoryManagement::AdjustExternalMemory(info.Env(), static_cast<int64_t>(storage_->bytes()));
}

DeviceBuffer::~DeviceBuffer() { let_go(Env()); }

void DeviceBuffer::dispose(const Napi::CallbackInfo& info) { let_go(info.Env()); }

void DeviceBuffer::let_go(Napi::Env env) {
  if (!storage_) return;
  Napi::MemoryManagement::AdjustExternalMemory(env, -static_cast<int64_t>(storage_->bytes()));
  storage_.reset();
}

}  // namespace attention_bias::addon
