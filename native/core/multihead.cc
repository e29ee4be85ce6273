#include "core/multihead.h"

#include <cmath>
#include <string>

namespace attention_bias {

namespace {

void require_features(const TensorView& view) {
  for (const int64_t size : view.shape) {
    if (size <= kMaxFeatures) continue;
    throw expected(ErrorCode::kShape, "at most 2^30 features", view.name, to_string(view.shape));
  }
}

}  // namespace

LinearProblem linear_problem(const TensorView& input, const TensorView& weight, const TensorView* bias) {
  require_rank(weight, 2, "[N, E]");
  require_features(weight);
  LinearProblem p;
  p.batch = 1;
  p.features = weight.shape[1];
  p.outputs = weight.shape[0];
  std::vector<Dim> dims;
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < input.shape.size(); ++i) {
    dims.push_back(dim(input.shape[i]));
    rows *= input.shape[i];
  }
  dims.push_back(dim(p.features));
  require(input, DType::kFloat32, dims, "[.., E]");
  if (bias) require(*bias, DType::kFloat32, {dim(p.outputs)}, "[N]");
  p.tokens = rows;
  p.input = input.f32();
  p.weight = weight.f32();
  p.bias = bias ? bias->f32() : nullptr;
  return p;
}

MultiheadProblem multihead_problem(const MultiheadTensors& t, int64_t heads) {
  require_rank(*t.query, 3, "[B, Q, E]");
  require_rank(*t.key, 3, "[B, K, E]");
  MultiheadProblem p;
  const int64_t features = t.query->shape[2];
  if (heads < 1 || features % heads != 0) {
    throw expected(ErrorCode::kValue, "a divisor of E = " + std::to_string(features), "heads",
                   std::to_string(heads));
  }
  if (features / heads > kMaxHeadDim) {
    throw expected(ErrorCode::kShape, "a head dim of at most " + std::to_string(kMaxHeadDim), t.query->name,
                   to_string(t.query->shape));
  }
  require_features(*t.in_weight);
  p.features = features;
  p.extent = {t.query->shape[0], heads, t.query->shape[1], t.key->shape[1]};
  require_extent(p.extent, "[B, H, Q, K]");
  const Dim batch = dim(p.extent.batch), queries = dim(p.extent.queries), keys = dim(p.extent.keys),
            e = dim(features), e3 = dim(3 * features);
  const auto data = [](const TensorView* view, const std::vector<Dim>& dims, const char* letters) {
    if (!view) return static_cast<const float*>(nullptr);
    require(*view, DType::kFloat32, dims, letters);
    return view->f32();
  };
  p.query = data(t.query, {batch, queries, e}, "[B, Q, E]");
  p.key = data(t.key, {batch, keys, e}, "[B, K, E]");
  p.value = data(t.value, {batch, keys, e}, "[B, K, E]");
  p.query_pos = data(t.query_pos, {batch, queries, e}, "[B, Q, E]");
  p.key_pos = data(t.key_pos, {batch, keys, e}, "[B, K, E]");
  p.in_weight = data(t.in_weight, {e3, e}, "[3E, E]");
  p.in_bias = data(t.in_bias, {e3}, "[3E]");
  p.out_weight = data(t.out_weight, {e, e}, "[E, E]");
  p.out_bias = data(t.out_bias, {e}, "[E]");
  return p;
}

MultiheadSizes multihead_sizes(const MultiheadProblem& p) {
  const Extent& e = p.extent;
  const int64_t of_queries = e.batch * e.queries * p.features, of_keys = e.batch * e.keys * p.features;
  return {of_queries, of_keys, of_keys, of_queries, e.batch * e.heads * e.queries};
}

MultiheadParts multihead_parts(const MultiheadProblem& p, const MultiheadMemory& m) {
  const Extent& e = p.extent;
  const int64_t features = p.features;
  // The in-projection's `part`: 0 query, 1 key, 2 value.
  const auto into_heads = [&](int64_t part, const float* input, const float* position, int64_t tokens,
                              float* out) {
    LinearProblem linear;
    linear.batch = e.batch;
    linear.tokens = tokens;
    linear.features = linear.outputs = features;
    linear.input = input;
    linear.position = position;
    linear.weight = p.in_weight + part * features * features;
    linear.bias = p.in_bias ? p.in_bias + part * features : nullptr;
    linear.out = out;
    linear.out_heads = e.heads;
    return linear;
  };
  MultiheadParts parts;
  parts.query = into_heads(0, p.query, p.query_pos, e.queries, m.query);
  parts.key = into_heads(1, p.key, p.key_pos, e.keys, m.key);
  parts.value = into_heads(2, p.value, nullptr, e.keys, m.value);

  AttentionProblem& attention = parts.attention;
  attention.extent = e;
  attention.head_dim = attention.value_dim = features / e.heads;
  attention.query = {m.query, DType::kFloat32};
  attention.key = {m.key, DType::kFloat32};
  attention.value = {m.value, DType::kFloat32};
  attention.out = m.attended;
  attention.lse = m.lse;
  attention.scale = 1 / std::sqrt(static_cast<double>(attention.head_dim));
  attention.precision = p.precision;
  attention.bias = p.bias;

  LinearProblem& out = parts.out;
  out.batch = e.batch;
  out.tokens = e.queries;
  out.features = out.outputs = features;
  out.input = m.attended;
  out.input_heads = e.heads;
  out.weight = p.out_weight;
  out.bias = p.out_bias;
  out.residual = p.identity ? p.query : nullptr;
  out.out = p.out;
  return parts;
}

}  // namespace attention_bias
