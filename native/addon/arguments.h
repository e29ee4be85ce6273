// Reads plain JavaScript objects: every field of an operation's arguments and of its bias terms goes through
// Fields, which knows the field's path for messages and refuses a field that nobody asked for.
//
// JavaScript that runs while fields are read (getters, proxies) may move or free a typed array's memory. So
// reading only notes the tensors; Arguments::resolve takes their pointers when no more JavaScript can run.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/buffers.h"
#include "addon/node_api.h"
#include "core/shapes.h"

namespace attention_bias::addon {

class DeviceBuffer;

// A tensor that an operation uses, and what keeps its memory.
struct TensorArgument {
  TensorView view;  // no data before resolve(), but where it is a device's
  Napi::ObjectReference array;
  std::shared_ptr<Storage>
      storage;                // of memory of ours, a device's too: lives through dispose() and transfer
  std::shared_ptr<void> pin;  // of the user's own
};

// The tensors of one operation. Views have stable addresses.
class Arguments {
 public:
  Arguments() = default;
  // Tensors may be in the device memory that this source gave out.
  explicit Arguments(const MemorySource* device_memory) : device_memory_(device_memory) {}
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  // A Tensor or { data, shape }: ERR_VALUE, ERR_DTYPE, ERR_SHAPE or ERR_DISPOSED naming `name`; ERR_DEVICE
  // for one in another device's memory.
  TensorView* add(Napi::Value value, const std::string& name);

  // Takes the pointers. Runs no JavaScript.
  void resolve(Napi::Env env, const Buffers& buffers);

  // ERR_VALUE where `output` shares memory with another of the tensors.
  void require_apart(const TensorView& output) const;

  // ERR_VALUE where a buffer of the user's own was detached since resolve(): the operation may have read
  // anything.
  void require_attached(Napi::Env env) const;

 private:
  void take_device_buffer(Napi::Object tensor, const DeviceBuffer& buffer, TensorArgument* argument) const;

  const MemorySource* device_memory_ = nullptr;
  std::deque<TensorArgument> tensors_;
};

// A shape of at most 8 dimensions, each an integer of at least 1, of at most 2^53 elements; ERR_SHAPE.
Shape read_shape(Napi::Value value, const std::string& name);

class Fields {
 public:
  // `path` is what stands before a field's name in messages: "" or "bias[2]". `subject` names the whole where
  // the path is empty. Missing and unknown fields have `code`.
  Fields(Arguments* arguments, Napi::Value value, std::string path, std::string subject, ErrorCode code);

  const std::string& path() const { return path_; }
  Napi::Env env() const { return object_.Env(); }

  bool has(const char* name);
  Napi::Value required(const char* name, const char* what);

  double number(const char* name);
  double number(const char* name, double otherwise);
  int64_t integer(const char* name);
  bool boolean(const char* name, bool otherwise);
  std::string string(const char* name, const std::string& otherwise);
  // The index of the field's string among `choices`; the first when it is absent.
  size_t choice(const char* name, const std::vector<const char*>& choices);
  DType dtype(const char* name, const std::vector<DType>& choices);
  std::vector<int64_t> integers(const char* name);
  std::vector<std::vector<int64_t>> integer_lists(const char* name);
  std::vector<double> numbers(const char* name);
  Shape shape(const char* name);
  TensorView* tensor(const char* name);
  TensorView* optional_tensor(const char* name);  // nullptr when absent
  // Calls f with the Fields of each object in an array. Their missing and unknown fields have code_, or
  // another.
  template <class F>
  void each(const char* name, F&& f) {
    each(name, std::forward<F>(f), code_);
  }
  template <class F>
  void each(const char* name, F&& f, ErrorCode code) {
    const Napi::Array array = required_array(name, "an array of objects");
    const uint32_t length = array.Length();
    for (uint32_t i = 0; i < length; ++i) {
      Fields element(arguments_, array.Get(i), field(name) + "[" + std::to_string(i) + "]", "", code);
      f(element);
      element.finish();
    }
  }

  // Refuses fields that were not asked for. A field that is undefined counts as absent.
  void finish();

 private:
  std::string field(const char* name) const { return path_.empty() ? name : path_ + "." + name; }
  Napi::Value get(const char* name);
  Napi::Array required_array(const char* name, const char* what);

  Arguments* arguments_;
  std::string path_;
  std::string subject_;
  ErrorCode code_;
  Napi::Object object_;
  std::vector<std::string> known_;
};

}  // namespace attention_bias::addon
