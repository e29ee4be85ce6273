#include "addon/arguments.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "addon/device_buffer.h"
#include "addon/environment.h"
#include "addon/js_errors.h"
#include "addon/pin.h"

namespace attention_bias::addon {

namespace {

constexpr uint32_t kMaxRank = 8;
constexpr uint32_t kMaxListed = 64;  // elements of a list of numbers; the longest that a field holds is 6
constexpr double kMaxInteger = 9007199254740991.0;

struct ArrayType {
  napi_typedarray_type type;
  DType dtype;
};
constexpr ArrayType kArrayTypes[] = {{napi_float32_array, DType::kFloat32},
                                     {napi_int32_array, DType::kInt32},
                                     {napi_uint8_array, DType::kUint8},
                                     {napi_uint16_array, DType::kBfloat16}};

double to_number(Napi::Value value, const std::string& name) {
  if (!value.IsNumber()) throw expected(ErrorCode::kValue, "a number", name, describe(value));
  return value.As<Napi::Number>().DoubleValue();
}

bool is_integer(Napi::Value value) {
  if (!value.IsNumber()) return false;
  const double number = value.As<Napi::Number>().DoubleValue();
  return number == std::floor(number) && std::fabs(number) <= kMaxInteger;  // false for NaN
}

int64_t to_integer(Napi::Value value, const std::string& name) {
  if (!is_integer(value)) throw expected(ErrorCode::kValue, "an integer", name, describe(value));
  return value.As<Napi::Number>().Int64Value();
}

// False unless it is an array of at most kMaxListed integers.
bool read_integers(Napi::Value value, std::vector<int64_t>* result) {
  if (!value.IsArray()) return false;
  const Napi::Array array = value.As<Napi::Array>();
  const uint32_t length = array.Length();
  if (length > kMaxListed) return false;
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value element = array.Get(i);
    if (!is_integer(element)) return false;
    result->push_back(element.As<Napi::Number>().Int64Value());
  }
  return true;
}

bool is_detached(Napi::Env env, napi_value buffer) {
  bool detached = false;  // a SharedArrayBuffer never is
  napi_is_detached_arraybuffer(env, buffer, &detached);
  return detached;
}

DType array_dtype(Napi::Value data, const std::string& name) {
  if (data.IsTypedArray()) {
    const napi_typedarray_type type = data.As<Napi::TypedArray>().TypedArrayType();
    for (const ArrayType& known : kArrayTypes) {
      if (known.type == type) return known.dtype;
    }
  }
  throw expected(ErrorCode::kDtype, "a Float32Array, Int32Array, Uint8Array or (bfloat16) Uint16Array",
                 name + ".data", describe(data));
}

}  // namespace

Shape read_shape(Napi::Value value, const std::string& name) {
  const auto refuse = [&](const char* what) {
    throw expected(ErrorCode::kShape, what, name, describe(value));
  };
  if (!value.IsArray()) refuse("a shape, an array of integers,");
  const Napi::Array array = value.As<Napi::Array>();
  const uint32_t rank = array.Length();
  if (rank < 1 || rank > kMaxRank) refuse("a shape of 1 to 8 dimensions");
  Shape shape;
  for (uint32_t i = 0; i < rank; ++i) {
    const Napi::Value size = array.Get(i);
    if (!is_integer(size) || size.As<Napi::Number>().Int64Value() < 1)
      refuse("a shape of integers of at least 1");
    shape.push_back(size.As<Napi::Number>().Int64Value());
  }
  element_count(shape, name);
  return shape;
}

TensorView* Arguments::add(Napi::Value value, const std::string& name) {
  if (!value.IsObject() || value.IsArray() || value.IsTypedArray() || value.IsFunction()) {
    throw expected(ErrorCode::kValue, "a Tensor or { data, shape }", name, describe(value));
  }
  const Napi::Object object = value.As<Napi::Object>();
  const Napi::Value disposed = object.Get("disposed");
  if (disposed.IsBoolean() && disposed.As<Napi::Boolean>().Value()) {
    throw expected(ErrorCode::kDisposed, "a tensor in use", name, "a disposed one");
  }
  TensorArgument& tensor = tensors_.emplace_back();
  tensor.view.name = name;
  if (const DeviceBuffer* buffer = DeviceBuffer::from(value.Env(), object.Get("deviceBuffer"))) {
    take_device_buffer(object, *buffer, &tensor);
    return &tensor.view;
  }
  const Napi::Value data = object.Get("data");
  tensor.view.dtype = array_dtype(data, name);
  tensor.view.shape = read_shape(object.Get("shape"), name + ".shape");
  napi_value buffer;
  const napi_env env = value.Env();
  if (napi_get_typedarray_info(env, data, nullptr, nullptr, nullptr, &buffer, nullptr) == napi_ok &&
      value.Env().GetInstanceData<Environment>()->is_resizable(buffer)) {
    throw expected(ErrorCode::kValue, "memory of fixed size", name + ".data", "a resizable ArrayBuffer");
  }
  tensor.array = Napi::Persistent(data.As<Napi::Object>());
  return &tensor.view;
}

void Arguments::take_device_buffer(Napi::Object tensor, const DeviceBuffer& buffer,
                                   TensorArgument* argument) const {
  TensorView& view = argument->view;
  Arguments none;
  Fields fields(&none, tensor, view.name, "", ErrorCode::kValue);
  view.dtype = fields.dtype("dtype", all_dtypes());
  view.shape = fields.shape("shape");
  const int64_t offset = fields.integer("byteOffset");
  const std::shared_ptr<Storage>& storage = buffer.storage();  // after all getters
  if (!storage) throw expected(ErrorCode::kDisposed, "a tensor in use", view.name, "a disposed one");
  if (storage->source() != device_memory_) {
    throw expected(ErrorCode::kDevice, "a tensor of the host or of this device", view.name,
                   "one in another device's memory");
  }
  const int64_t bytes = element_count(view.shape, view.name) * static_cast<int64_t>(dtype_bytes(view.dtype));
  const int64_t all = static_cast<int64_t>(storage->bytes());
  if (offset < 0 || offset % static_cast<int64_t>(dtype_bytes(view.dtype)) != 0 || bytes > all ||
      offset > all - bytes) {
    throw expected(ErrorCode::kShape, "a tensor within its memory of " + std::to_string(all) + " bytes",
                   view.name, std::to_string(bytes) + " bytes from " + std::to_string(offset) + " on");
  }
  view.data = static_cast<char*>(storage->data()) + offset;
  view.on_device = true;
  argument->storage = storage;
}

void Arguments::resolve(Napi::Env env, const Buffers& buffers) {
  for (TensorArgument& tensor : tensors_) {
    TensorView& view = tensor.view;
    if (view.on_device) continue;
    size_t length = 0, offset = 0;
    napi_value buffer;
    void* data = nullptr;
    napi_get_typedarray_info(env, tensor.array.Value(), nullptr, &length, &data, &buffer, &offset);
    if (is_detached(env, buffer)) {
      throw expected(ErrorCode::kValue, "a typed array with its memory", view.name + ".data",
                     "one with a detached buffer");
    }
    const int64_t count = element_count(view.shape, view.name);
    if (static_cast<int64_t>(length) != count) {
      throw expected(ErrorCode::kShape,
                     std::to_string(count) + " elements, as its shape " + to_string(view.shape) + " has,",
                     view.name + ".data", std::to_string(length));
    }
    view.data = data;
    tensor.storage = buffers.find(static_cast<const char*>(data) - offset);
    if (!tensor.storage) tensor.pin = pin_memory(env, buffer);
  }
}

void Arguments::require_apart(const TensorView& output) const {
  const auto end = [](const TensorView& view) {
    return static_cast<const char*>(view.data) +
           element_count(view.shape, view.name) * dtype_bytes(view.dtype);
  };
  for (const TensorArgument& tensor : tensors_) {
    const TensorView& other = tensor.view;
    if (&other == &output || end(other) <= output.data || end(output) <= other.data) continue;
    throw expected(ErrorCode::kValue, "memory of its own", output.name,
                   "memory that " + other.name + " shares");
  }
}

void Arguments::require_attached(Napi::Env env) const {
  for (const TensorArgument& tensor : tensors_) {
    if (tensor.storage) continue;
    napi_value buffer;
    if (napi_get_typedarray_info(env, tensor.array.Value(), nullptr, nullptr, nullptr, &buffer, nullptr) !=
        napi_ok) {
      continue;
    }
    if (is_detached(env, buffer)) {
      throw expected(ErrorCode::kValue, "memory that stays until the operation ends",
                     tensor.view.name + ".data", "a buffer that was detached meanwhile");
    }
  }
}

Fields::Fields(Arguments* arguments, Napi::Value value, std::string path, std::string subject, ErrorCode code)
    : arguments_(arguments), path_(std::move(path)), subject_(std::move(subject)), code_(code) {
  if (!value.IsObject() || value.IsArray() || value.IsFunction()) {
    throw expected(code_, "an object", path_.empty() ? subject_ : path_, describe(value));
  }
  object_ = value.As<Napi::Object>();
}

Napi::Value Fields::get(const char* name) {
  if (std::find(known_.begin(), known_.end(), name) == known_.end()) known_.emplace_back(name);
  return object_.Get(name);
}

bool Fields::has(const char* name) { return !get(name).IsUndefined(); }

Napi::Value Fields::required(const char* name, const char* what) {
  const Napi::Value value = get(name);
  if (value.IsUndefined()) throw expected(code_, what, field(name), "undefined");
  return value;
}

Napi::Array Fields::required_array(const char* name, const char* what) {
  const Napi::Value value = required(name, what);
  if (!value.IsArray()) throw expected(code_, what, field(name), describe(value));
  return value.As<Napi::Array>();
}

double Fields::number(const char* name) { return to_number(required(name, "a number"), field(name)); }

double Fields::number(const char* name, double otherwise) {
  const Napi::Value value = get(name);
  return value.IsUndefined() ? otherwise : to_number(value, field(name));
}

int64_t Fields::integer(const char* name) { return to_integer(required(name, "an integer"), field(name)); }

bool Fields::boolean(const char* name, bool otherwise) {
  const Napi::Value value = get(name);
  if (value.IsUndefined()) return otherwise;
  if (!value.IsBoolean()) throw expected(ErrorCode::kValue, "true or false", field(name), describe(value));
  return value.As<Napi::Boolean>().Value();
}

std::string Fields::string(const char* name, const std::string& otherwise) {
  const Napi::Value value = get(name);
  if (value.IsUndefined()) return otherwise;
  if (!value.IsString()) throw expected(ErrorCode::kValue, "a string", field(name), describe(value));
  return value.As<Napi::String>().Utf8Value();
}

size_t Fields::choice(const char* name, const std::vector<const char*>& choices) {
  const Napi::Value value = get(name);
  if (value.IsUndefined()) return 0;
  std::string all;
  const std::string text = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  for (size_t i = 0; i < choices.size(); ++i) {
    if (value.IsString() && text == choices[i]) return i;
    all += (i == 0 ? "\"" : i + 1 == choices.size() ? " or \"" : ", \"") + std::string(choices[i]) + "\"";
  }
  throw expected(ErrorCode::kValue, all, field(name), describe(value));
}

DType Fields::dtype(const char* name, const std::vector<DType>& choices) {
  std::vector<const char*> names;
  for (const DType choice : choices) names.push_back(dtype_name(choice));
  return choices[choice(name, names)];
}

std::vector<int64_t> Fields::integers(const char* name) {
  const Napi::Value value = required(name, "an array of integers");
  std::vector<int64_t> result;
  if (!read_integers(value, &result)) {
    throw expected(ErrorCode::kValue, "an array of integers", field(name), describe(value));
  }
  return result;
}

std::vector<std::vector<int64_t>> Fields::integer_lists(const char* name) {
  const Napi::Value value = required(name, "an array of arrays of integers");
  if (!value.IsArray() || value.As<Napi::Array>().Length() > kMaxListed) {
    throw expected(ErrorCode::kValue, "an array of at most 64 arrays of integers", field(name),
                   describe(value));
  }
  std::vector<std::vector<int64_t>> result;
  const uint32_t length = value.As<Napi::Array>().Length();
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value element = value.As<Napi::Array>().Get(i);
    if (!read_integers(element, &result.emplace_back())) {
      throw expected(ErrorCode::kValue, "an array of integers", field(name) + "[" + std::to_string(i) + "]",
                     describe(element));
    }
  }
  return result;
}

std::vector<double> Fields::numbers(const char* name) {
  const Napi::Value value = required(name, "an array of numbers");
  std::vector<double> result;
  bool good = value.IsArray() && value.As<Napi::Array>().Length() <= kMaxListed;
  const uint32_t length = good ? value.As<Napi::Array>().Length() : 0;
  for (uint32_t i = 0; good && i < length; ++i) {
    const Napi::Value element = value.As<Napi::Array>().Get(i);
    good = element.IsNumber();
    if (good) result.push_back(element.As<Napi::Number>().DoubleValue());
  }
  if (!good) throw expected(ErrorCode::kValue, "an array of numbers", field(name), describe(value));
  return result;
}

Shape Fields::shape(const char* name) { return read_shape(required(name, "a shape"), field(name)); }

TensorView* Fields::tensor(const char* name) {
  return arguments_->add(required(name, "a Tensor or { data, shape }"), field(name));
}

TensorView* Fields::optional_tensor(const char* name) { return has(name) ? tensor(name) : nullptr; }

void Fields::finish() {
  napi_value names;
  const napi_status status =
      napi_get_all_property_names(env(), object_, napi_key_own_only,
                                  static_cast<napi_key_filter>(napi_key_enumerable | napi_key_skip_symbols),
                                  napi_key_numbers_to_strings, &names);
  if (status != napi_ok) throw Napi::Error::New(env());
  const Napi::Array keys(env(), names);
  const uint32_t length = keys.Length();
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::Value key = keys.Get(i);
    const std::string name = key.As<Napi::String>().Utf8Value();
    if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
    if (object_.Get(key).IsUndefined()) continue;
    std::string all;
    for (const std::string& known : known_) all += (all.empty() ? "" : ", ") + known;
    throw expected(code_, "no other fields than " + all, path_.empty() ? subject_ : path_, describe(key));
  }
}

}  // namespace attention_bias::addon
