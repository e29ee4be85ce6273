#include "addon/device.h"

#include <system_error>
#include <utility>

#include "addon/calls.h"
#include "addon/environment.h"
#include "addon/js_errors.h"
#include "cpu/backend.h"
#include "cuda/cuda.h"

namespace attention_bias::addon {

namespace {

constexpr int64_t kMaxThreads = 1024;

constexpr const char* kClosed = "expected an open device for the call but received a closed one";

Error closed_error() { return Error(ErrorCode::kDevice, kClosed); }

int64_t operation_id(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int64Value(); }

}  // namespace

Napi::Function Device::define(Napi::Env env) {
  return DefineClass(
      env, "Device",
      {InstanceMethod<&Device::attention>("attention"),
       InstanceMethod<&Device::attention_backward>("attentionBackward"),
       InstanceMethod<&Device::bias>("bias"), InstanceMethod<&Device::linear>("linear"),
       InstanceMethod<&Device::multihead>("multihead"), InstanceMethod<&Device::router>("router"),
       InstanceMethod<&Device::router_backward>("routerBackward"),
       InstanceMethod<&Device::project>("project"), InstanceMethod<&Device::deformable>("deformable"),
       InstanceMethod<&Device::deformable_backward>("deformableBackward"),
       InstanceMethod<&Device::copy>("copy"), InstanceMethod<&Device::prepare>("prepare"),
       InstanceMethod<&Device::self_test>("selfTest"), InstanceMethod<&Device::allocate>("allocate"),
       InstanceMethod<&Device::memory>("memory"), InstanceMethod<&Device::trim>("trim"),
       InstanceMethod<&Device::abort>("abort"), InstanceMethod<&Device::close>("close"),
       InstanceMethod<&Device::info>("info")});
}

Device::Device(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Device>(info), environment_(info.Env().GetInstanceData<Environment>()) {
  guarded(info.Env(), [&] {
    Arguments none;
    Fields options(&none, info[0], "", "the options of Device", ErrorCode::kValue);
    std::unique_ptr<Backend> backend;
    if (options.choice("backend", {"cpu", "cuda"}) == 0) {
      const int64_t threads = options.integer("threads");
      if (threads < 1 || threads > kMaxThreads) {
        throw expected(ErrorCode::kValue, "1 to 1024", "threads", std::to_string(threads));
      }
      const std::string isa = options.string("isa", "");
      if (options.has("memoryLimit")) limit_ = std::make_shared<MemoryLimit>(options.integer("memoryLimit"));
      options.finish();
      backend = std::make_unique<cpu::Backend>(static_cast<int>(threads), isa, limit_);
    } else {
      const int64_t ordinal = options.integer("ordinal");
      const int64_t limit = options.has("memoryLimit") ? options.integer("memoryLimit") : 0;
      options.finish();
      backend = cuda::make_backend(static_cast<int>(ordinal), limit);
    }
    try {
      dispatcher_ = std::make_unique<Dispatcher>(
          std::move(backend),
          [environment = environment_](Operation* operation) { environment->post_finished(operation); });
    } catch (const std::system_error&) {
      throw expected(ErrorCode::kMemory, "one thread more", "the device", "none from the system");
    }
    environment_->add(this);
  });
}

Device::~Device() {
  if (environment_) environment_->remove(this);
}

Napi::Value Device::start(const Napi::CallbackInfo& info, const char* name, ReadOperation read) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    if (closed_) throw closed_error();
    const int64_t id = operation_id(info);
    if (operations_.count(id) != 0) throw expected(ErrorCode::kValue, "a new id", "the call", "one in use");
    auto operation = std::make_unique<Operation>(env, name, read, info[1], environment_->buffers(), maker());
    if (closed_) throw closed_error();  // by a getter of the arguments
    const Napi::Promise promise = operation->promise();
    const auto entry = operations_.emplace(id, std::move(operation)).first;
    try {
      dispatcher_->push(entry->second.get());
    } catch (...) {
      operations_.erase(entry);
      throw;
    }
    environment_->operation_started();
    Ref();  // a device with operations under way is not garbage
    return promise;
  });
}

Napi::Value Device::attention(const Napi::CallbackInfo& info) {
  return start(info, "attention", read_attention);
}
Napi::Value Device::attention_backward(const Napi::CallbackInfo& info) {
  return start(info, "attentionBackward", read_attention_backward);
}
Napi::Value Device::bias(const Napi::CallbackInfo& info) { return start(info, "bias", read_bias); }
Napi::Value Device::linear(const Napi::CallbackInfo& info) { return start(info, "linear", read_linear); }
Napi::Value Device::multihead(const Napi::CallbackInfo& info) {
  return start(info, "multihead", read_multihead);
}
Napi::Value Device::router(const Napi::CallbackInfo& info) { return start(info, "router", read_router); }
Napi::Value Device::router_backward(const Napi::CallbackInfo& info) {
  return start(info, "routerBackward", read_router_backward);
}
Napi::Value Device::project(const Napi::CallbackInfo& info) { return start(info, "project", read_project); }
Napi::Value Device::deformable(const Napi::CallbackInfo& info) {
  return start(info, "deformable", read_deformable);
}
Napi::Value Device::deformable_backward(const Napi::CallbackInfo& info) {
  return start(info, "deformableBackward", read_deformable_backward);
}

Napi::Value Device::copy(const Napi::CallbackInfo& info) { return start(info, "copy", read_copy); }
Napi::Value Device::prepare(const Napi::CallbackInfo& info) { return start(info, "prepare", read_prepare); }
Napi::Value Device::self_test(const Napi::CallbackInfo& info) {
  return start(info, "selfTest", read_self_test);
}

Maker Device::maker() const {
  return {environment_->account(), dispatcher_ ? dispatcher_->backend().memory() : nullptr, limit_};
}

std::unique_ptr<Operation> Device::remove(Operations::iterator entry) {
  std::unique_ptr<Operation> operation = std::move(entry->second);
  operations_.erase(entry);
  environment_->operation_settled();
  if (closed_ && operations_.empty()) dispatcher_.reset();
  Unref();
  return operation;
}

bool Device::finish(const Operation* operation) {
  for (auto entry = operations_.begin(); entry != operations_.end(); ++entry) {
    if (entry->second.get() != operation) continue;
    const Napi::Env env = Env();
    Buffers& buffers = environment_->buffers();
    remove(entry)->finish(env, &buffers);
    return true;
  }
  return false;
}

void Device::abort(const Napi::CallbackInfo& info) {
  const auto entry = operations_.find(operation_id(info));
  if (entry == operations_.end()) return;
  if (dispatcher_->remove(entry->second.get())) {
    remove(entry)->reject(info.Env(), ErrorCode::kAborted, kAborted);
  } else {
    entry->second->abort();
  }
}

void Device::close(const Napi::CallbackInfo& info) {
  if (closed_) return;
  closed_ = true;
  if (operations_.empty()) dispatcher_.reset();
  for (auto entry = operations_.begin(); entry != operations_.end();) {
    const auto queued = entry++;
    if (!dispatcher_->remove(queued->second.get())) continue;
    remove(queued)->reject(info.Env(), ErrorCode::kDevice, kClosed);
  }
}

void Device::teardown() {
  dispatcher_.reset();
  operations_.clear();
  environment_ = nullptr;
  closed_ = true;
}

Napi::Value Device::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!dispatcher_) throw closed_error();
    const Backend& backend = dispatcher_->backend();
    const BackendInfo of = backend.info();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("name", of.name);
    result.Set("isa", of.isa);
    result.Set("threads", of.threads);
    result.Set("computeCapability", of.compute_capability);
    result.Set("multiprocessors", of.multiprocessors);
    result.Set("memoryBytes", static_cast<double>(of.memory_bytes));
    result.Set("kernelMs", backend.kernel_ms());
    return result;
  });
}

Napi::Value Device::allocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return guarded(env, [&]() -> Napi::Value {
    const Shape shape = read_shape(info[0], "shape");
    Arguments none;
    Fields options(&none, info[1], "", "the options of a tensor", ErrorCode::kValue);
    const DType dtype = options.dtype("dtype", all_dtypes());
    Place place = read_place(&options, Place::kHost);
    options.finish();
    if (closed_) throw closed_error();
    const Maker maker = this->maker();
    if (!maker.source) place = Place::kHost;
    const int64_t bytes = element_count(shape, "shape") * static_cast<int64_t>(dtype_bytes(dtype));
    const std::string what = "a tensor " + to_string(shape);
    Buffers& buffers = environment_->buffers();
    if (place == Place::kHost) return buffers.allocate(env, bytes, what, maker.account, limit_);
    return buffer_to_js(env, &buffers, maker.make(place, bytes, Storage::Contents::kZero, what), place);
  });
}

Napi::Value Device::memory(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!dispatcher_) throw closed_error();
    const std::shared_ptr<MemorySource> source = maker().source;
    if (!source && !limit_) return info.Env().Null();
    MemoryUse use;
    if (source) {
      use = source->use();
    } else {
      use.used_bytes = limit_->used_bytes();
      use.limit_bytes = limit_->limit_bytes();
    }
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("usedBytes", static_cast<double>(use.used_bytes));
    result.Set("cachedBytes", static_cast<double>(use.cached_bytes));
    result.Set("limitBytes", static_cast<double>(use.limit_bytes));
    result.Set("freeBytes", static_cast<double>(use.free_bytes));
    result.Set("totalBytes", static_cast<double>(use.total_bytes));
    return result;
  });
}

void Device::trim(const Napi::CallbackInfo&) {
  const std::shared_ptr<MemorySource> source = maker().source;
  if (source) source->trim();
}

}  // namespace attention_bias::addon
