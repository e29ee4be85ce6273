// The ArrayBuffers of one environment that show native Storage. JavaScript thread only.
//
// Who frees what: an ArrayBuffer over Storage holds one reference to it. release() drops that reference at
// once, after detaching the ArrayBuffer; if nobody calls it, the garbage collector's finalizer does. A buffer
// that the user moved (ArrayBuffer.prototype.transfer) is another ArrayBuffer on the same memory, so
// release() leaves it to the finalizer, which runs when the last of them is gone. Either way once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "addon/node_api.h"
#include "addon/storage.h"

namespace attention_bias::addon {

class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  // Runtimes limit the size of an external ArrayBuffer (Node 20: 4 GiB) or refuse them altogether; beyond
  // that an ordinary ArrayBuffer gets a copy. 0: always.
  void set_external_limit(int64_t bytes) { external_limit_ = bytes; }

  // A new zero-filled ArrayBuffer, over Storage where it can be external. ERR_MEMORY naming `what`.
  Napi::ArrayBuffer allocate(Napi::Env env, int64_t bytes, const std::string& what,
                             const std::shared_ptr<MemoryAccount>& account,
                             const std::shared_ptr<MemoryLimit>& limit);

  // An ArrayBuffer over the storage, which no other ArrayBuffer shows. ERR_MEMORY where JavaScript can't have
  // one.
  Napi::ArrayBuffer wrap(Napi::Env env, std::shared_ptr<Storage> storage);

  // Detaches a buffer of ours and drops its reference. Does nothing to any other, or one that is detached
  // already.
  void release(Napi::Env env, napi_value array_buffer);

  // The storage at the start of an ArrayBuffer's memory, or nullptr for memory of the user's own.
  std::shared_ptr<Storage> find(const void* data) const;

 private:
  struct Handle {
    std::shared_ptr<Buffers> buffers;
    std::shared_ptr<Storage> storage;  // empty after release()
  };
  static void finalize(napi_env env, void* data, void* hint);

  int64_t external_limit_ = INT32_MAX;
  std::unordered_map<const void*, Handle*> live_;
};

}  // namespace attention_bias::addon
