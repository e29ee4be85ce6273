// Multi-scale deformable attention (core/deformable.h), forward and backward, compiled once an instruction
// set.
//
// Lanes are channels: the four corners of a sample are rows of value, side by side in memory. Where a sample
// lies is the same for all of them, so it is worked out first, for all heads of a query at once and in
// vectors of samples (locate), into lists of pixels and corners' weights; a corner outside has weight 0 and
// the pixel of a neighbour inside, so that no sample needs a branch but those outside altogether.
//
//   forward    per head, sums in registers over all samples: a broadcast weight, a load and a multiply-add a
//              corner and vector.
//   locations  the four products of a sample's corners with grad_out, of as many samples as bring a vector
//   and        of products, summed over lanes by one transposition (lane_sums); a sample's three gradients
//   weights    are linear in them.
//   value      a task owns a level of a head and adds to it sample after sample: no atomics, one order.
//
// Per sample and channel 4 multiply-adds forward and 8 backward, and as many numbers read: bound by the
// caches.
#include <cstdint>
#include <type_traits>

#include "core/deformable.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace attention_bias::cpu {
namespace {

constexpr int kBlock = kRegisters == 32 ? 4 : kLanes == 4 ? 8 : 4;  // vectors of channels at once
constexpr int kGroup = kLanes / 4;      // samples whose corners' products fill a vector
constexpr int64_t kBlockSamples = 256;  // of one level and head at once
constexpr int64_t kAbortQueries = 1024;

// Lists of samples, `count` long each.
struct Samples {
  int64_t count;
  // Of the level that each belongs to.
  int32_t *height, *width, *start;
  // BilinearPoint's.
  int32_t *pixel, *right, *down, *inside;
  float *x, *y;
  float* weights[4];  // of the corners
  float* products;    // [count, 4]: of the corners, up to a multiple of kGroup samples
  float* locations;   // [count, 2] and [count]: the arguments, where they lie apart
  float* attention;
};

constexpr int kLists = 13, kMoreFloats = 4 + 2 + 1;

AB_INLINE int64_t padded(int64_t count) { return (count + 15) / 16 * 16; }

AB_INLINE Samples samples_at(float* scratch, int64_t count) {
  const int64_t size = padded(count);
  Samples s;
  s.count = count;
  const auto floats = [&](int64_t each) AB_INLINE_LAMBDA {
    float* const at = scratch;
    scratch += each * size;
    return at;
  };
  const auto integers = [&]() AB_INLINE_LAMBDA { return reinterpret_cast<int32_t*>(floats(1)); };
  s.height = integers(), s.width = integers(), s.start = integers();
  s.pixel = integers(), s.right = integers(), s.down = integers(), s.inside = integers();
  s.x = floats(1), s.y = floats(1);
  for (int c = 0; c < 4; ++c) s.weights[c] = floats(1);
  s.products = floats(4);
  s.locations = floats(2), s.attention = floats(1);
  return s;
}

AB_INLINE int64_t level_samples(const DeformableProblem& p) {
  return p.points > kBlockSamples ? p.points : kBlockSamples / p.points * p.points;
}

AB_INLINE void set_level(const Samples& s, int64_t first, int64_t count, const DeformableLevel& level) {
  for (int64_t i = first; i < first + count; ++i) {
    s.height[i] = level.height;
    s.width[i] = level.width;
    s.start[i] = level.start;
  }
}

// The levels of all samples of a query.
AB_INLINE Samples samples_of_query(const DeformableProblem& p, float* scratch) {
  const Samples s = samples_at(scratch, p.heads * p.head_samples());
  int64_t first = 0;
  for (int64_t h = 0; h < p.heads; ++h) {
    for (int64_t l = 0; l < p.level_count(); ++l, first += p.points) {
      set_level(s, first, p.points, p.levels.data()[l]);
    }
  }
  return s;
}

// Loops over lists tell GCC that those don't overlap: once inlined, __restrict is lost on it.
AB_INLINE void locate(const Samples& s, const float* locations, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const DeformableLevel level = {s.height[i], s.width[i], s.start[i]};
    const BilinearPoint<float> point = bilinear_point<float>(level, locations[2 * i], locations[2 * i + 1]);
    s.pixel[i] = point.pixel;
    s.right[i] = point.right;
    s.down[i] = point.down;
    s.inside[i] = static_cast<int32_t>(point.inside);
    s.x[i] = point.x;
    s.y[i] = point.y;
  }
}

AB_INLINE BilinearPoint<float> point_at(const Samples& s, int64_t i) {
  return {s.pixel[i], s.right[i], s.down[i], static_cast<uint32_t>(s.inside[i]), s.x[i], s.y[i]};
}

// The corners' weights in the output.
AB_INLINE void weigh(const Samples& s, const float* attention, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const BilinearPoint<float> point = point_at(s, i);
    s.weights[0][i] = attention[i] * point.corner_weight(0);
    s.weights[1][i] = attention[i] * point.corner_weight(1);
    s.weights[2][i] = attention[i] * point.corner_weight(2);
    s.weights[3][i] = attention[i] * point.corner_weight(3);
  }
}

typedef uint16_t VecHalf __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t VecBits __attribute__((vector_size(kVectorBytes)));

AB_INLINE Vec widen(VecHalf bits) { return (Vec)(__builtin_convertvector(bits, VecBits) << 16); }

// Vector j of a block of channels, of which the last may have `rest` lanes only.
template <int N, bool kPart>
AB_INLINE Vec load_channels(const float* p, int j, int32_t rest) {
  return kPart && j == N - 1 ? load_part(p + j * kLanes, rest) : load_any(p + j * kLanes);
}
template <int N, bool kPart>
AB_INLINE Vec load_channels(const uint16_t* p, int j, int32_t rest) {
  VecHalf bits = {};
  if (kPart && j == N - 1) {
    for (int32_t i = 0; i < rest; ++i) bits[i] = p[j * kLanes + i];
  } else {
    __builtin_memcpy(&bits, p + j * kLanes, sizeof bits);
  }
  return widen(bits);
}
template <int N, bool kPart>
AB_INLINE void store_channels(float* p, int j, int32_t rest, Vec v) {
  if (kPart && j == N - 1) {
    store_part(p + j * kLanes, v, rest);
  } else {
    store_any(p + j * kLanes, v);
  }
}

template <int N, bool kPart>
struct Block {
  static constexpr int kVectors = N;
  static constexpr bool kRest = kPart;
};

template <int N, class F>
AB_INLINE void with_block(int32_t vectors, int64_t d, int32_t rest, const F& f) {
  if constexpr (N > 0) {
    if (vectors < N) return with_block<N - 1>(vectors, d, rest, f);
    if (rest == kLanes) {
      f(Block<N, false>(), d, rest);
    } else {
      f(Block<N, true>(), d, rest);
    }
  }
}

// Calls f(Block, d, lanes of the last vector) for blocks of the channels [d0, d1).
template <class F>
AB_INLINE void for_blocks(int64_t d0, int64_t d1, const F& f) {
  constexpr int64_t kChannels = kBlock * kLanes;
  for (; d0 < d1; d0 += kChannels) {
    const int32_t channels = static_cast<int32_t>(d1 - d0 < kChannels ? d1 - d0 : kChannels);
    const int32_t vectors = (channels + kLanes - 1) / kLanes;
    with_block<kBlock>(vectors, d0, channels - (vectors - 1) * kLanes, f);
  }
}

// Where the corners of sample i are, beside corner 0 of pixel 0.
struct Corners {
  int64_t at[4];
};
AB_INLINE Corners corners_at(const Samples& s, int64_t i, int64_t stride) {
  const int64_t at = s.pixel[i] * stride, right = s.right[i] * stride, down = s.down[i] * stride;
  return {{at, at + right, at + down, at + down + right}};
}

template <class B, class Element>
AB_INLINE void sum_samples(const Samples& s, int64_t first, int64_t end, const Element* value, int64_t stride,
                           int32_t rest, float* out) {
  constexpr int N = B::kVectors;
  Vec sums[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) sums[j] = Vec{};
  for (int64_t i = first; i < end; ++i) {
    if (s.inside[i] == 0) continue;  // not even NaN times 0
    const Corners corners = corners_at(s, i, stride);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec weight = splat(s.weights[c][i]);
      const Element* const at = value + corners.at[c];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) sums[j] += weight * load_channels<N, B::kRest>(at, j, rest);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) store_channels<N, B::kRest>(out, j, rest, sums[j]);
}

template <class Element>
AB_INLINE void rows(const DeformableRows& task) {
  const DeformableProblem& p = *task.problem;
  const Samples s = samples_of_query(p, task.scratch);
  const int64_t stride = p.heads * p.head_dim, samples = p.head_samples();
  for (int64_t row = task.row0; row < task.row1; ++row) {
    locate(s, p.locations + row * s.count * 2, s.count);
    weigh(s, p.weights + row * s.count, s.count);
    const Element* const value =
        static_cast<const Element*>(p.value.data) + row / p.queries * p.pixels * stride;
    for (int64_t h = 0; h < p.heads; ++h) {
      for_blocks(0, p.head_dim, [&](auto block, int64_t d, int32_t rest) AB_INLINE_LAMBDA {
        sum_samples<decltype(block)>(s, h * samples, (h + 1) * samples, value + h * p.head_dim + d, stride,
                                     rest, p.out + row * stride + h * p.head_dim + d);
      });
    }
  }
}

// Adds the products of the corners of samples [first, end) with a block of grad_out.
template <class B, class Element>
AB_INLINE void add_products(const Samples& s, int64_t first, int64_t end, const Element* value,
                            int64_t stride, int32_t rest, const float* grad_out, float* products) {
  constexpr int N = B::kVectors;
  Vec gradients[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) gradients[j] = load_channels<N, B::kRest>(grad_out, j, rest);
  for (int64_t i = first; i < end; i += kGroup, products += kLanes) {
    Vec sums[kLanes];
#pragma GCC unroll 4
    for (int k = 0; k < kGroup; ++k) {
      const Corners corners = corners_at(s, i + k < end ? i + k : end - 1, stride);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Element* const at = value + corners.at[c];
        Vec sum = gradients[0] * load_channels<N, B::kRest>(at, 0, rest);
#pragma GCC unroll 8
        for (int j = 1; j < N; ++j) sum += gradients[j] * load_channels<N, B::kRest>(at, j, rest);
        sums[4 * k + c] = sum;
      }
    }
    store(products, load(products) + lane_sums(sums));
  }
}

template <class Element>
AB_INLINE void gradient_rows(const DeformableRows& task) {
  const DeformableProblem& p = *task.problem;
  const DeformableBackwardProblem& backward = *task.backward;
  const Samples s = samples_of_query(p, task.scratch);
  const int64_t stride = p.heads * p.head_dim, samples = p.head_samples();
  for (int64_t row = task.row0; row < task.row1; ++row) {
    locate(s, p.locations + row * s.count * 2, s.count);
    const Element* const value =
        static_cast<const Element*>(p.value.data) + row / p.queries * p.pixels * stride;
    for (int64_t h = 0; h < p.heads; ++h) {
      const int64_t first = h * samples;
      for (int64_t i = 0; i < 4 * padded(samples); ++i) s.products[i] = 0;
      for_blocks(0, p.head_dim, [&](auto block, int64_t d, int32_t rest) AB_INLINE_LAMBDA {
        add_products<decltype(block)>(s, first, first + samples, value + h * p.head_dim + d, stride, rest,
                                      backward.grad_out + row * stride + h * p.head_dim + d, s.products);
      });
      const int64_t at = row * s.count + first;
      float* __restrict grad_weights = backward.grad_weights + at;
      float* __restrict grad_locations = backward.grad_locations + 2 * at;
      const float* const weights = p.weights + at;
      for (int64_t i = 0; i < samples; ++i) {
        const float* const of = s.products + 4 * i;
        const float corners[4] = {of[0], of[1], of[2], of[3]};
        const PointSample<float> by_point = sample_point(point_at(s, first + i), corners);
        grad_weights[i] = by_point.value;
        grad_locations[2 * i] = weights[i] * static_cast<float>(s.width[first + i]) * by_point.by_x;
        grad_locations[2 * i + 1] = weights[i] * static_cast<float>(s.height[first + i]) * by_point.by_y;
      }
    }
  }
}

// Adds the samples of one query to a level's gradient.
template <class B>
AB_INLINE void scatter(const Samples& s, int64_t first, int64_t end, float* grad_value, int64_t stride,
                       int32_t rest, const float* grad_out) {
  constexpr int N = B::kVectors;
  Vec gradients[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) gradients[j] = load_channels<N, B::kRest>(grad_out, j, rest);
  for (int64_t i = first; i < end; ++i) {
    const Corners corners = corners_at(s, i, stride);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      if ((s.inside[i] >> c & 1) == 0) continue;
      const Vec weight = splat(s.weights[c][i]);
      float* const at = grad_value + corners.at[c];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const Vec sum = load_channels<N, B::kRest>(at, j, rest) + weight * gradients[j];
        store_channels<N, B::kRest>(at, j, rest, sum);
      }
    }
  }
}

}  // namespace

namespace AB_ISA_NAME {

int64_t deformable_scratch_floats(const DeformableProblem& p) {
  const int64_t of_query = p.heads * p.head_samples(), of_level = level_samples(p);
  return (kLists + kMoreFloats) * padded(of_query > of_level ? of_query : of_level);
}

void deformable_rows(const DeformableRows& task) {
  if (task.problem->value.dtype == DType::kBfloat16) {
    rows<uint16_t>(task);
  } else {
    rows<float>(task);
  }
}

void deformable_gradient_rows(const DeformableRows& task) {
  if (task.problem->value.dtype == DType::kBfloat16) {
    gradient_rows<uint16_t>(task);
  } else {
    gradient_rows<float>(task);
  }
}

bool deformable_value_gradient(const DeformableLevelTask& task) {
  const DeformableProblem& p = task.backward->forward;
  const int64_t stride = p.heads * p.head_dim, samples = p.heads * p.head_samples();
  const int64_t run = level_samples(p) / p.points;  // queries at once
  const Samples s = samples_at(task.scratch, run * p.points);
  set_level(s, 0, s.count, p.levels.data()[task.level]);
  float* const grad_value = task.backward->grad_value + (task.b * p.pixels * p.heads + task.h) * p.head_dim;
  const int64_t row0 = task.b * p.queries;
  int64_t unchecked = 0;  // queries since the flag was looked at
  for (int64_t q = 0; q < p.queries; q += run) {
    if ((unchecked += run) >= kAbortQueries) {
      if (aborted(task.abort)) return false;
      unchecked = 0;
    }
    const int64_t queries = p.queries - q < run ? p.queries - q : run;
    for (int64_t i = 0; i < queries; ++i) {
      const int64_t at = (row0 + q + i) * samples + (task.h * p.level_count() + task.level) * p.points;
      for (int64_t j = 0; j < 2 * p.points; ++j) {
        s.locations[2 * i * p.points + j] = p.locations[2 * at + j];
      }
      for (int64_t j = 0; j < p.points; ++j) s.attention[i * p.points + j] = p.weights[at + j];
    }
    locate(s, s.locations, queries * p.points);
    weigh(s, s.attention, queries * p.points);
    for_blocks(task.d0, task.d1, [&](auto block, int64_t d, int32_t rest) AB_INLINE_LAMBDA {
      for (int64_t i = 0; i < queries; ++i) {
        scatter<decltype(block)>(s, i * p.points, (i + 1) * p.points, grad_value + d, stride, rest,
                                 task.backward->grad_out + (row0 + q + i) * stride + task.h * p.head_dim + d);
      }
    });
  }
  return true;
}

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
