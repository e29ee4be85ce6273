#include "addon/operation.h"

#include <utility>

#include "addon/js_errors.h"

namespace attention_bias::addon {

Error aborted_error() { return Error(ErrorCode::kAborted, "the operation was aborted"); }

void Outputs::declare(const char* name, Fields* arguments) {
  outputs_.push_back({name, arguments->optional_tensor(name), {}, nullptr});
}

void Outputs::declare(const char* name) { outputs_.push_back({name, nullptr, {}, nullptr}); }

float* Outputs::take(const char* name, const Shape& shape, const char* letters) {
  for (Output& output : outputs_) {
    if (output.name != name) continue;
    if (output.given) {
      std::vector<Dim> dims;
      for (const int64_t size : shape) dims.push_back(dim(size));
      require(*output.given, DType::kFloat32, dims, letters);
      return static_cast<float*>(output.given->data);
    }
    const int64_t bytes = element_count(shape, name) * static_cast<int64_t>(sizeof(float));
    output.shape = shape;
    output.storage = Storage::allocate(bytes, Storage::Contents::kUndefined, name, account_);
    return static_cast<float*>(output.storage->data());
  }
  throw Error(ErrorCode::kDevice, std::string("no output ") + name);
}

void Outputs::require_apart(const Arguments& arguments) const {
  for (const Output& output : outputs_) {
    if (output.given) arguments.require_apart(*output.given);
  }
}

Napi::Object Outputs::to_js(Napi::Env env, Buffers* buffers) {
  Napi::Object result = Napi::Object::New(env);
  for (Output& output : outputs_) {
    if (!output.storage) continue;
    Napi::Array shape = Napi::Array::New(env, output.shape.size());
    for (size_t i = 0; i < output.shape.size(); ++i) {
      shape.Set(static_cast<uint32_t>(i), static_cast<double>(output.shape[i]));
    }
    Napi::Object tensor = Napi::Object::New(env);
    tensor.Set("buffer", buffers->wrap(env, std::move(output.storage)));
    tensor.Set("shape", shape);
    result.Set(output.name, tensor);
  }
  return result;
}

Operation::Operation(Napi::Env env, const char* name, ReadOperation read, Napi::Value arguments,
                     const Buffers& buffers, std::shared_ptr<MemoryAccount> account)
    : deferred_(Napi::Promise::Deferred::New(env)), outputs_(std::move(account)) {
  Fields fields(&arguments_, arguments, "", std::string("the arguments of ") + name, ErrorCode::kValue);
  compute_ = read(&fields, &outputs_);
  fields.finish();
  arguments_.resolve(env, buffers);
  outputs_.require_apart(arguments_);
}

void Operation::run(Backend* backend) {
  try {
    if (aborted_) throw aborted_error();
    compute_(backend, &outputs_, &aborted_);
  } catch (const std::exception& exception) {
    error_ = to_error(exception);
  }
}

void Operation::finish(Napi::Env env, Buffers* buffers) {
  if (error_) return reject(env, *error_);
  try {
    arguments_.require_attached(env);
    deferred_.Resolve(outputs_.to_js(env, buffers));
  } catch (const Napi::Error& error) {
    deferred_.Reject(error.Value());
  } catch (const std::exception& exception) {
    reject(env, to_error(exception));
  }
}

void Operation::reject(Napi::Env env, const Error& error) { deferred_.Reject(to_js(env, error).Value()); }

}  // namespace attention_bias::addon
