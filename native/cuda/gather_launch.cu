#include <algorithm>
#include <type_traits>

#include "cuda/attention_launch.cuh"
#include "cuda/gather_kernel.cuh"
#include "cuda/gather_launch.cuh"

namespace attention_bias::cuda {

namespace {

constexpr int64_t kMaxGatherKeys = 4096;  // of a row, and of a block's rows together: 16 KB of shared memory
constexpr int64_t kTileRows = 128;        // of the tiled kernels, at most
constexpr int64_t kWarpKeys = 512;        // of one warp: what 8 rows of a block may have

// Warps that share a row: enough for its keys, and to fill the device where there are few rows.
int warps_per_row(int64_t rows, int64_t most_keys, int multiprocessors) {
  constexpr int64_t kWarpsPerMultiprocessor = 32;
  int warps = 1;
  while (warps < kGatherWarps &&
         (most_keys > warps * kWarpKeys ||
          (rows * warps < multiprocessors * kWarpsPerMultiprocessor && most_keys > warps * kWarpLanes))) {
    warps *= 2;
  }
  return warps;
}

}  // namespace

// What one key costs a row, at head dim 32; both sides grow alike with it. The tiled kernels: 1.5 ps in f32,
// whose scores are plain multiply-adds, 0.4 in the others, by the H100's arithmetic at half its peak.
// Gathered from L2: 256 bytes at 5.5 TB/s are 47 ps, 32 or 128 times as much. Under sliding windows alone
// neighbouring rows see the same keys, so that most come from L1 at four times the rate; but there the tiled
// kernels skip all tiles off the band, and visit its width and two tiles more, for a plan of every 512 keys,
// which costs as much as 16 keys do. None of this has been measured.
bool gathers(const AttentionProblem& p) {
  if (!p.bias || std::max(p.head_dim, p.value_dim) > kMaxAttentionDim) return false;
  const KeyBound bound = p.bias->key_bound();
  const int64_t keys = p.extent.keys;
  const bool band = bound.term < 0;
  const int64_t tiled = band ? std::min(keys, bound.most_keys + 2 * kTileRows + keys / 32) : keys;
  const int64_t price = (p.precision == Precision::kF32 ? 32 : 128) / (band ? 4 : 1);
  return bound.most_keys <= kMaxGatherKeys && price * bound.most_keys <= tiled;
}

void launch_gather(Runtime* runtime, const AttentionProblem& p, const AttentionArguments& arguments) {
  const KeyBound bound = p.bias->key_bound();
  const int64_t rows = arguments.rows * arguments.queries;
  const int warps = warps_per_row(rows, bound.most_keys, runtime->multiprocessors());
  const auto launch = [&](auto size) {
    runtime->launch(gather_kernel<decltype(size)::value>, grid_of(rows, kGatherWarps / warps), kGatherThreads,
                    gather_shared_bytes(bound.most_keys, warps, p.value_dim), arguments, bound, warps);
  };
  const int64_t dim = std::max(p.head_dim, p.value_dim);
  if (dim <= 32) return launch(std::integral_constant<int, 32>());
  if (dim <= 64) return launch(std::integral_constant<int, 64>());
  if (dim <= 128) return launch(std::integral_constant<int, 128>());
  return launch(std::integral_constant<int, 256>());
}

}  // namespace attention_bias::cuda
