// Projection of reference points to cells of the bird's-eye view and of the cameras (`project`): CMT's and
// MoME's reference points, lidar2img as in mmdetection3d. In float64, so that a cell is the exact one.
#pragma once

#include <cstdint>

#include "core/annotations.h"

namespace attention_bias {

struct ProjectGeometry {
  double low[3], size[3];                                       // of the point cloud range, metres
  double image_height, image_width;                             // pixels
  double feature_height, feature_width, bev_height, bev_width;  // cells
  int64_t views;
};

// One reference point [3] in [0, 1] with the matrices [V, 4, 4] of its batch row. Writes bev (y, x) and
// camera (view, y, x): cells as floats, not clamped; the first view that sees the point, or (−1, −1, −1).
AB_HD void project_point(const ProjectGeometry& g, const float* point, const float* lidar2img, float* bev,
                         float* camera) {
  bev[0] = static_cast<float>(__builtin_floor(static_cast<double>(point[1]) * g.bev_height));
  bev[1] = static_cast<float>(__builtin_floor(static_cast<double>(point[0]) * g.bev_width));
  const double x = point[0] * g.size[0] + g.low[0];
  const double y = point[1] * g.size[1] + g.low[1];
  const double z = point[2] * g.size[2] + g.low[2];
  for (int64_t view = 0; view < g.views; ++view) {
    const float* m = lidar2img + view * 16;
    const double depth = m[8] * x + m[9] * y + m[10] * z + m[11];
    if (!(depth > 1e-5)) continue;
    const double u = (m[0] * x + m[1] * y + m[2] * z + m[3]) / depth;
    const double v = (m[4] * x + m[5] * y + m[6] * z + m[7]) / depth;
    if (!(u >= 0 && u < g.image_width && v >= 0 && v < g.image_height)) continue;
    camera[0] = static_cast<float>(view);
    camera[1] = static_cast<float>(__builtin_floor(v * g.feature_height / g.image_height));
    camera[2] = static_cast<float>(__builtin_floor(u * g.feature_width / g.image_width));
    return;
  }
  camera[0] = camera[1] = camera[2] = -1.0f;
}

}  // namespace attention_bias
