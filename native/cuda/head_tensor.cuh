// A tensor of an attention, [B·H, rows, dim], on its way to a kernel: on the device already or copied there
// in pieces, and in the type that the kernel reads.
#pragma once

#include <string>

#include "core/operations.h"
#include "cuda/attention_kernel.cuh"
#include "cuda/convert_kernel.cuh"
#include "cuda/work.cuh"

namespace attention_bias::cuda {

class HeadTensor {
 public:
  // `twin` may be the same tensor in another role, whose copies then serve both.
  HeadTensor(Work* work, const HeadRows& tensor, int64_t heads, int64_t rows, int64_t columns,
             HeadTensor* twin = nullptr)
      : work_(work),
        given_(static_cast<const char*>(tensor.data)),
        bf16_(tensor.dtype == DType::kBfloat16),
        heads_(heads),
        rows_(rows),
        columns_(columns) {
    if (twin && twin->given_ == given_ && twin->bf16_ == bf16_ && twin->rows_ == rows &&
        twin->columns_ == columns) {
      twin_ = twin;
    } else if (work->on_device(given_)) {
      device_ = work->input(given_, heads * head_bytes());
    } else {
      device_ = copy_ = work->allocate<char>(heads * head_bytes());
    }
  }

  int64_t missing_head_bytes() const { return copy_ ? head_bytes() : 0; }

  // As it was given.
  HeadRows as_given() const {
    if (twin_) return twin_->as_given();
    return {device_, bf16_ ? DType::kBfloat16 : DType::kFloat32};
  }
  // In float32, after convert().
  const float* in_f32() {
    if (twin_) return twin_->in_f32();
    if (!bf16_) return as_given().f32();
    if (!widened_) widened_ = work_->allocate<float>(heads_ * rows_ * columns_);
    return widened_;
  }
  // In bfloat16, rows padded to a multiple of 8, after convert().
  const uint16_t* in_padded_bf16() {
    if (twin_) return twin_->in_padded_bf16();
    if (bf16_ && padded() == columns_) return as_given().bf16();
    if (!narrowed_) narrowed_ = work_->allocate<uint16_t>(heads_ * rows_ * padded());
    return narrowed_;
  }

  // Queues the copy of what is missing of heads [first, end).
  void upload(int64_t first, int64_t end) {
    if (!copy_) return;
    const int64_t at = first * head_bytes();
    work_->upload(copy_ + at, given_ + at, (end - first) * head_bytes());
  }
  // Launches what makes of these heads what was asked for.
  void convert(int64_t first, int64_t end) {
    if (widened_) {
      const int64_t size = rows_ * columns_;
      work_->launch(widen_kernel, runs_grid((end - first) * size), kConvertThreads, size_t{0},
                    as_given().bf16(), widened_, first * size, end * size);
    }
    if (narrowed_) {
      const int64_t elements = (end - first) * rows_ * padded();
      work_->launch(narrow_kernel, runs_grid(elements), kConvertThreads, size_t{0}, as_given(), narrowed_,
                    first * rows_, elements / kConvertRun, static_cast<int32_t>(padded() / kConvertRun),
                    static_cast<int32_t>(columns_));
    }
  }

 private:
  int64_t head_bytes() const {
    return rows_ * columns_ * static_cast<int64_t>(bf16_ ? sizeof(uint16_t) : sizeof(float));
  }
  int64_t padded() const { return padded_dim(static_cast<int32_t>(columns_)); }
  static Grid runs_grid(int64_t elements) {
    return grid_of(elements, int64_t{kConvertThreads} * kConvertRun);
  }

  Work* work_;
  const char* given_;
  bool bf16_;
  int64_t heads_, rows_, columns_;
  HeadTensor* twin_ = nullptr;
  const char* device_ = nullptr;
  char* copy_ = nullptr;  // device_, where the tensor is the host's
  float* widened_ = nullptr;
  uint16_t* narrowed_ = nullptr;
};

}  // namespace attention_bias::cuda
