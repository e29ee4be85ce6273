// Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021): its arguments, checked, and THE
// definition of a bilinear sample, for all backends and the float64 reference. B batch, Q queries, H heads,
// L levels, P points of a query, head and level, S pixels of all levels, D channels of a head.
//
//   out[b, q, h·D + d] = Σ_l Σ_p weight[b, q, h, l, p] · level l of value[b, :, h, d] at location[b, q, h, l,
//   p]
//
// A location (x, y) is in units of the level's size: x·width − 0.5 is its place among the pixels, whose
// centres lie at whole numbers. Outside the level is 0; a location that is NaN is outside.
#pragma once

#include <cstdint>
#include <vector>

#include "core/annotations.h"
#include "core/operations.h"

namespace attention_bias {

struct DeformableLevel {
  int32_t height, width;
  int32_t start;  // its first pixel in value
};

struct DeformableProblem {
  int64_t batch = 0, pixels = 0, heads = 0, head_dim = 0, queries = 0, points = 0;
  std::vector<DeformableLevel> levels;
  HeadRows value;                    // [B, S, H, D]
  const float* locations = nullptr;  // [B, Q, H, L, P, 2] (x, y)
  const float* weights = nullptr;    // [B, Q, H, L, P]
  float* out = nullptr;              // [B, Q, H·D]

  int64_t level_count() const { return static_cast<int64_t>(levels.size()); }
  int64_t rows() const { return batch * queries; }
  int64_t head_samples() const { return level_count() * points; }  // of one query and head
  int64_t samples() const { return rows() * heads * head_samples(); }
  int64_t value_count() const { return batch * pixels * heads * head_dim; }
  int64_t out_count() const { return rows() * heads * head_dim; }
};

struct DeformableBackwardProblem {
  DeformableProblem forward;        // but for out
  const float* grad_out = nullptr;  // [B, Q, H·D]
  float* grad_value = nullptr;      // [B, S, H, D]
  float* grad_locations = nullptr;  // [B, Q, H, L, P, 2]
  float* grad_weights = nullptr;    // [B, Q, H, L, P]
  bool deterministic = false;       // whether sums have one order, so that the same call gives the same bits
};

// Checks ranks, dtypes and sizes against each other, and fills all but out. `spatial_shapes`: [h, w] of each
// level.
DeformableProblem deformable_problem(const TensorView& value,
                                     const std::vector<std::vector<int64_t>>& spatial_shapes,
                                     const TensorView& sampling_locations,
                                     const TensorView& attention_weights);

// The same with grad_out; fills all but the gradients.
DeformableBackwardProblem deformable_backward_problem(const DeformableProblem& forward,
                                                      const TensorView& grad_out);

// A point among the pixels of a level. Corner 2·j + i of the four round it is i to the right and j below the
// first; one outside the level takes the place of a neighbour inside, so that its pixel may be read, but not
// used.
template <class Real>
struct BilinearPoint {
  int32_t pixel;        // of corner 0, in value
  int32_t right, down;  // from there to the right and the lower corners, in pixels; 0 where one is outside
  uint32_t inside;      // bit c: corner c is inside; none: the point is outside
  Real x, y;            // how far it lies from corner 0, in [0, 1]

  AB_HD bool has(int corner) const { return (inside >> corner & 1) != 0; }
  AB_HD int32_t corner_pixel(int corner) const {
    return pixel + (corner & 1 ? right : 0) + (corner & 2 ? down : 0);
  }
  // Of the corner's pixel in the sample.
  AB_HD Real corner_weight(int corner) const {
    const Real product = (corner & 1 ? x : 1 - x) * (corner & 2 ? y : 1 - y);
    return product * static_cast<Real>(inside >> corner & 1);
  }
};

// Places are computed in float64, which holds them exactly: float32 would move them by 1e-5 pixels in a map
// of 200, and over a pixel's centre, where derivatives jump. Compilers make vectors of it: it has no
// branches, and no condition on float64 chooses an integer.
template <class Real>
AB_HD BilinearPoint<Real> bilinear_point(const DeformableLevel& level, float location_x, float location_y) {
  // Outside whatever the level's size: a location outside, but none whose place passes an integer.
  const float near_x = (location_x >= -0.5f) & (location_x < 1.5f) ? location_x : -1;
  const float near_y = (location_y >= -0.5f) & (location_y < 1.5f) ? location_y : -1;
  const double place_x = static_cast<double>(near_x) * level.width - 0.5;
  const double place_y = static_cast<double>(near_y) * level.height - 0.5;
  const double floor_x = __builtin_floor(place_x), floor_y = __builtin_floor(place_y);
  const int32_t x = static_cast<int32_t>(floor_x), y = static_cast<int32_t>(floor_y);
  const int32_t left = (x >= 0) & (x < level.width), right = (x >= -1) & (x + 1 < level.width);
  const int32_t top = (y >= 0) & (y < level.height), bottom = (y >= -1) & (y + 1 < level.height);
  BilinearPoint<Real> point;
  // Unsigned, so that the product may wrap where no such pixel is.
  const uint32_t above = static_cast<uint32_t>(y & -top) * static_cast<uint32_t>(level.width);
  point.pixel = level.start + static_cast<int32_t>(above) + (x & -left);
  point.right = left & right;
  point.down = level.width & -(top & bottom);
  point.inside =
      static_cast<uint32_t>((left & top) | (right & top) << 1 | (left & bottom) << 2 | (right & bottom) << 3);
  point.x = static_cast<Real>(place_x - floor_x);
  point.y = static_cast<Real>(place_y - floor_y);
  return point;
}

// A sample and its derivatives by the point's place in pixels, where its corners have these values: linear in
// them. At a pixel's centre the derivatives are those to the right and below (floor).
template <class Real>
struct PointSample {
  Real value, by_x, by_y;
};

template <class Real>
AB_HD PointSample<Real> sample_point(const BilinearPoint<Real>& point, const Real (&corners)[4]) {
  const Real a = point.has(0) ? corners[0] : 0, b = point.has(1) ? corners[1] : 0;
  const Real c = point.has(2) ? corners[2] : 0, d = point.has(3) ? corners[3] : 0;
  const Real x = point.x, y = point.y;
  return {(1 - y) * ((1 - x) * a + x * b) + y * ((1 - x) * c + x * d), (1 - y) * (b - a) + y * (d - c),
          (1 - x) * (c - a) + x * (d - b)};
}

}  // namespace attention_bias
