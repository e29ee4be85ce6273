// A reference to a typed array keeps its memory only until JavaScript transfers the buffer: then the memory
// is another ArrayBuffer's, and goes with it, under a running kernel. Node-API can't hold the memory itself.
// V8 can, by a function that Node has exported since version 14, so it is used where it is found and fits:
// both symbols are weak, and the second has std::shared_ptr in its mangled name, which only a runtime with
// the standard library of this file exports (Electron's libc++ does not). A napi_value is what V8 calls
// `*local`, the `this` of its handles.
#include "addon/pin.h"

namespace v8 {

class BackingStore;
class Isolate;

class __attribute__((visibility("default"))) ArrayBuffer {
 public:
  __attribute__((weak)) std::shared_ptr<BackingStore> GetBackingStore();
  __attribute__((weak)) static void* New(Isolate* isolate, std::shared_ptr<BackingStore> backing_store);
};

}  // namespace v8

namespace attention_bias::addon {

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Waddress"  // weak: the address may be null
#endif

std::shared_ptr<void> pin_memory(napi_env env, napi_value buffer) {
  if (&v8::ArrayBuffer::GetBackingStore == nullptr || &v8::ArrayBuffer::New == nullptr) return nullptr;
  bool is_array_buffer = false;
  if (napi_is_arraybuffer(env, buffer, &is_array_buffer) != napi_ok || !is_array_buffer) return nullptr;
  return reinterpret_cast<v8::ArrayBuffer*>(buffer)->GetBackingStore();
}

}  // namespace attention_bias::addon
