#include <cstring>

#include "cuda/cuda.h"

namespace attention_bias::cuda {

std::string self_test(int device) {
  // One camera at the origin that looks along +x, focal length 1,000 pixels, and points all round it.
  constexpr int64_t kPoints = 1000;
  const float lidar2img[16] = {800, -1000, 0, 0, 450, 0, -1000, 0, 1, 0, 0, 0, 0, 0, 0, 1};
  std::vector<float> points(kPoints * 3), bev(kPoints * 2), camera(kPoints * 3), host_bev(bev),
      host_camera(camera);
  for (int64_t i = 0; i < kPoints * 3; ++i) points[i] = static_cast<float>((i * 7919 + 1) % 10007) / 10007.0f;
  ProjectProblem p;
  p.batch = 1;
  p.queries = kPoints;
  p.views = 1;
  p.reference_points = points.data();
  p.lidar2img = lidar2img;
  p.range = {-54, -54, -5, 54, 54, 3};
  p.image_shape = {900, 1600};
  p.feature_shape = {40, 100};
  p.bev_shape = {180, 180};
  p.bev_centers = bev.data();
  p.camera_centers = camera.data();
  try {
    make_backend(device)->project(p, nullptr);
  } catch (const Error& error) {
    return error.what();
  }
  const ProjectGeometry geometry = project_geometry(p);
  for (int64_t i = 0; i < kPoints; ++i) {
    project_point(geometry, &points[i * 3], lidar2img, &host_bev[i * 2], &host_camera[i * 3]);
  }
  const bool same = std::memcmp(bev.data(), host_bev.data(), bev.size() * sizeof(float)) == 0 &&
                    std::memcmp(camera.data(), host_camera.data(), camera.size() * sizeof(float)) == 0;
  return same ? "" : "projected cells differ from the host's";
}

}  // namespace attention_bias::cuda
