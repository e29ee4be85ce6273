// A program's terms in a device's memory: the tensors are copied there, each once, and the terms' pointers
// follow them.
#pragma once

#include <deque>
#include <map>
#include <type_traits>
#include <vector>

#include "core/program.h"
#include "cuda/runtime.cuh"

namespace attention_bias::cuda {

class DeviceProgram {
 public:
  // `program` may be null: no terms.
  DeviceProgram(Runtime* runtime, const Program* program) : runtime_(runtime) {
    if (!program || program->terms().empty()) return;
    std::map<const void*, size_t> sizes;  // of tensors that share their start, the longest
    for (const TensorView& tensor : program->tensors()) {
      const size_t bytes =
          static_cast<size_t>(element_count(tensor.shape, tensor.name)) * dtype_bytes(tensor.dtype);
      size_t& size = sizes[tensor.data];
      size = bytes > size ? bytes : size;
    }
    for (const auto& [host, bytes] : sizes) tensors_[host] = keep(host, bytes);
    std::vector<Term> terms = program->terms();
    for (Term& term : terms) visit(term, [&](auto& t) { move(t); });
    count_ = static_cast<int32_t>(terms.size());
    terms_ = static_cast<const Term*>(keep(terms.data(), terms.size() * sizeof(Term)));
    runtime->synchronize();  // the copies read from vectors of this scope
  }

  const Term* terms() const { return terms_; }
  int32_t count() const { return count_; }

 private:
  template <class T, class = void>
  struct HasSegments : std::false_type {};
  template <class T>
  struct HasSegments<T, std::void_t<decltype(T::segments)>> : std::true_type {};

  template <class T>
  void move(T& term) {
    const auto follow = [&](auto*& pointer) {
      using Pointer = std::remove_reference_t<decltype(pointer)>;
      pointer = static_cast<Pointer>(tensors_.at(pointer));
    };
    if constexpr (HasSegments<T>::value) {
      using Segment = std::decay_t<decltype(*term.segments)>;
      segments_.emplace_back(static_cast<size_t>(term.count) * sizeof(Segment));
      Segment* segments = reinterpret_cast<Segment*>(segments_.back().data());
      for (int32_t i = 0; i < term.count; ++i) {
        segments[i] = term.segments[i];
        segments[i].each_tensor(follow);
      }
      term.segments = static_cast<const Segment*>(keep(segments, segments_.back().size()));
    } else {
      term.each_tensor(follow);
    }
  }

  const void* keep(const void* host, size_t bytes) {
    memory_.push_back(upload(runtime_, host, bytes));
    return memory_.back().as<void>();
  }

  Runtime* runtime_;
  std::map<const void*, const void*> tensors_;  // from host to device
  std::deque<std::vector<char>> segments_;
  std::deque<DeviceMemory> memory_;
  const Term* terms_ = nullptr;
  int32_t count_ = 0;
};

}  // namespace attention_bias::cuda
