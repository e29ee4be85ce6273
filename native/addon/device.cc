#include "addon/device.h"

#include <system_error>
#include <utility>
#include <vector>

#include "addon/calls.h"
#include "addon/environment.h"
#include "addon/js_errors.h"
#include "cpu/backend.h"
#include "cuda/cuda.h"

namespace attention_bias::addon {

namespace {

constexpr int64_t kMaxThreads = 1024;

Error closed_error() { return expected(ErrorCode::kDevice, "an open device", "the call", "a closed one"); }

int64_t operation_id(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int64Value(); }

}  // namespace

Napi::Function Device::define(Napi::Env env) {
  return DefineClass(env, "Device",
                     {InstanceMethod<&Device::attention>("attention"), InstanceMethod<&Device::bias>("bias"),
                      InstanceMethod<&Device::router>("router"), InstanceMethod<&Device::project>("project"),
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
      options.finish();
      auto cpu = std::make_unique<cpu::Backend>(static_cast<int>(threads), isa);
      isa_ = cpu->isa();
      threads_ = cpu->threads();
      backend = std::move(cpu);
    } else {
      const int64_t ordinal = options.integer("ordinal");
      options.finish();
      backend = cuda::make_backend(static_cast<int>(ordinal));
    }
    try {
      dispatcher_ = std::make_unique<Dispatcher>(std::move(backend),
                                                 [this, environment = environment_](Operation* operation) {
                                                   environment->post_finished(this, operation);
                                                 });
    } catch (const std::system_error&) {
      throw expected(ErrorCode::kDevice, "one thread more", "the device", "none from the system");
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
    auto operation = std::make_unique<Operation>(env, name, read, info[1], environment_->buffers(),
                                                 environment_->account());
    if (closed_) throw closed_error();  // by a getter of the arguments
    const Napi::Promise promise = operation->promise();
    dispatcher_->push(operation.get());
    operations_[id] = std::move(operation);
    environment_->operation_started();
    Ref();  // a device with operations under way is not garbage
    return promise;
  });
}

Napi::Value Device::attention(const Napi::CallbackInfo& info) {
  return start(info, "attention", read_attention);
}
Napi::Value Device::bias(const Napi::CallbackInfo& info) { return start(info, "bias", read_bias); }
Napi::Value Device::router(const Napi::CallbackInfo& info) { return start(info, "router", read_router); }
Napi::Value Device::project(const Napi::CallbackInfo& info) { return start(info, "project", read_project); }

std::unique_ptr<Operation> Device::remove(Operations::iterator entry) {
  std::unique_ptr<Operation> operation = std::move(entry->second);
  operations_.erase(entry);
  environment_->operation_settled();
  if (closed_ && operations_.empty()) dispatcher_.reset();
  Unref();
  return operation;
}

void Device::finish(Operation* operation) {
  for (auto entry = operations_.begin(); entry != operations_.end(); ++entry) {
    if (entry->second.get() != operation) continue;
    const Napi::Env env = Env();
    Buffers& buffers = environment_->buffers();
    remove(entry)->finish(env, &buffers);
    return;
  }
}

void Device::abort(const Napi::CallbackInfo& info) {
  const auto entry = operations_.find(operation_id(info));
  if (entry == operations_.end()) return;
  if (dispatcher_->remove(entry->second.get())) {
    remove(entry)->reject(info.Env(), aborted_error());
  } else {
    entry->second->abort();
  }
}

void Device::close(const Napi::CallbackInfo& info) {
  if (closed_) return;
  closed_ = true;
  std::vector<int64_t> queued;
  for (const auto& [id, operation] : operations_) {
    if (dispatcher_->remove(operation.get())) queued.push_back(id);
  }
  for (const int64_t id : queued) remove(operations_.find(id))->reject(info.Env(), closed_error());
  if (operations_.empty()) dispatcher_.reset();
}

void Device::teardown() {
  dispatcher_.reset();
  operations_.clear();
  environment_ = nullptr;
  closed_ = true;
}

Napi::Value Device::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("isa", isa_);
    result.Set("threads", threads_);
    result.Set("kernelMs", dispatcher_ ? dispatcher_->backend().kernel_ms() : 0.0);
    return result;
  });
}

}  // namespace attention_bias::addon
