#include "core/operations.h"

#include <cmath>

namespace attention_bias {

namespace {

std::array<int64_t, 2> size_pair(const std::vector<int64_t>& values, const char* name) {
  if (values.size() != 2 || values[0] < 1 || values[1] < 1) {
    throw expected(ErrorCode::kValue, "[h, w], integers of at least 1", name, to_string(values));
  }
  return {values[0], values[1]};
}

}  // namespace

AttentionProblem attention_problem(const TensorView& query, const TensorView& key, const TensorView& value,
                                   double scale) {
  require_rank(query, 4, "[B, H, Q, D]", true);
  require_rank(key, 4, "[B, H, K, D]", true);
  require_rank(value, 4, "[B, H, K, Dv]", true);
  AttentionProblem p;
  p.extent = {query.shape[0], query.shape[1], query.shape[2], key.shape[2]};
  p.head_dim = query.shape[3];
  p.value_dim = value.shape[3];
  require(key, key.dtype, {dim(p.extent.batch), dim(p.extent.heads), dim(p.extent.keys), dim(p.head_dim)},
          "[B, H, K, D]");
  require(value, value.dtype,
          {dim(p.extent.batch), dim(p.extent.heads), dim(p.extent.keys), dim(p.value_dim)}, "[B, H, K, Dv]");
  require_extent(p.extent, "[B, H, Q, K]");
  if (p.head_dim > kMaxHeadDim) {
    throw expected(ErrorCode::kShape, "a head dim of at most " + std::to_string(kMaxHeadDim), query.name,
                   to_string(query.shape));
  }
  if (p.value_dim > kMaxHeadDim) {
    throw expected(ErrorCode::kShape, "a head dim of at most " + std::to_string(kMaxHeadDim), value.name,
                   to_string(value.shape));
  }
  if (std::isinf(static_cast<float>(scale))) {
    throw expected(ErrorCode::kValue, "a finite float32", "scale", number(scale));
  }
  p.scale = std::isnan(scale) ? 1 / std::sqrt(static_cast<double>(p.head_dim)) : scale;
  p.query = {query.data, query.dtype};
  p.key = {key.data, key.dtype};
  p.value = {value.data, value.dtype};
  return p;
}

void require_grad_out(const TensorView& grad_out, const AttentionProblem& attention) {
  const Extent& e = attention.extent;
  require(grad_out, DType::kFloat32, {dim(e.batch), dim(e.heads), dim(e.queries), dim(attention.value_dim)},
          "[B, H, Q, Dv]");
}

void require_results(const TensorView& out, const TensorView& lse, const AttentionProblem& attention) {
  const Extent& e = attention.extent;
  require(out, DType::kFloat32, {dim(e.batch), dim(e.heads), dim(e.queries), dim(attention.value_dim)},
          "[B, H, Q, Dv]");
  require(lse, DType::kFloat32, {dim(e.batch), dim(e.heads), dim(e.queries)}, "[B, H, Q]");
}

Shape bias_shape(const Program& bias) {
  const Extent& e = bias.extent();
  return {bias.depends_on_batch() ? e.batch : 1, bias.depends_on_head() ? e.heads : 1, e.queries, e.keys};
}

RouterProblem router_problem(const TensorView& features, const TensorView& weight, const TensorView& bias) {
  require_rank(features, 3, "[B, Q, E]");
  require_rank(weight, 2, "[M, E]");
  RouterProblem p;
  p.rows = features.shape[0] * features.shape[1];
  p.features = features.shape[2];
  p.outputs = weight.shape[0];
  require(weight, DType::kFloat32, {dim(p.outputs), dim(p.features)}, "[M, E]");
  require(bias, DType::kFloat32, {dim(p.outputs)}, "[M]");
  p.input = features.f32();
  p.weight = weight.f32();
  p.bias = bias.f32();
  return p;
}

ProjectProblem project_problem(const TensorView& reference_points,
                               const std::vector<double>& point_cloud_range, const TensorView& lidar2img,
                               const std::vector<int64_t>& image_shape,
                               const std::vector<int64_t>& feature_shape,
                               const std::vector<int64_t>& bev_shape) {
  require_rank(reference_points, 3, "[B, Q, 3]");
  require_rank(lidar2img, 4, "[B, V, 4, 4]");
  ProjectProblem p;
  p.batch = reference_points.shape[0];
  p.queries = reference_points.shape[1];
  p.views = lidar2img.shape[1];
  require(reference_points, DType::kFloat32, {dim(p.batch), dim(p.queries), dim(3)}, "[B, Q, 3]");
  require(lidar2img, DType::kFloat32, {dim(p.batch), dim(p.views), dim(4), dim(4)}, "[B, V, 4, 4]");
  bool good = point_cloud_range.size() == 6;
  for (size_t i = 0; good && i < 6; ++i) good = std::isfinite(point_cloud_range[i]);
  for (size_t i = 0; good && i < 3; ++i) good = point_cloud_range[i] < point_cloud_range[i + 3];
  if (!good) {
    std::string received = "[";
    for (size_t i = 0; i < point_cloud_range.size(); ++i) {
      received += (i > 0 ? ", " : "") + std::to_string(point_cloud_range[i]);
    }
    throw expected(ErrorCode::kValue, "[x0, y0, z0, x1, y1, z1], finite, each low below its high,",
                   "pointCloudRange", received + "]");
  }
  for (size_t i = 0; i < 6; ++i) p.range[i] = point_cloud_range[i];
  p.image_shape = size_pair(image_shape, "imageShape");
  p.feature_shape = size_pair(feature_shape, "featureShape");
  p.bev_shape = size_pair(bev_shape, "bevShape");
  p.reference_points = reference_points.f32();
  p.lidar2img = lidar2img.f32();
  return p;
}

ValueCheck reference_points_check(const TensorView& reference_points) {
  return {reference_points, 0.0f, 1.0f, "values in [0, 1]"};
}

ProjectGeometry project_geometry(const ProjectProblem& p) {
  ProjectGeometry g = {};
  for (int i = 0; i < 3; ++i) {
    g.low[i] = p.range[i];
    g.size[i] = p.range[i + 3] - p.range[i];
  }
  g.image_height = static_cast<double>(p.image_shape[0]);
  g.image_width = static_cast<double>(p.image_shape[1]);
  g.feature_height = static_cast<double>(p.feature_shape[0]);
  g.feature_width = static_cast<double>(p.feature_shape[1]);
  g.bev_height = static_cast<double>(p.bev_shape[0]);
  g.bev_width = static_cast<double>(p.bev_shape[1]);
  g.views = p.views;
  return g;
}

}  // namespace attention_bias
