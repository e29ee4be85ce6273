#include <cmath>
#include <cstring>

#include "core/reference.h"
#include "cuda/cuda.h"

namespace attention_bias::cuda {

namespace {

// Whole numbers that look random, in [0, 1).
float fraction(int64_t i) { return static_cast<float>((i * 7919 + 1) % 10007) / 10007.0f; }

std::vector<float> centred(int64_t count, int64_t seed) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) values[i] = 4 * fraction(i + seed) - 2;
  return values;
}

double relative_error(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return std::sqrt(difference / norm);
}

std::string compare_project(Backend* backend) {
  // One camera at the origin that looks along +x, focal length 1,000 pixels, and points all round it.
  constexpr int64_t kPoints = 1000;
  const float lidar2img[16] = {800, -1000, 0, 0, 450, 0, -1000, 0, 1, 0, 0, 0, 0, 0, 0, 1};
  std::vector<float> points(kPoints * 3), bev(kPoints * 2), camera(kPoints * 3), host_bev(bev),
      host_camera(camera);
  for (int64_t i = 0; i < kPoints * 3; ++i) points[i] = fraction(i);
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
  backend->project(p, nullptr);
  const ProjectGeometry geometry = project_geometry(p);
  for (int64_t i = 0; i < kPoints; ++i) {
    project_point(geometry, &points[i * 3], lidar2img, &host_bev[i * 2], &host_camera[i * 3]);
  }
  const bool same = std::memcmp(bev.data(), host_bev.data(), bev.size() * sizeof(float)) == 0 &&
                    std::memcmp(camera.data(), host_camera.data(), camera.size() * sizeof(float)) == 0;
  return same ? "" : "projected cells differ from the host's";
}

// Two heads under a modality, a causal and a padding term, against the float64 reference.
std::string compare_attention(Backend* backend) {
  constexpr int64_t kQueries = 70, kKeys = 300, kDim = 32;
  std::vector<float> query = centred(2 * kQueries * kDim, 1), key = centred(2 * kKeys * kDim, 2),
                     value = centred(2 * kKeys * kDim, 3), weights(kQueries), out(query.size()),
                     lse(2 * kQueries);
  for (int64_t i = 0; i < kQueries; ++i) weights[i] = fraction(i);
  std::vector<uint8_t> ignore(kKeys);
  for (int64_t i = 0; i < kKeys; ++i) ignore[i] = i % 7 == 0;
  const auto view = [](void* data, DType dtype, Shape shape) {
    return TensorView{data, dtype, std::move(shape), "self-test"};
  };
  AttentionProblem p = attention_problem(view(query.data(), DType::kFloat32, {1, 2, kQueries, kDim}),
                                         view(key.data(), DType::kFloat32, {1, 2, kKeys, kDim}),
                                         view(value.data(), DType::kFloat32, {1, 2, kKeys, kDim}), NAN);
  Program bias(p.extent);
  bias.add_modality(5, {{0, 200, view(weights.data(), DType::kFloat32, {1, kQueries})}}, "bias[0]");
  bias.add_causal(Align::kBottomRight, "bias[1]");
  bias.add_padding(view(ignore.data(), DType::kUint8, {1, kKeys}), "bias[2]");
  p.bias = &bias;
  p.out = out.data();
  p.lse = lse.data();
  std::vector<double> want(out.size()), want_lse(lse.size());
  reference_attention(p, want.data(), want_lse.data());
  constexpr struct {
    Precision precision;
    double tolerance;
    const char* name;
  } kPrecisions[] = {
      {Precision::kF32, 2e-6, "f32"}, {Precision::kTf32, 1e-3, "tf32"}, {Precision::kBf16, 1e-2, "bf16"}};
  for (const auto& [precision, tolerance, name] : kPrecisions) {
    p.precision = precision;
    backend->attention(p, nullptr);
    const double error = relative_error(out, want);
    if (!(error <= tolerance)) {
      return std::string("attention in ") + name + " has an error of " + number(error) + ", more than " +
             number(tolerance);
    }
  }
  return "";
}

// Two levels under samples inside and outside, with every gradient and both ways of summing that by value.
std::string compare_deformable(Backend* backend) {
  constexpr int64_t kQueries = 50, kHeads = 2, kDim = 32, kPoints = 4, kPixels = 8 * 9 + 3 * 5;
  constexpr int64_t kSamples = kQueries * kHeads * 2 * kPoints;
  std::vector<float> value = centred(kPixels * kHeads * kDim, 1), locations = centred(2 * kSamples, 2),
                     weights = centred(kSamples, 3), grad_out = centred(kQueries * kHeads * kDim, 4);
  for (float& x : locations) x = 0.3f * x + 0.5f;
  const auto view = [](std::vector<float>& data, Shape shape) {
    return TensorView{data.data(), DType::kFloat32, std::move(shape), "self-test"};
  };
  DeformableBackwardProblem p = deformable_backward_problem(
      deformable_problem(view(value, {1, kPixels, kHeads, kDim}), {{8, 9}, {3, 5}},
                         view(locations, {1, kQueries, kHeads, 2, kPoints, 2}),
                         view(weights, {1, kQueries, kHeads, 2, kPoints})),
      view(grad_out, {1, kQueries, kHeads * kDim}));
  std::vector<float> got[] = {grad_out, value, locations, weights};  // sizes are theirs
  std::vector<double> want[4];
  for (int i = 0; i < 4; ++i) want[i].resize(got[i].size());
  reference_deformable(p.forward, want[0].data());
  reference_deformable_backward(p, want[1].data(), want[2].data(), want[3].data());
  p.forward.out = got[0].data();
  p.grad_value = got[1].data();
  p.grad_locations = got[2].data();
  p.grad_weights = got[3].data();
  backend->deformable(p.forward, nullptr);
  for (const bool deterministic : {false, true}) {
    p.deterministic = deterministic;
    backend->deformable_backward(p, nullptr);
    constexpr double kTolerance = 1e-5;
    for (int i = 0; i < 4; ++i) {
      const double error = relative_error(got[i], want[i]);
      if (!(error <= kTolerance)) {
        return std::string("deformable attention's ") +
               (i == 0 ? "output" : "gradient " + std::to_string(i)) + " has an error of " + number(error) +
               ", more than " + number(kTolerance);
      }
    }
  }
  return "";
}

// Two heads of 9 dims each, with positions, biases, a causal term and the query added.
std::string compare_multihead(Backend* backend) {
  constexpr int64_t kQueries = 70, kKeys = 90, kFeatures = 18;
  std::vector<std::vector<float>> tensors;
  const auto view = [&](Shape shape, float scale = 0.5f) {
    tensors.push_back(centred(element_count(shape, "self-test"), static_cast<int64_t>(tensors.size())));
    for (float& x : tensors.back()) x *= scale;
    return TensorView{tensors.back().data(), DType::kFloat32, std::move(shape), "self-test"};
  };
  const TensorView query = view({1, kQueries, kFeatures}), query_pos = view({1, kQueries, kFeatures}),
                   key = view({1, kKeys, kFeatures}), key_pos = view({1, kKeys, kFeatures}),
                   in_weight = view({3 * kFeatures, kFeatures}, 0.2f), in_bias = view({3 * kFeatures}),
                   out_weight = view({kFeatures, kFeatures}, 0.2f), out_bias = view({kFeatures});
  MultiheadProblem p = multihead_problem(
      {&query, &key, &key, &query_pos, &key_pos, &in_weight, &in_bias, &out_weight, &out_bias}, 2);
  Program bias(p.extent);
  bias.add_causal(Align::kBottomRight, "bias[0]");
  p.bias = &bias;
  p.identity = true;
  std::vector<float> out(kQueries * kFeatures);
  std::vector<double> want(out.size());
  p.out = out.data();
  reference_multihead(p, want.data());
  backend->multihead(p, nullptr);
  const double error = relative_error(out, want);
  return error <= 1e-5 ? "" : "multihead has an error of " + number(error);
}

}  // namespace

std::string compare_with_host(Backend* backend) {
  try {
    for (const auto compare : {compare_project, compare_attention, compare_multihead, compare_deformable}) {
      const std::string wrong = compare(backend);
      if (!wrong.empty()) return wrong;
    }
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace attention_bias::cuda
