// The emulated addon's faults (faults.h) for JavaScript: faults(kind, n, name?) is arm(); faults() is
// restore().
#include "faults_binding.h"

#include <cstring>

#include "faults.h"

namespace attention_bias::faults {

namespace {

napi_value call(napi_env env, napi_callback_info info) {
  const Suspended own;
  size_t count = 3;
  napi_value arguments[3], result;
  napi_get_cb_info(env, info, &count, arguments, nullptr, nullptr);
  char text[64] = "";
  int64_t n = 0, seen = 0;
  if (count == 0) restore();
  if (count > 1 && napi_get_value_int64(env, arguments[1], &n) == napi_ok) {
    if (count > 2) {
      napi_get_value_string_utf8(env, arguments[2], text, sizeof text, nullptr);
      next_fault = nullptr;
      for (const Fault& fault : kFaults) {
        if (std::strcmp(fault.name, text) == 0) next_fault = &fault;
      }
      if (!next_fault) napi_throw_error(env, nullptr, "no fault of that name");
    }
    napi_get_value_string_utf8(env, arguments[0], text, sizeof text, nullptr);
    for (int i = 0; i < 4; ++i) {
      if (std::strcmp(kKinds[i], text) == 0) seen = arm(static_cast<Kind>(i), n);
    }
  }
  napi_create_int64(env, seen, &result);
  return result;
}

}  // namespace

void define(napi_env env, napi_value exports) {
  napi_value function;
  napi_create_function(env, "faults", NAPI_AUTO_LENGTH, call, nullptr, &function);
  napi_set_named_property(env, exports, "faults", function);
}

}  // namespace attention_bias::faults
