#include "core/shapes.h"

namespace attention_bias {

namespace {

constexpr int64_t kMaxElements = int64_t{1} << 53;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

bool fits(const Shape& shape, const std::vector<Dim>& dims) {
  if (shape.size() != dims.size()) return false;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (shape[i] != dims[i].size && !(dims[i].or_one && shape[i] == 1)) return false;
  }
  return true;
}

std::string pattern(const std::vector<Dim>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) {
    if (i > 0) text += ", ";
    if (dims[i].or_one && dims[i].size != 1) text += "1|";
    text += std::to_string(dims[i].size);
  }
  return text + "]";
}

}  // namespace

size_t dtype_bytes(DType dtype) { return dtype == DType::kUint8 ? 1 : dtype == DType::kBfloat16 ? 2 : 4; }

const std::vector<DType>& all_dtypes() {
  static const std::vector<DType> all = {DType::kFloat32, DType::kInt32, DType::kUint8, DType::kBfloat16};
  return all;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kInt32:
      return "int32";
    case DType::kUint8:
      return "uint8";
    case DType::kBfloat16:
      return "bfloat16";
  }
  return "unknown";
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t element_count(const Shape& shape, const std::string& name) {
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 1) throw expected(ErrorCode::kShape, "dimensions of at least 1", name, to_string(shape));
    if (size > kMaxElements / count) {
      throw expected(ErrorCode::kShape, "at most 2^53 elements", name, to_string(shape));
    }
    count *= size;
  }
  return count;
}

void require(const TensorView& view, DType dtype, const std::vector<Dim>& dims, const char* letters) {
  if (view.dtype != dtype) {
    throw expected(ErrorCode::kDtype, std::string(dtype_name(dtype)) + " " + letters, view.name,
                   std::string(dtype_name(view.dtype)) + " " + to_string(view.shape));
  }
  if (!fits(view.shape, dims)) {
    throw expected(ErrorCode::kShape, std::string("shape ") + letters + " = " + pattern(dims), view.name,
                   to_string(view.shape));
  }
}

void require_rank(const TensorView& view, size_t rank, const char* letters, bool or_bf16) {
  if (view.dtype != DType::kFloat32 && !(or_bf16 && view.dtype == DType::kBfloat16)) {
    throw expected(ErrorCode::kDtype, std::string(or_bf16 ? "float32 or bfloat16 " : "float32 ") + letters,
                   view.name, std::string(dtype_name(view.dtype)) + " " + to_string(view.shape));
  }
  if (view.shape.size() != rank) {
    throw expected(ErrorCode::kShape, std::string("shape ") + letters, view.name, to_string(view.shape));
  }
  element_count(view.shape, view.name);
}

void require_extent(const Extent& e, const std::string& name) {
  const Shape shape = {e.batch, e.heads, e.queries, e.keys};
  element_count(shape, name);
  if (e.queries > kMaxPositions || e.keys > kMaxPositions) {
    throw expected(ErrorCode::kShape, "at most 2^30 queries and keys", name, to_string(shape));
  }
}

BroadcastStrides broadcast_strides(const Shape& shape) {
  const int64_t key = 1, query = shape[3], head = query * shape[2], batch = head * shape[1];
  return {shape[0] == 1 ? 0 : batch, shape[1] == 1 ? 0 : head, shape[2] == 1 ? 0 : query,
          shape[3] == 1 ? 0 : key};
}

}  // namespace attention_bias
