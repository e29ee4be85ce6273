#include "addon/buffers.h"

#include <cstring>
#include <string>
#include <utility>

#include "core/errors.h"

namespace attention_bias::addon {

namespace {

// By JavaScript's constructor, whose failure is an exception; napi_create_arraybuffer's ends the process.
Napi::ArrayBuffer ordinary_buffer(Napi::Env env, size_t bytes, const std::string& what) {
  try {
    const Napi::Function constructor = env.Global().Get("ArrayBuffer").As<Napi::Function>();
    return constructor.New({Napi::Number::New(env, static_cast<double>(bytes))}).As<Napi::ArrayBuffer>();
  } catch (const Napi::Error&) {
    throw expected(ErrorCode::kMemory, std::to_string(bytes) + " bytes of memory", what,
                   "none from the JavaScript engine");
  }
}

}  // namespace

void Buffers::finalize(napi_env, void* data, void* hint) {
  const std::unique_ptr<Handle> handle(static_cast<Handle*>(hint));
  if (!handle->buffers) return;
  // After release() the memory may already belong to another handle.
  auto& live = handle->buffers->live_;
  const auto entry = live.find(data);
  if (entry != live.end() && entry->second == handle.get()) live.erase(entry);
}

Napi::ArrayBuffer Buffers::allocate(Napi::Env env, int64_t bytes, const std::string& what,
                                    const std::shared_ptr<MemoryAccount>& account,
                                    const std::shared_ptr<MemoryLimit>& limit) {
  // Beyond what can be external the engine has the memory, and nobody here sees it go: at least it is asked
  // for.
  if (bytes > external_limit_ && limit) Counted(limit.get(), bytes, what.c_str());
  if (bytes > external_limit_) return ordinary_buffer(env, static_cast<size_t>(bytes), what);
  return wrap(env, Storage::allocate(bytes, Storage::Contents::kZero, what, account, limit));
}

Napi::ArrayBuffer Buffers::wrap(Napi::Env env, std::shared_ptr<Storage> storage) {
  void* const data = storage->data();
  const size_t bytes = storage->bytes();
  if (static_cast<int64_t>(bytes) <= external_limit_) {
    auto handle = std::make_unique<Handle>(Handle{shared_from_this(), storage});
    napi_value buffer;
    const napi_status status =
        napi_create_external_arraybuffer(env, data, bytes, finalize, handle.get(), &buffer);
    if (status == napi_ok) {
      live_[data] = handle.release();
      return Napi::ArrayBuffer(env, buffer);
    }
    if (status != napi_no_external_buffers_allowed) {
      // The finalizer may still be called, or not. The memory goes now; the empty handle waits for it.
      handle->storage.reset();
      handle->buffers.reset();
      handle.release();
      throw Napi::Error::New(env);
    }
    external_limit_ = 0;
  }
  Napi::ArrayBuffer copy = ordinary_buffer(env, bytes, "a result");
  std::memcpy(copy.Data(), data, bytes);
  return copy;
}

void Buffers::release(Napi::Env env, napi_value array_buffer) {
  bool detached = true;
  if (napi_is_detached_arraybuffer(env, array_buffer, &detached) != napi_ok || detached) return;
  void* data = nullptr;
  if (napi_get_arraybuffer_info(env, array_buffer, &data, nullptr) != napi_ok) return;
  const auto entry = live_.find(data);
  if (entry == live_.end() || napi_detach_arraybuffer(env, array_buffer) != napi_ok) return;
  Handle* handle = entry->second;
  live_.erase(entry);
  handle->storage.reset();
}

std::shared_ptr<Storage> Buffers::find(const void* data) const {
  const auto entry = live_.find(data);
  return entry == live_.end() ? nullptr : entry->second->storage;
}

}  // namespace attention_bias::addon
