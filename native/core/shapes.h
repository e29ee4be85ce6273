// Checked sizes: element types, shapes, views of memory that somebody else owns, and 64-bit products that
// can't wrap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/errors.h"

namespace attention_bias {

enum class DType : uint8_t { kFloat32, kInt32, kUint8, kBfloat16 };

size_t dtype_bytes(DType dtype);
const std::vector<DType>& all_dtypes();
const char* dtype_name(DType dtype);  // float32, int32, uint8, bfloat16

using Shape = std::vector<int64_t>;

std::string to_string(const Shape& shape);  // "[2, 8, 900, 32]"

// A dense row-major tensor in memory that somebody else owns and keeps alive. `name` is what errors call it:
// the field's path, such as bias[0].segments[1].weights.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;
  std::string name;
  bool on_device = false;  // in memory that the host can't read

  const float* f32() const { return static_cast<const float*>(data); }
  const int32_t* i32() const { return static_cast<const int32_t*>(data); }
  const uint8_t* u8() const { return static_cast<const uint8_t*>(data); }
};

// Number of elements. ERR_SHAPE where a dimension is below 1 or the product passes 2^53 (what JavaScript can
// count).
int64_t element_count(const Shape& shape, const std::string& name);

// A pattern's dimension is a number, or one of two with broadcast: dim(4) or one_or(4).
struct Dim {
  int64_t size;
  bool or_one;
};
inline Dim dim(int64_t size) { return {size, false}; }
inline Dim one_or(int64_t size) { return {size, true}; }

// ERR_DTYPE, or ERR_SHAPE unless `view` has that dtype and shape. `letters` names the dimensions, as in "[B,
// H, Q, D]".
void require(const TensorView& view, DType dtype, const std::vector<Dim>& dims, const char* letters);

// ERR_DTYPE, or ERR_SHAPE unless `view` is float32 (or bfloat16 where that may be) of that rank, no dimension
// empty.
void require_rank(const TensorView& view, size_t rank, const char* letters, bool or_bf16 = false);

// Of query, key and value, and the rank of a lowRank term.
constexpr int64_t kMaxHeadDim = 8192;

// The sizes that a bias spans. All at least 1; queries and keys at most 2^30, so that positions with a tile
// or a grid's row added still fit 32 bits.
struct Extent {
  int64_t batch = 1;
  int64_t heads = 1;
  int64_t queries = 1;
  int64_t keys = 1;
};

// ERR_SHAPE unless the extent is one that the package can address.
void require_extent(const Extent& extent, const std::string& name);

// Strides in elements of a [1|B, 1|H, 1|Q, 1|K] tensor, 0 where it is broadcast.
struct BroadcastStrides {
  int64_t batch, head, query, key;
};
BroadcastStrides broadcast_strides(const Shape& shape);

}  // namespace attention_bias
