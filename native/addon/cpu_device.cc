#include "addon/cpu_device.h"

#include <system_error>
#include <utility>
#include <vector>

#include "addon/calls.h"
#include "addon/environment.h"
#include "addon/js_errors.h"

namespace attention_bias::addon {

namespace {

constexpr int64_t kMaxThreads = 1024;

Error closed_error() { return expected(ErrorCode::kDevice, "an open device", "the call", "a closed one"); }

int64_t operation_id(const Napi::CallbackInfo& info) { return info[0].As<Napi::Number>().Int64Value(); }

}  // namespace

Napi::Function CpuDevice::define(Napi::Env env) {
  return DefineClass(
      env, "CpuDevice",
      {InstanceMethod<&CpuDevice::attention>("attention"), InstanceMethod<&CpuDevice::bias>("bias"),
       InstanceMethod<&CpuDevice::router>("router"), InstanceMethod<&CpuDevice::project>("project"),
       InstanceMethod<&CpuDevice::abort>("abort"), InstanceMethod<&CpuDevice::close>("close"),
       InstanceMethod<&CpuDevice::info>("info")});
}

CpuDevice::CpuDevice(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<CpuDevice>(info), environment_(info.Env().GetInstanceData<Environment>()) {
  guarded(info.Env(), [&] {
    Arguments none;
    Fields options(&none, info[0], "", "the options of CpuDevice", ErrorCode::kValue);
    const int64_t threads = options.integer("threads");
    if (threads < 1 || threads > kMaxThreads) {
      throw expected(ErrorCode::kValue, "1 to 1024", "threads", std::to_string(threads));
    }
    const std::string isa = options.string("isa", "");
    options.finish();
    try {
      dispatcher_ = std::make_unique<Dispatcher>(static_cast<int>(threads), isa,
                                                 [this, environment = environment_](Operation* operation) {
                                                   environment->post_finished(this, operation);
                                                 });
    } catch (const std::system_error&) {
      throw expected(ErrorCode::kDevice, std::to_string(threads) + " threads", "threads",
                     "fewer from the system");
    }
    environment_->add(this);
  });
}

CpuDevice::~CpuDevice() {
  if (environment_) environment_->remove(this);
}

Napi::Value CpuDevice::start(const Napi::CallbackInfo& info, const char* name, ReadOperation read) {
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

Napi::Value CpuDevice::attention(const Napi::CallbackInfo& info) {
  return start(info, "attention", read_attention);
}
Napi::Value CpuDevice::bias(const Napi::CallbackInfo& info) { return start(info, "bias", read_bias); }
Napi::Value CpuDevice::router(const Napi::CallbackInfo& info) { return start(info, "router", read_router); }
Napi::Value CpuDevice::project(const Napi::CallbackInfo& info) {
  return start(info, "project", read_project);
}

std::unique_ptr<Operation> CpuDevice::remove(Operations::iterator entry) {
  std::unique_ptr<Operation> operation = std::move(entry->second);
  operations_.erase(entry);
  environment_->operation_settled();
  if (closed_ && operations_.empty()) dispatcher_.reset();
  Unref();
  return operation;
}

void CpuDevice::finish(Operation* operation) {
  for (auto entry = operations_.begin(); entry != operations_.end(); ++entry) {
    if (entry->second.get() != operation) continue;
    const Napi::Env env = Env();
    Buffers& buffers = environment_->buffers();
    remove(entry)->finish(env, &buffers);
    return;
  }
}

void CpuDevice::abort(const Napi::CallbackInfo& info) {
  const auto entry = operations_.find(operation_id(info));
  if (entry == operations_.end()) return;
  if (dispatcher_->remove(entry->second.get())) {
    remove(entry)->reject(info.Env(), aborted_error());
  } else {
    entry->second->abort();
  }
}

void CpuDevice::close(const Napi::CallbackInfo& info) {
  if (closed_) return;
  closed_ = true;
  std::vector<int64_t> queued;
  for (const auto& [id, operation] : operations_) {
    if (dispatcher_->remove(operation.get())) queued.push_back(id);
  }
  for (const int64_t id : queued) remove(operations_.find(id))->reject(info.Env(), closed_error());
  if (operations_.empty()) dispatcher_.reset();
}

void CpuDevice::teardown() {
  dispatcher_.reset();
  operations_.clear();
  environment_ = nullptr;
  closed_ = true;
}

Napi::Value CpuDevice::info(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    if (!dispatcher_) throw closed_error();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("backend", "cpu");
    result.Set("name", cpu::processor_name());
    result.Set("isa", dispatcher_->backend().isa());
    result.Set("threads", dispatcher_->backend().threads());
    return result;
  });
}

}  // namespace attention_bias::addon
