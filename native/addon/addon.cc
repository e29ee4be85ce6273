// The module: what lib/native.ts loads (its NativeBinding describes these functions to TypeScript).
#include <algorithm>
#include <utility>
#include <vector>

#include "addon/calls.h"
#include "addon/device.h"
#include "addon/device_buffer.h"
#include "addon/environment.h"
#include "addon/js_errors.h"
#include "core/reference.h"
#include "cpu/backend.h"
#include "cuda/cuda.h"
#if defined(AB_EMULATED)
#include "faults_binding.h"
#endif

namespace attention_bias::addon {

namespace {

Napi::Float64Array doubles(Napi::Env env, int64_t count) {
  return Napi::Float64Array::New(env, static_cast<size_t>(count));
}

void check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

}  // namespace

Environment::Environment(Napi::Env env, Napi::Object exports) : env_(env) {
  DefineAddon(
      exports,
      {InstanceMethod<&Environment::info>("info"), InstanceMethod<&Environment::memory>("memory"),
       InstanceMethod<&Environment::cuda>("cuda"), InstanceMethod<&Environment::check_tensor>("checkTensor"),
       InstanceMethod<&Environment::release>("release"),
       InstanceMethod<&Environment::set_external_limit>("setExternalLimit"),
       InstanceMethod<&Environment::reference_attention>("referenceAttention"),
       InstanceMethod<&Environment::reference_backward>("referenceBackward"),
       InstanceMethod<&Environment::reference_bias>("referenceBias"),
       InstanceMethod<&Environment::reference_deformable>("referenceDeformable"),
       InstanceMethod<&Environment::reference_multihead>("referenceMultihead"),
       InstanceMethod<&Environment::measure_peaks>("measurePeaks")});
#if defined(AB_EMULATED)
  faults::define(env, exports);
#endif
  exports.Set("Device", Device::define(env));
  device_buffer_ = Napi::Persistent(DeviceBuffer::define(env));
  const Napi::Object prototype =
      env.Global().Get("ArrayBuffer").As<Napi::Object>().Get("prototype").As<Napi::Object>();
  const Napi::Value getter = env.Global()
                                 .Get("Object")
                                 .As<Napi::Object>()
                                 .Get("getOwnPropertyDescriptor")
                                 .As<Napi::Function>()
                                 .Call({prototype, Napi::String::New(env, "resizable")});
  if (getter.IsObject())
    resizable_ = Napi::Persistent(getter.As<Napi::Object>().Get("get").As<Napi::Function>());
  const Napi::String name = Napi::String::New(env, "attention-bias");
  check(env, napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this,
                                             on_finished, &finished_));
  check(env, napi_unref_threadsafe_function(env, finished_));  // only operations hold the event loop
  // Hooks run last first: threads end before the function that they post to.
  check(env, napi_add_env_cleanup_hook(env, teardown, this));
}

bool Environment::is_resizable(napi_value buffer) const {
  bool is_array_buffer = false;  // a SharedArrayBuffer only grows
  if (resizable_.IsEmpty() || napi_is_arraybuffer(env_, buffer, &is_array_buffer) != napi_ok ||
      !is_array_buffer) {
    return false;
  }
  return resizable_.Call(buffer, std::vector<napi_value>{}).ToBoolean().Value();
}

void Environment::teardown(void* environment) {
  Environment* self = static_cast<Environment*>(environment);
  for (Device* device : self->devices_) device->teardown();
  self->devices_.clear();
}

void Environment::operation_started() {
  if (operations_++ == 0) napi_ref_threadsafe_function(env_, finished_);
}

void Environment::operation_settled() {
  if (--operations_ == 0) napi_unref_threadsafe_function(env_, finished_);
}

void Environment::post_finished(Operation* operation) noexcept {
  napi_call_threadsafe_function(finished_, operation, napi_tsfn_nonblocking);
}

void Environment::on_finished(napi_env env, napi_value, void* environment, void* operation) {
  if (env == nullptr) return;  // the environment is gone, and teardown() has seen to the operation
  Environment* self = static_cast<Environment*>(environment);
  try {
    // Looked for, not looked into: an operation is only its device's to drop, and that is when it is finished
    // here.
    for (Device* device : self->devices_) {
      if (device->finish(static_cast<const Operation*>(operation))) return;
    }
  } catch (const Napi::Error&) {
    // The environment is ending: no JavaScript runs any more, and nobody waits for the promise.
  }
}

Napi::Value Environment::info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Napi::Object result = Napi::Object::New(env);
    Napi::Array isas = Napi::Array::New(env);
    for (const std::string& isa : cpu::supported_isas()) isas.Set(isas.Length(), isa);
    result.Set("processor", cpu::processor_name());
    result.Set("isas", isas);
#if defined(__clang__)
    result.Set("compiler", "Clang " __clang_version__);
#else
    result.Set("compiler", "GCC " __VERSION__);
#endif
    return result;
  });
}

Napi::Value Environment::cuda(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const bool run_tests = info[0].IsBoolean() && info[0].As<Napi::Boolean>().Value();
    const cuda::Status status = cuda::status();
    Napi::Object result = Napi::Object::New(env);
    result.Set("built", status.built);
    result.Set("toolkit", status.toolkit);
    result.Set("architectures", status.architectures);
    result.Set("reason", status.reason);
    result.Set("driver", status.driver);
    Napi::Array devices = Napi::Array::New(env);
    for (const cuda::DeviceInfo& device : status.devices) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("name", device.name);
      entry.Set("computeCapability", std::to_string(device.major) + "." + std::to_string(device.minor));
      entry.Set("multiprocessors", device.multiprocessors);
      entry.Set("memoryBytes", static_cast<double>(device.memory_bytes));
      entry.Set("selfTest",
                run_tests ? cuda::compare_with_host(cuda::make_backend(device.ordinal).get()) : "");
      entry.Set("ordinal", device.ordinal);
      devices.Set(devices.Length(), entry);
    }
    result.Set("devices", devices);
    return result;
  });
}

Napi::Value Environment::memory(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("bytes", static_cast<double>(account_->bytes));
  result.Set("blocks", static_cast<double>(account_->blocks));
  return result;
}

Napi::Value Environment::check_tensor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    const TensorView* view = arguments.add(info[0], "from");
    arguments.resolve(env, *buffers_);
    return Napi::String::New(env, dtype_name(view->dtype));
  });
}

void Environment::release(const Napi::CallbackInfo& info) { buffers_->release(info.Env(), info[0]); }

void Environment::set_external_limit(const Napi::CallbackInfo& info) {
  buffers_->set_external_limit(info[0].As<Napi::Number>().Int64Value());
}

Napi::Value Environment::reference_attention(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    Fields fields(&arguments, info[0], "", "the arguments of referenceAttention", ErrorCode::kValue);
    const AttentionCall call(&fields);
    fields.finish();
    arguments.resolve(env, *buffers_);
    std::unique_ptr<Program> program;
    const AttentionProblem problem = call.problem(&program);
    const Extent& e = problem.extent;
    const int64_t rows = element_count({e.batch, e.heads, e.queries}, "lse");
    Napi::Float64Array out = doubles(env, element_count({rows, problem.value_dim}, "out")),
                       lse = doubles(env, rows);
    attention_bias::reference_attention(problem, out.Data(), lse.Data());
    Napi::Object result = Napi::Object::New(env);
    result.Set("out", out);
    result.Set("lse", lse);
    return result;
  });
}

Napi::Value Environment::reference_backward(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    Fields fields(&arguments, info[0], "", "the arguments of referenceBackward", ErrorCode::kValue);
    const BackwardCall call(&fields);
    fields.finish();
    arguments.resolve(env, *buffers_);
    std::unique_ptr<Program> program;
    const ReferenceGradients gradients = attention_bias::reference_backward(call.problem(&program));
    Napi::Object result = Napi::Object::New(env);
    const auto set = [&](const std::string& name, const std::vector<double>& values) {
      Napi::Float64Array array = doubles(env, static_cast<int64_t>(values.size()));
      std::copy(values.begin(), values.end(), array.Data());
      result.Set(name, array);
    };
    set("query", gradients.query);
    set("key", gradients.key);
    set("value", gradients.value);
    for (size_t i = 0; i < gradients.terms.size(); ++i) {
      set(program->learnables()[i].tensor.name, gradients.terms[i]);
    }
    return result;
  });
}

Napi::Value Environment::reference_bias(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    Fields fields(&arguments, info[0], "", "the arguments of referenceBias", ErrorCode::kValue);
    const BiasCall call(&fields);
    fields.finish();
    arguments.resolve(env, *buffers_);
    const std::unique_ptr<Program> program = call.program();
    Napi::Float64Array out = doubles(env, element_count(bias_shape(*program), "out"));
    attention_bias::reference_bias(*program, out.Data());
    return out;
  });
}

Napi::Value Environment::reference_deformable(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    Fields fields(&arguments, info[0], "", "the arguments of referenceDeformable", ErrorCode::kValue);
    const DeformableCall call(&fields);
    const TensorView* grad_out = fields.tensor("gradOut");
    fields.finish();
    arguments.resolve(env, *buffers_);
    const DeformableBackwardProblem problem = deformable_backward_problem(call.problem(), *grad_out);
    const DeformableProblem& forward = problem.forward;
    Napi::Float64Array out = doubles(env, forward.out_count()), value = doubles(env, forward.value_count()),
                       locations = doubles(env, 2 * forward.samples()),
                       weights = doubles(env, forward.samples());
    attention_bias::reference_deformable(forward, out.Data());
    reference_deformable_backward(problem, value.Data(), locations.Data(), weights.Data());
    Napi::Object result = Napi::Object::New(env);
    result.Set("out", out);
    result.Set("value", value);
    result.Set("samplingLocations", locations);
    result.Set("attentionWeights", weights);
    return result;
  });
}

Napi::Value Environment::reference_multihead(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    Arguments arguments;
    Fields fields(&arguments, info[0], "", "the arguments of referenceMultihead", ErrorCode::kValue);
    const MultiheadCall call(&fields);
    fields.finish();
    arguments.resolve(env, *buffers_);
    std::unique_ptr<Program> program;
    const MultiheadProblem problem = call.problem(&program);
    const Extent& e = problem.extent;
    Napi::Float64Array out = doubles(env, element_count({e.batch, e.queries, problem.features}, "out"));
    attention_bias::reference_multihead(problem, out.Data());
    return out;
  });
}

Napi::Value Environment::measure_peaks(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsNumber() || !info[1].IsString()) {
      throw expected(ErrorCode::kValue, "a number and a string", "threads and isa", "something else");
    }
    const cpu::Peaks peaks =
        cpu::measure_peaks(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::String>().Utf8Value());
    Napi::Object result = Napi::Object::New(env);
    result.Set("fmaGflops", peaks.fma_gflops);
    result.Set("bf16Gflops", peaks.bf16_gflops);
    result.Set("fillGBs", peaks.fill_gb_s);
    result.Set("readGBs", peaks.read_gb_s);
    return result;
  });
}

}  // namespace attention_bias::addon

using attention_bias::addon::Environment;
NODE_API_ADDON(Environment)
