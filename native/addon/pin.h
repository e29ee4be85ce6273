// Keeps the memory of a user's ArrayBuffer while an operation reads it, whatever becomes of the ArrayBuffer.
#pragma once

#include <memory>

#include "addon/node_api.h"

namespace attention_bias::addon {

// A reference to the memory; nullptr where the runtime offers none, and for a SharedArrayBuffer, which can't
// be detached.
std::shared_ptr<void> pin_memory(napi_env env, napi_value buffer);

}  // namespace attention_bias::addon
