// A program's terms in a device's memory: the tensors are copied there, each once, and the terms' pointers
// follow them.
#pragma once

#include <deque>
#include <map>
#include <type_traits>
#include <vector>

#include "core/program.h"
#include "cuda/work.cuh"

namespace attention_bias::cuda {

class DeviceProgram {
 public:
  // `program` may be null: no terms.
  DeviceProgram(Work* work, const Program* program) : work_(work) {
    if (!program || program->terms().empty()) return;
    std::map<const void*, int64_t> sizes;  // of tensors that share their start, the longest
    for (const TensorView& tensor : program->tensors()) {
      const int64_t bytes =
          element_count(tensor.shape, tensor.name) * static_cast<int64_t>(dtype_bytes(tensor.dtype));
      int64_t& size = sizes[tensor.data];
      size = bytes > size ? bytes : size;
    }
    for (const auto& [tensor, bytes] : sizes) {
      tensors_[tensor] = work_->input(static_cast<const char*>(tensor), bytes);
    }
    std::vector<Term> terms = program->terms();
    for (Term& term : terms) visit(term, [&](auto& t) { move(t); });
    count_ = static_cast<int32_t>(terms.size());
    terms_ = work_->input(terms.data(), count_);
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
      std::vector<std::decay_t<decltype(*term.segments)>> segments(term.segments, term.segments + term.count);
      for (auto& segment : segments) segment.each_tensor(follow);
      term.segments = work_->input(segments.data(), term.count);
    } else {
      term.each_tensor(follow);
    }
  }

  Work* work_;
  std::map<const void*, const void*> tensors_;  // the caller's, and those on the device
  const Term* terms_ = nullptr;
  int32_t count_ = 0;
};

}  // namespace attention_bias::cuda
