#include "core/deformable.h"

#include <string>

namespace attention_bias {

namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // so that a pixel with a row added fits 32 bits

std::string to_text(const std::vector<std::vector<int64_t>>& shapes) {
  std::string text = "[";
  for (size_t i = 0; i < shapes.size(); ++i) text += (i > 0 ? ", " : "") + to_string(shapes[i]);
  return text + "]";
}

std::vector<DeformableLevel> read_levels(const std::vector<std::vector<int64_t>>& shapes,
                                         const TensorView& value) {
  const auto refuse = [&](const std::string& what, const std::string& why) {
    throw expected(ErrorCode::kValue, what, "spatialShapes", to_text(shapes) + why);
  };
  if (shapes.empty()) refuse("a list of at least one [h, w]", "");
  const int64_t pixels = value.shape[1];
  std::vector<DeformableLevel> levels;
  int64_t start = 0;
  for (const std::vector<int64_t>& shape : shapes) {
    if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1) {
      refuse("a list of [h, w], integers of at least 1,", "");
    }
    // Compared by division first, since the product may pass 64 bits.
    if (shape[0] > (pixels - start) / shape[1]) {
      refuse("sizes that sum to value's " + std::to_string(pixels) + " pixels", ", which have more");
    }
    levels.push_back(
        {static_cast<int32_t>(shape[0]), static_cast<int32_t>(shape[1]), static_cast<int32_t>(start)});
    start += shape[0] * shape[1];
  }
  if (start != pixels) {
    refuse("sizes that sum to value's " + std::to_string(pixels) + " pixels",
           ", which have " + std::to_string(start));
  }
  return levels;
}

}  // namespace

DeformableProblem deformable_problem(const TensorView& value,
                                     const std::vector<std::vector<int64_t>>& spatial_shapes,
                                     const TensorView& sampling_locations,
                                     const TensorView& attention_weights) {
  require_rank(value, 4, "[B, S, H, D]", true);
  require_rank(sampling_locations, 6, "[B, Q, H, L, P, 2]");
  DeformableProblem p;
  p.batch = value.shape[0];
  p.pixels = value.shape[1];
  p.heads = value.shape[2];
  p.head_dim = value.shape[3];
  if (p.pixels > kMaxPixels) {
    throw expected(ErrorCode::kShape, "at most 2^30 pixels", value.name, to_string(value.shape));
  }
  if (p.head_dim > kMaxHeadDim) {
    throw expected(ErrorCode::kShape, "a head dim of at most " + std::to_string(kMaxHeadDim), value.name,
                   to_string(value.shape));
  }
  p.levels = read_levels(spatial_shapes, value);
  p.queries = sampling_locations.shape[1];
  p.points = sampling_locations.shape[4];
  require(sampling_locations, DType::kFloat32,
          {dim(p.batch), dim(p.queries), dim(p.heads), dim(p.level_count()), dim(p.points), dim(2)},
          "[B, Q, H, L, P, 2]");
  if (p.queries > kMaxPixels || p.heads * p.head_samples() > kMaxPixels) {
    throw expected(ErrorCode::kShape, "at most 2^30 queries, and H·L·P", sampling_locations.name,
                   to_string(sampling_locations.shape));
  }
  require(attention_weights, DType::kFloat32,
          {dim(p.batch), dim(p.queries), dim(p.heads), dim(p.level_count()), dim(p.points)},
          "[B, Q, H, L, P]");
  element_count({p.batch, p.queries, p.heads, p.head_dim}, "out");
  p.value = {value.data, value.dtype};
  p.locations = sampling_locations.f32();
  p.weights = attention_weights.f32();
  return p;
}

DeformableBackwardProblem deformable_backward_problem(const DeformableProblem& forward,
                                                      const TensorView& grad_out) {
  require(grad_out, DType::kFloat32,
          {dim(forward.batch), dim(forward.queries), dim(forward.heads * forward.head_dim)}, "[B, Q, H·D]");
  DeformableBackwardProblem p;
  p.forward = forward;
  p.grad_out = grad_out.f32();
  return p;
}

}  // namespace attention_bias
