#include <algorithm>
#include <type_traits>
#include <vector>

#include "cuda/deformable_kernel.cuh"
#include "cuda/deformable_launch.cuh"

namespace attention_bias::cuda {

namespace {

constexpr int kVector = 4;             // channels of a thread, where D is a multiple
constexpr int64_t kTilesOfLevel = 64;  // wanted, so that small levels are shared by many blocks too
constexpr int64_t kLeastTilePixels = kValueWarps;

const void* input_rows(Work* work, const HeadRows& rows, int64_t count) {
  if (rows.dtype == DType::kBfloat16) return work->input(rows.bf16(), count);
  return work->input(rows.f32(), count);
}

DeformableArguments arguments_of(Work* work, const DeformableProblem& p) {
  DeformableArguments a = {};
  a.levels = work->input(p.levels.data(), p.level_count());
  a.points = static_cast<int32_t>(p.points);
  a.samples = static_cast<int32_t>(p.head_samples());
  a.heads = static_cast<int32_t>(p.heads);
  a.head_dim = static_cast<int32_t>(p.head_dim);
  a.rows = p.rows() * p.heads;
  a.queries = p.queries;
  a.pixels = p.pixels;
  a.value = input_rows(work, p.value, p.value_count());
  a.locations = work->input(p.locations, 2 * p.samples());
  a.weights = work->input(p.weights, p.samples());
  return a;
}

bool has_vectors(const DeformableProblem& p) { return p.head_dim % kVector == 0; }

// Threads of a row: a power of two.
int lanes_of(const DeformableProblem& p) {
  const int64_t vectors = has_vectors(p) ? p.head_dim / kVector : p.head_dim;
  int lanes = 1;
  while (lanes < kWarpLanes && lanes < vectors) lanes *= 2;
  return lanes;
}

// Calls f with a value of the type of value's elements, and the number of channels of a vector.
template <class F>
void with_types(const DeformableProblem& p, const F& f) {
  const auto with_width = [&](auto element) {
    if (has_vectors(p)) {
      f(element, std::integral_constant<int, kVector>());
    } else {
      f(element, std::integral_constant<int, 1>());
    }
  };
  if (p.value.dtype == DType::kBfloat16) {
    with_width(uint16_t{});
  } else {
    with_width(float{});
  }
}

}  // namespace

void launch_deformable(Work* work, const DeformableProblem& p) {
  DeformableArguments a = arguments_of(work, p);
  a.out = work->output(p.out, p.out_count());
  const int lanes = lanes_of(p);
  with_types(p, [&](auto element, auto width) {
    constexpr int kWidth = decltype(width)::value;
    Grid grid = grid_of(a.rows, kDeformableThreads / lanes);
    grid.y = static_cast<int>(ceil_div(p.head_dim, lanes * kWidth));
    work->start();
    work->launch(deformable_kernel<decltype(element), kWidth>, grid, kDeformableThreads,
                 kDeformableSharedBytes, a, lanes);
  });
}

void launch_deformable_backward(Work* work, const DeformableBackwardProblem& backward) {
  const DeformableProblem& p = backward.forward;
  DeformableArguments a = arguments_of(work, p);
  a.grad_out = work->input(backward.grad_out, p.out_count());
  a.grad_value = work->output(backward.grad_value, p.value_count());
  a.grad_locations = work->output(backward.grad_locations, 2 * p.samples());
  a.grad_weights = work->output(backward.grad_weights, p.samples());

  std::vector<LevelTiles> tiles;
  int64_t tile_count = 0;
  for (const DeformableLevel& level : p.levels) {
    const int64_t pixels = int64_t{level.height} * level.width;
    const int64_t of_tile =
        std::clamp<int64_t>(ceil_div(pixels, kTilesOfLevel), kLeastTilePixels, kMostTilePixels);
    tiles.push_back({static_cast<int32_t>(tile_count), static_cast<int32_t>(of_tile)});
    tile_count += ceil_div(pixels, of_tile);
  }
  const LevelTiles* tiles_there =
      backward.deterministic ? work->input(tiles.data(), p.level_count()) : nullptr;

  const int lanes = lanes_of(p);
  const Grid rows = grid_of(a.rows, kDeformableThreads / lanes);
  with_types(p, [&](auto element, auto width) {
    using Element = decltype(element);
    constexpr int kWidth = decltype(width)::value;
    work->start();
    if (backward.deterministic) {
      work->launch(deformable_gradient_kernel<Element, kWidth, false>, rows, kDeformableThreads,
                   kDeformableSharedBytes, a, lanes);
      Grid grid = grid_of(p.batch * p.heads * tile_count, 1);
      grid.y = static_cast<int>(ceil_div(p.head_dim, kTileChannels));
      work->launch(deformable_value_kernel, grid, kDeformableThreads, kValueSharedBytes, a, tiles_there,
                   static_cast<int32_t>(p.level_count()), static_cast<int32_t>(tile_count));
    } else {
      work->launch(zero_kernel, grid_of(p.value_count(), 4 * kFillThreads), kFillThreads, size_t{0},
                   a.grad_value, p.value_count());
      work->launch(deformable_gradient_kernel<Element, kWidth, true>, rows, kDeformableThreads,
                   kDeformableSharedBytes, a, lanes);
    }
  });
}

}  // namespace attention_bias::cuda
