#include "addon/operation.h"

#include <iterator>
#include <utility>

#include "addon/device_buffer.h"
#include "addon/js_errors.h"

namespace attention_bias::addon {

namespace {

constexpr const char* kPlaceNames[] = {"host", "pinned", "device"};  // in the order of Place

}  // namespace

std::shared_ptr<Storage> Maker::make(Place place, int64_t bytes, Storage::Contents contents,
                                     const std::string& what) const {
  if (place == Place::kHost || !source) return Storage::allocate(bytes, contents, what, account, limit);
  return Storage::allocate_from(source, place, bytes, contents, what, account);
}

Place read_place(Fields* arguments, Place otherwise) {
  if (!arguments->has("memory")) return otherwise;
  return static_cast<Place>(arguments->choice("memory", {std::begin(kPlaceNames), std::end(kPlaceNames)}));
}

void Outputs::declare_place(Fields* arguments, const TensorView* main) {
  place_ = read_place(arguments, main && main->on_device ? Place::kDevice : Place::kHost);
  if (!maker_.source) place_ = Place::kHost;
}

void Outputs::declare(const char* name, Fields* arguments) {
  outputs_.push_back({name, arguments->optional_tensor(name), {}, DType::kFloat32, nullptr});
}

void Outputs::declare(const char* name) { outputs_.push_back({name, nullptr, {}, DType::kFloat32, nullptr}); }

void* Outputs::take(const char* name, const Shape& shape, const char* letters, DType dtype) {
  for (Output& output : outputs_) {
    if (output.name != name) continue;
    if (output.given) {
      std::vector<Dim> dims;
      for (const int64_t size : shape) dims.push_back(dim(size));
      require(*output.given, dtype, dims, letters);
      return output.given->data;
    }
    const int64_t bytes = element_count(shape, name) * static_cast<int64_t>(dtype_bytes(dtype));
    output.shape = shape;
    output.dtype = dtype;
    output.storage = maker_.make(place_, bytes, Storage::Contents::kUndefined, name);
    return output.storage->data();
  }
  throw Error(ErrorCode::kDevice, std::string("no output ") + name);
}

float* Outputs::make(const std::string& name, const Shape& shape) {
  declare(name.c_str());
  return take(name.c_str(), shape, "");
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
    tensor.Set("buffer", buffer_to_js(env, buffers, std::move(output.storage), place_));
    tensor.Set("shape", shape);
    tensor.Set("dtype", dtype_name(output.dtype));
    tensor.Set("memory", kPlaceNames[static_cast<int>(place_)]);
    result.Set(output.name, tensor);
  }
  return result;
}

Napi::Value buffer_to_js(Napi::Env env, Buffers* buffers, std::shared_ptr<Storage> storage, Place place) {
  if (place == Place::kDevice) return DeviceBuffer::create(env, std::move(storage));
  return buffers->wrap(env, std::move(storage));
}

Operation::Operation(Napi::Env env, const char* name, ReadOperation read, Napi::Value arguments,
                     const Buffers& buffers, Maker maker)
    : arguments_(maker.source.get()), outputs_(std::move(maker)) {
  Fields fields(&arguments_, arguments, "", std::string("the arguments of ") + name, ErrorCode::kValue);
  compute_ = read(&fields, &outputs_);
  fields.finish();
  arguments_.resolve(env, buffers);
  outputs_.require_apart(arguments_);
  deferred_ = Napi::Promise::Deferred::New(env);
}

void Operation::run(Backend* backend) noexcept {
  try {
    if (aborted_) throw Error(ErrorCode::kAborted, kAborted);
    compute_(backend, &outputs_, &aborted_);
  } catch (...) {
    thrown_ = std::current_exception();
  }
}

void Operation::finish(Napi::Env env, Buffers* buffers) {
  try {
    if (thrown_) std::rethrow_exception(thrown_);
    arguments_.require_attached(env);
    deferred_->Resolve(outputs_.to_js(env, buffers));
  } catch (const Napi::Error& error) {
    deferred_->Reject(error.Value());
  } catch (const std::exception& exception) {
    deferred_->Reject(to_js(env, exception).Value());
  }
}

void Operation::reject(Napi::Env env, ErrorCode code, const char* message) {
  deferred_->Reject(to_js(env, code, message).Value());
}

}  // namespace attention_bias::addon
