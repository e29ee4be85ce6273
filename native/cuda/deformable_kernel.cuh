// Multi-scale deformable attention (core/deformable.h), forward and backward.
//
// A row is a query and head. A block of 256 threads has some rows, each of as many threads as there are
// vectors of 4 channels (1 where D is no multiple of 4), up to a warp. In turns of 512 samples a block first
// works out where each lies, once, into shared memory; then the threads of a row go through its samples, four
// vectors read from value each. At D = 32 a row has 8 threads, and a corner is one line of 128 bytes.
//
// deformable_kernel           out, summed in registers in the samples' order.
// deformable_gradient_kernel  a sample's three gradients are linear in its corners' products with grad_out:
//                             each thread forms them of its own channels, shuffles sum them over the row's.
//                             kAdds: it adds to grad_value by atomics, 16 bytes a time from Hopper on.
// deformable_value_kernel     grad_value in one order, without atomics: a block owns a tile of pixels of one
//                             head, in shared memory, and looks for the samples that touch it among all of
//                             its level; of a turn's it makes a list in order, and each warp adds what falls
//                             on its own pixels, lanes being channels.
//
// Bytes: 4 lines a sample from L2, where value mostly lies (20 MB at Deformable DETR's 4 levels of 92×160 and
// less, 8 heads of 32): 900 queries read 59 MB, the encoder's 19,560 1.3 GB, 0.24 ms at an H100's 5.5 TB/s.
// Multiply-adds are 1 a float read. Not yet measured on hardware.
#pragma once

#include "core/deformable.h"
#include "cuda/device.cuh"

namespace attention_bias::cuda {

struct DeformableArguments {
  const DeformableLevel* levels;
  int32_t points, samples;  // of a level, and of all levels, of a row
  int32_t heads, head_dim;
  int64_t rows, queries, pixels;  // B·Q·H, Q, S
  const void* value;
  const float *locations, *weights;
  float* out;
  const float* grad_out;
  float *grad_value, *grad_locations, *grad_weights;
};

constexpr int kDeformableThreads = 256;
constexpr int kTurnSamples = 512;  // of a block

struct alignas(16) SharedSample {
  int32_t pixel, right, down;
  uint32_t inside;
  float a, b, c, d;  // the corners' weights; of gradients x, y, the attention weight and one that is free
};
constexpr size_t kDeformableSharedBytes = kTurnSamples * sizeof(SharedSample);

// kWidth channels from element i of a tensor on.
template <int kWidth>
AB_DEVICE void load_channels(float (&to)[kWidth], const float* tensor, int64_t i) {
  if constexpr (kWidth == 4) {
    const Float4 four = load_16(tensor + i);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = tensor[i];
  }
}
template <int kWidth>
AB_DEVICE void load_channels(float (&to)[kWidth], const uint16_t* tensor, int64_t i) {
  if constexpr (kWidth == 4) {
    uint16_t bits[4];
    load_8(bits, tensor + i);
    AB_UNROLL
    for (int j = 0; j < 4; ++j) to[j] = bf16_to_float(bits[j]);
  } else {
    to[0] = bf16_to_float(tensor[i]);
  }
}

AB_DEVICE int32_t shared_corner(const SharedSample& sample, int corner) {
  return sample.pixel + (corner & 1 ? sample.right : 0) + (corner & 2 ? sample.down : 0);
}

// The first element of a row's head in pixel 0 of value.
AB_DEVICE int64_t head_of(const DeformableArguments& a, int64_t row) {
  return (row / a.heads / a.queries * a.pixels * a.heads + row % a.heads) * a.head_dim;
}

// Puts the samples [first, first + count) of the block's rows in shared memory, a row's side by side. Rows
// past the last have samples that are outside.
template <bool kWeighs>
AB_DEVICE void locate_samples(const DeformableArguments& a, int64_t first_row, int rows, int first, int count,
                              SharedSample* shared) {
  for (int i = thread_index(); i < rows * count; i += kDeformableThreads) {
    const int64_t row = first_row + i / count;
    const int index = first + i % count;
    SharedSample sample = {0, 0, 0, 0, 0.0f, 0.0f, 0.0f, 0.0f};
    if (row < a.rows) {
      const int64_t at = row * a.samples + index;
      const BilinearPoint<float> point =
          bilinear_point<float>(a.levels[index / a.points], a.locations[2 * at], a.locations[2 * at + 1]);
      const float weight = a.weights[at];
      sample.pixel = point.pixel, sample.right = point.right, sample.down = point.down;
      sample.inside = point.inside;
      if constexpr (kWeighs) {
        sample.a = weight * point.corner_weight(0), sample.b = weight * point.corner_weight(1);
        sample.c = weight * point.corner_weight(2), sample.d = weight * point.corner_weight(3);
      } else {
        sample.a = point.x, sample.b = point.y, sample.c = weight;
      }
    }
    shared[i] = sample;
  }
}

// `lanes` threads a row, a power of two up to 32; the grid's y counts what they cover of the channels.
template <class Element, int kWidth>
AB_KERNEL void AB_LAUNCH_BOUNDS(kDeformableThreads, 4)
    deformable_kernel(const DeformableArguments a, int lanes) {
  SharedSample* shared = reinterpret_cast<SharedSample*>(shared_memory());
  const int rows = kDeformableThreads / lanes, turn = kTurnSamples / rows;
  const int64_t first_row = static_cast<int64_t>(block_x()) * rows;
  const int of_block = thread_index() / lanes;
  const int64_t row = first_row + of_block;
  const int channel = (block_y() * lanes + thread_index() % lanes) * kWidth;
  const bool works = row < a.rows && channel < a.head_dim;
  const Element* value = static_cast<const Element*>(a.value);
  const int64_t head = works ? head_of(a, row) + channel : 0;
  const int64_t stride = static_cast<int64_t>(a.heads) * a.head_dim;
  float sums[kWidth] = {};
  for (int first = 0; first < a.samples; first += turn) {
    const int count = min_i32(turn, a.samples - first);
    locate_samples<true>(a, first_row, rows, first, count, shared);
    barrier();
    for (int i = 0; works && i < count; ++i) {
      const SharedSample sample = shared[of_block * count + i];
      if (sample.inside == 0) continue;  // not even NaN times 0
      const float weights[4] = {sample.a, sample.b, sample.c, sample.d};
      float corners[4][kWidth];
      AB_UNROLL
      for (int c = 0; c < 4; ++c) {
        load_channels(corners[c], value, head + shared_corner(sample, c) * stride);
      }
      AB_UNROLL
      for (int c = 0; c < 4; ++c) {
        AB_UNROLL
        for (int j = 0; j < kWidth; ++j) sums[j] += weights[c] * corners[c][j];
      }
    }
    barrier();
  }
  if (!works) return;
  float* out = a.out + row * a.head_dim + channel;
  if constexpr (kWidth == 4) {
    store_16(out, Float4{sums[0], sums[1], sums[2], sums[3]});
  } else {
    *out = sums[0];
  }
}

// As above, but for one block in the grid's y: its threads go through all channels.
template <class Element, int kWidth, bool kAdds>
AB_KERNEL void AB_LAUNCH_BOUNDS(kDeformableThreads, 2)
    deformable_gradient_kernel(const DeformableArguments a, int lanes) {
  SharedSample* shared = reinterpret_cast<SharedSample*>(shared_memory());
  const int rows = kDeformableThreads / lanes, turn = kTurnSamples / rows;
  const int64_t first_row = static_cast<int64_t>(block_x()) * rows;
  const int of_block = thread_index() / lanes, lane = thread_index() % lanes;
  // Rows past the last go through samples that are outside, since shuffles are of whole warps.
  const int64_t row = first_row + of_block < a.rows ? first_row + of_block : a.rows - 1;
  const Element* value = static_cast<const Element*>(a.value);
  const int64_t head = head_of(a, row);
  const int64_t stride = static_cast<int64_t>(a.heads) * a.head_dim;
  const float* grad_out = a.grad_out + row * a.head_dim;
  for (int first = 0; first < a.samples; first += turn) {
    const int count = min_i32(turn, a.samples - first);
    locate_samples<false>(a, first_row, rows, first, count, shared);
    barrier();
    for (int i = 0; i < count; ++i) {
      SharedSample* at = shared + of_block * count + i;
      const SharedSample sample = *at;
      const BilinearPoint<float> point = {sample.pixel,  sample.right, sample.down,
                                          sample.inside, sample.a,     sample.b};
      float products[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int channel = lane * kWidth; sample.inside != 0 && channel < a.head_dim;
           channel += lanes * kWidth) {
        float gradients[kWidth], corners[4][kWidth];
        load_channels(gradients, grad_out, channel);
        AB_UNROLL
        for (int c = 0; c < 4; ++c) {
          load_channels(corners[c], value, head + point.corner_pixel(c) * stride + channel);
        }
        AB_UNROLL
        for (int c = 0; c < 4; ++c) {
          AB_UNROLL
          for (int j = 0; j < kWidth; ++j) products[c] += gradients[j] * corners[c][j];
          if (!kAdds || !point.has(c)) continue;
          const float weight = sample.c * point.corner_weight(c);
          float* to = a.grad_value + head + point.corner_pixel(c) * stride + channel;
          if constexpr (kWidth == 4) {
            atomic_add_16(to, Float4{weight * gradients[0], weight * gradients[1], weight * gradients[2],
                                     weight * gradients[3]});
          } else {
            atomic_add(to, weight * gradients[0]);
          }
        }
      }
      PointSample<float> of = sample_point(point, products);
      for (int mask = lanes / 2; mask > 0; mask /= 2) {
        of.value += shuffle_xor(of.value, mask);
        of.by_x += shuffle_xor(of.by_x, mask);
        of.by_y += shuffle_xor(of.by_y, mask);
      }
      // All lanes of the row have read it before they met.
      if (lane == 0) at->a = of.value, at->b = sample.c * of.by_x, at->d = sample.c * of.by_y;
    }
    barrier();
    for (int i = thread_index(); i < rows * count; i += kDeformableThreads) {
      const int64_t of_row = first_row + i / count;
      if (of_row >= a.rows) continue;
      const int index = first + i % count;
      const int64_t at = of_row * a.samples + index;
      const DeformableLevel& level = a.levels[index / a.points];
      a.grad_weights[at] = shared[i].a;
      a.grad_locations[2 * at] = static_cast<float>(level.width) * shared[i].b;
      a.grad_locations[2 * at + 1] = static_cast<float>(level.height) * shared[i].d;
    }
    barrier();
  }
}

// Zeros, 16 bytes a thread, of memory that is aligned so.
constexpr int kFillThreads = 256;

AB_KERNEL void AB_LAUNCH_BOUNDS(kFillThreads, 1) zero_kernel(float* to, int64_t count) {
  const int64_t i = (static_cast<int64_t>(block_x()) * kFillThreads + thread_index()) * 4;
  if (i + 4 <= count) {
    store_16(to + i, Float4{0.0f, 0.0f, 0.0f, 0.0f});
  } else {
    for (int64_t j = i; j < count; ++j) to[j] = 0.0f;
  }
}

// How a level is cut into tiles of pixels, the last of them smaller.
struct LevelTiles {
  int32_t first;   // of all levels' tiles
  int32_t pixels;  // of a tile
};

constexpr int kTileChannels = kWarpLanes;
constexpr int kMostTilePixels = 256;
constexpr int kValueWarps = kDeformableThreads / kWarpLanes;

struct alignas(16) TileEntry {
  int32_t pixel[4];  // of the tile; −1: not in it
  float weight[4];
};
constexpr size_t kValueSharedBytes = kMostTilePixels * kTileChannels * sizeof(float) +
                                     kDeformableThreads * (sizeof(TileEntry) + sizeof(int32_t)) +
                                     kValueWarps * sizeof(int32_t);

// Blocks of all tiles of all heads of all batch rows in the grid's x, of runs of 32 channels in its y.
AB_KERNEL void AB_LAUNCH_BOUNDS(kDeformableThreads, 2)
    deformable_value_kernel(const DeformableArguments a, const LevelTiles* tiles, int32_t level_count,
                            int32_t tile_count) {
  float* sums = reinterpret_cast<float*>(shared_memory());
  TileEntry* entries = reinterpret_cast<TileEntry*>(sums + kMostTilePixels * kTileChannels);
  int32_t* entry_queries = reinterpret_cast<int32_t*>(entries + kDeformableThreads);
  int32_t* warp_counts = entry_queries + kDeformableThreads;

  const int64_t bh = block_x() / tile_count, b = bh / a.heads, h = bh % a.heads;
  const int32_t tile = block_x() % tile_count;
  int32_t l = 0;
  while (l + 1 < level_count && tiles[l + 1].first <= tile) ++l;
  const DeformableLevel level = a.levels[l];
  const int32_t pixels = tiles[l].pixels, begin = level.start + (tile - tiles[l].first) * pixels;
  const int32_t end = min_i32(begin + pixels, level.start + level.height * level.width);
  const int lane = lane_index(), warp = warp_index();
  const int channel = block_y() * kTileChannels + lane;
  const bool works = channel < a.head_dim;

  for (int pixel = warp; pixel < end - begin; pixel += kValueWarps) sums[pixel * kTileChannels + lane] = 0;
  const int64_t samples = a.queries * a.points;
  for (int64_t first = 0; first < samples; first += kDeformableThreads) {
    TileEntry entry = {{-1, -1, -1, -1}, {0.0f, 0.0f, 0.0f, 0.0f}};
    bool touches = false;
    const int64_t i = first + thread_index(), q = i / a.points;
    if (i < samples) {
      const int64_t row = (b * a.queries + q) * a.heads + h;
      const int64_t at = row * a.samples + l * a.points + i % a.points;
      const BilinearPoint<float> point =
          bilinear_point<float>(level, a.locations[2 * at], a.locations[2 * at + 1]);
      const float weight = a.weights[at];
      AB_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int32_t pixel = point.corner_pixel(c);
        if (!point.has(c) || pixel < begin || pixel >= end) continue;
        entry.pixel[c] = pixel - begin;
        entry.weight[c] = weight * point.corner_weight(c);
        touches = true;
      }
    }
    // The entries of the turn, in the samples' order.
    const uint32_t of_warp = ballot(touches);
    if (lane == 0) warp_counts[warp] = count_bits(of_warp);
    barrier();
    int place = count_bits(of_warp & ((1u << lane) - 1)), total = 0;
    for (int w = 0; w < kValueWarps; ++w) {
      if (w < warp) place += warp_counts[w];
      total += warp_counts[w];
    }
    if (touches) {
      entries[place] = entry;
      entry_queries[place] = static_cast<int32_t>(q);
    }
    barrier();
    // Those of this warp's pixels: every kValueWarps-th.
    for (int from = 0; from < total; from += kWarpLanes) {
      bool mine = false;
      if (from + lane < total) {
        AB_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int32_t pixel = entries[from + lane].pixel[c];
          mine |= pixel >= 0 && pixel % kValueWarps == warp;
        }
      }
      for (uint32_t left = ballot(mine); left != 0; left &= left - 1) {
        const int e = from + lowest_bit(left);
        const TileEntry& one = entries[e];
        const int64_t row = (b * a.queries + entry_queries[e]) * a.heads + h;
        const float gradient = works ? a.grad_out[row * a.head_dim + channel] : 0.0f;
        AB_UNROLL
        for (int c = 0; c < 4; ++c) {
          const int32_t pixel = one.pixel[c];
          if (pixel < 0 || pixel % kValueWarps != warp) continue;
          sums[pixel * kTileChannels + lane] += one.weight[c] * gradient;
        }
      }
    }
    barrier();
  }
  if (!works) return;
  for (int pixel = warp; pixel < end - begin; pixel += kValueWarps) {
    a.grad_value[((b * a.pixels + begin + pixel) * a.heads + h) * a.head_dim + channel] =
        sums[pixel * kTileChannels + lane];
  }
}

}  // namespace attention_bias::cuda
