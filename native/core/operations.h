// The operations' arguments, checked, as every backend takes them. Letters as in docs/terms.md.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "core/program.h"
#include "core/project.h"
#include "core/shapes.h"

namespace attention_bias {

// Set by another thread to stop an operation between tiles; nullptr: never.
using AbortFlag = const std::atomic<bool>*;

// Of the arithmetic.
enum class Precision : uint8_t { kF32, kTf32, kBf16 };

// A tensor of an attention: float32, or bfloat16 as its bits.
struct HeadRows {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;

  AB_HD const float* f32() const { return static_cast<const float*>(data); }
  AB_HD const uint16_t* bf16() const { return static_cast<const uint16_t*>(data); }
  AB_HD float at(int64_t i) const { return dtype == DType::kBfloat16 ? bf16_to_float(bf16()[i]) : f32()[i]; }
};

struct AttentionProblem {
  Extent extent;
  int64_t head_dim = 0;   // D
  int64_t value_dim = 0;  // Dv
  HeadRows query;         // [B, H, Q, D]
  HeadRows key;           // [B, H, K, D]
  HeadRows value;         // [B, H, K, Dv]
  float* out = nullptr;   // [B, H, Q, Dv]
  float* lse = nullptr;   // [B, H, Q]
  double scale = 0;
  Precision precision = Precision::kF32;
  const Program* bias = nullptr;
};

// Checks ranks, dtypes and sizes of query, key and value against each other, and fills all but out, lse and
// bias. `scale` NaN means 1/sqrt(D); infinite is refused.
AttentionProblem attention_problem(const TensorView& query, const TensorView& key, const TensorView& value,
                                   double scale);

// The gradients of Σ out·grad_out by query, key, value and the bias's learnable tensors.
struct BackwardProblem {
  AttentionProblem attention;       // out and lse are inputs here
  const float* grad_out = nullptr;  // [B, H, Q, Dv]
  float* grad_query = nullptr;      // [B, H, Q, D]
  float* grad_key = nullptr;        // [B, H, K, D]
  float* grad_value = nullptr;      // [B, H, K, Dv]
  // As bias->learnables() and of their shapes; empty where nobody wants them.
  std::vector<float*> grad_terms;
};

// Checks grad_out against the attention's shape.
void require_grad_out(const TensorView& grad_out, const AttentionProblem& attention);

// Checks what an attention gave against its shape.
void require_results(const TensorView& out, const TensorView& lse, const AttentionProblem& attention);

struct BiasProblem {
  const Program* bias = nullptr;
  void* out = nullptr;            // bias_shape()
  DType dtype = DType::kFloat32;  // of out; or kBfloat16, the float32 rounded once more
};

// [1|B, 1|H, Q, K]
Shape bias_shape(const Program& bias);

struct RouterProblem {
  int64_t rows = 0;               // B·Q
  int64_t features = 0;           // E
  int64_t outputs = 0;            // M
  const float* input = nullptr;   // [B, Q, E]
  const float* weight = nullptr;  // [M, E]
  const float* bias = nullptr;    // [M]
  float* out = nullptr;           // [B, Q, M], or [M, B, Q]
  bool outputs_first = false;

  // Where output m of row b·Q + q is.
  AB_HD int64_t out_index(int64_t row, int64_t m) const {
    return outputs_first ? m * rows + row : row * outputs + m;
  }
};

RouterProblem router_problem(const TensorView& features, const TensorView& weight, const TensorView& bias);

// The gradients of Σ weights·grad_out.
struct RouterBackwardProblem {
  RouterProblem router;             // `out` is neither read nor written
  const float* grad_out = nullptr;  // as the router's out
  float* grad_features = nullptr;   // [B, Q, E]
  float* grad_weight = nullptr;     // [M, E]
  float* grad_bias = nullptr;       // [M]
};

struct ProjectProblem {
  int64_t batch = 0, queries = 0, views = 0;
  const float* reference_points = nullptr;  // [B, Q, 3]
  const float* lidar2img = nullptr;         // [B, V, 4, 4]
  std::array<double, 6> range{};            // x0, y0, z0, x1, y1, z1 in metres
  std::array<int64_t, 2> image_shape{}, feature_shape{}, bev_shape{};
  float* bev_centers = nullptr;     // [B, Q, 2] (y, x)
  float* camera_centers = nullptr;  // [B, Q, 3] (view, y, x)
};

ProjectProblem project_problem(const TensorView& reference_points,
                               const std::vector<double>& point_cloud_range, const TensorView& lidar2img,
                               const std::vector<int64_t>& image_shape,
                               const std::vector<int64_t>& feature_shape,
                               const std::vector<int64_t>& bev_shape);

// Reference points lie in [0, 1].
ValueCheck reference_points_check(const TensorView& reference_points);

ProjectGeometry project_geometry(const ProjectProblem& problem);

}  // namespace attention_bias
