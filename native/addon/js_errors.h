// Errors of the native code as JavaScript's, and JavaScript's values as words for a message.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "addon/node_api.h"
#include "core/errors.h"

namespace attention_bias::addon {

// An Error with a `code` of lib/errors.ts; lib/ makes it an AttentionBiasError. These take no memory of
// C++'s, so that they serve where there is none.
Napi::Error to_js(Napi::Env env, ErrorCode code, const char* message);
// The same of an exception of any kind.
Napi::Error to_js(Napi::Env env, const std::exception& exception);

// What a message says was received: 0.5, "text", [2, -1], a Float64Array, null.
std::string describe(Napi::Value value);

// Runs a function of the addon. C++ exceptions leave it as JavaScript's.
template <class F>
auto guarded(Napi::Env env, F&& f) -> decltype(f()) {
  try {
    return f();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& exception) {
    throw to_js(env, exception);
  }
}

}  // namespace attention_bias::addon
