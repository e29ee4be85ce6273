// What the emulated addon exports beside the others: faults (faults_binding.cc).
#pragma once

#include <node_api.h>

namespace attention_bias::faults {

void define(napi_env env, napi_value exports);

}  // namespace attention_bias::faults
