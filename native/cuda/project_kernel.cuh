// Projection of reference points, a thread a point. It reads 12 bytes and V·64 bytes of matrices a point, the
// matrices from cache, and writes 20: bound by latency at 900 points, so it only spares a round trip to the
// host. Float64, for exact cells; at most V·30 operations a point.
#pragma once

#include "core/project.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

constexpr int kProjectThreads = 128;

AB_KERNEL void project_kernel(ProjectGeometry geometry, int64_t points, int64_t queries,
                              const float* reference_points, const float* lidar2img, float* bev_centers,
                              float* camera_centers) {
  const int64_t i = static_cast<int64_t>(block_x()) * kProjectThreads + thread_index();
  if (i >= points) return;
  project_point(geometry, reference_points + i * 3, lidar2img + i / queries * geometry.views * 16,
                bev_centers + i * 2, camera_centers + i * 3);
}

}  // namespace attention_bias::cuda
