// THE definition of every bias term (docs/terms.md), for all backends and the float64 reference.
//
// A term is a plain struct with three functions:
//
//   column(b, h, k)         what the term knows of one key (of one batch row and head); divisions are here
//   value<Real>(column, q)  the term's value for one query of that column; −∞ hides the pair
//   tile_class(tile)        a closed-form bound on a tile, so that kernels skip what need not be evaluated
//
// and facts: kHides, whether the value can be −∞; kLocal, whether the value is outside(k) for all
// queries but those near the key, of which near(tile, q, f) tells, so that kernels evaluate only those;
// kKeysTogether, whether the values of one query lie side by side in memory, so that kernels go along keys;
// kBoundsKeys, whether the term only hides, and how many keys a query sees is bounded by its fields, whatever
// its tensors hold: most_visible(keys) is that bound for a row of `keys` keys, and visible_runs(tile, q, f)
// calls f(begin, end) for the runs of exactly those keys of the tile that query q sees, each key once, so
// that kernels visit no other and need not evaluate the term.
// A kLocal term that hides shows just the keys of near(), with value 0; any other has near_values<Real>(tile,
// q, f), which calls f(begin, end, value) for the same runs, value(i) being that of key begin + i. A term
// whose class follows from segments of keys, near() aside, has next_cut(k, end): the keys from k up to it, at
// most `end`, lie in one segment or in none.
//
// and, for backends that keep the terms in memory of their own, either each_tensor(f), which calls f with
// each pointer to a tensor's memory, or an array `segments` of `count` structs that have it.
//
// A tile class is a promise: kHidden, every pair of the tile is hidden; kZero, the value is 0 for every pair;
// kRowConstant, a query's value is the same for all keys of the tile, so value(column(k0), q) serves for the
// row (−∞ allowed); kMixed promises nothing and is always right.
//
// A new term is one struct here, listed in AB_TERMS. Nothing here may be emitted out of line (annotations.h),
// so there is no standard library beyond builtins.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/annotations.h"

namespace attention_bias {

enum class TileClass : uint8_t { kHidden, kZero, kRowConstant, kMixed };

// Queries [q0, q1) and keys [k0, k1) of one batch row and head; never empty.
struct Tile {
  int64_t b, h;
  int32_t q0, q1, k0, k1;
};

template <class Real>
AB_HD Real hidden() {
  return static_cast<Real>(-__builtin_inff());
}

constexpr float kGreatestFloat = 3.40282347e38f;

// The sum of two biases. −∞ absorbs; a sum beyond float32 stays finite, since only a mask hides.
AB_HD float add_bias(float a, float b) {
  const float sum = a + b;
  const float finite = sum > kGreatestFloat ? kGreatestFloat : sum < -kGreatestFloat ? -kGreatestFloat : sum;
  return a == hidden<float>() || b == hidden<float>() ? hidden<float>() : finite;
}

// The float32 of biases summed in float64, by the same rule.
AB_HD float round_bias(double sum) {
  if (sum == hidden<double>()) return hidden<float>();
  constexpr double kGreatest = kGreatestFloat;
  return static_cast<float>(sum > kGreatest ? kGreatest : sum < -kGreatest ? -kGreatest : sum);
}

// The bits of the nearest bfloat16, ties to even, of finite ones that don't round to infinity.
AB_HD uint32_t nearest_bf16(uint32_t bits) { return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; }

// The nearest bfloat16 of a bias, ties to even, by its bits. Finite stays finite: only a mask hides.
AB_HD uint16_t bias_to_bf16(float bias) {
  uint32_t bits;
  __builtin_memcpy(&bits, &bias, 4);
  constexpr uint32_t kInfinity = 0x7f80, kGreatest = 0x7f7f, kSign = 0x8000;
  if ((bits >> 16 & kInfinity) == kInfinity) return static_cast<uint16_t>(bits >> 16);
  const uint32_t rounded = nearest_bf16(bits);
  return static_cast<uint16_t>((rounded & kInfinity) == kInfinity ? (rounded & kSign) | kGreatest : rounded);
}

// Writes a bias in float32, or as the bits of bfloat16.
AB_HD void set_bias(float* at, float bias) { *at = bias; }
AB_HD void set_bias(uint16_t* at, float bias) { *at = bias_to_bf16(bias); }

// The float32 that bfloat16 bits are.
AB_HD float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

AB_HD int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
AB_HD int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

// ---------------------------------------------------------------------------------------------------------------
// Given tensors

// bias[b, h, q, k], broadcast by strides of 0; −∞ entries hide.
struct DenseTerm {
  const float* bias;
  int64_t batch_stride, head_stride, query_stride, key_stride;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = true, kBoundsKeys = false;
  static constexpr bool kLearns = true;
  template <class F>
  void each_tensor(F&& f) {
    f(bias);
  }

  using Column = const float*;
  AB_HD Column column(int64_t b, int64_t h, int32_t k) const {
    return bias + b * batch_stride + h * head_stride + k * key_stride;
  }
  template <class Real>
  AB_HD Real value(Column column, int32_t q) const {
    return static_cast<Real>(column[q * query_stride]);
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t h, int32_t k, int32_t q, F&& f) const {
    f(0, b * batch_stride + h * head_stride + q * query_stride + k * key_stride, Real(1));
  }
  AB_HD TileClass tile_class(const Tile&) const {
    return key_stride == 0 ? TileClass::kRowConstant : TileClass::kMixed;
  }
};

typedef uint64_t MayAliasWord __attribute__((may_alias));

// Counts non-zero bytes of one tile of a byte tensor, each distinct entry once, and classes the tile by them.
AB_HD TileClass byte_tile_class(const uint8_t* first, int64_t query_stride, int64_t key_stride,
                                const Tile& tile, bool nonzero_is_visible) {
  const int32_t rows = query_stride == 0 ? 1 : tile.q1 - tile.q0;
  const int32_t columns = key_stride == 0 ? 1 : tile.k1 - tile.k0;
  bool any = false, all = true;
  for (int32_t q = 0; q < rows; ++q) {
    const uint8_t* row = first + q * query_stride;
    for (int32_t k = 0; k < columns;) {
      const uint8_t* at = row + k * key_stride;
      if (key_stride == 1 && columns - k >= 8 && reinterpret_cast<uintptr_t>(at) % 8 == 0) {
        // Eight bytes at once. A byte is zero where borrowing reaches its top bit (exact for "is there any").
        const uint64_t word = *reinterpret_cast<const MayAliasWord*>(at);
        any |= word != 0;
        all &= ((word - 0x0101010101010101u) & ~word & 0x8080808080808080u) == 0;
        k += 8;
      } else {
        any |= *at != 0;
        all &= *at != 0;
        ++k;
      }
    }
    if (any && !all) return key_stride == 0 ? TileClass::kRowConstant : TileClass::kMixed;
  }
  return any == nonzero_is_visible ? TileClass::kZero : TileClass::kHidden;
}

// Visible where visible[b, h, q, k] is not 0.
struct MaskTerm {
  const uint8_t* visible;
  int64_t batch_stride, head_stride, query_stride, key_stride;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = true, kBoundsKeys = false;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&& f) {
    f(visible);
  }

  using Column = const uint8_t*;
  AB_HD Column column(int64_t b, int64_t h, int32_t k) const {
    return visible + b * batch_stride + h * head_stride + k * key_stride;
  }
  template <class Real>
  AB_HD Real value(Column column, int32_t q) const {
    return column[q * query_stride] ? Real(0) : hidden<Real>();
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    return byte_tile_class(column(t.b, t.h, t.k0) + t.q0 * query_stride, query_stride, key_stride, t, true);
  }
};

// Hidden where ignore[b, k] is not 0.
struct PaddingTerm {
  const uint8_t* ignore;
  int64_t keys;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&& f) {
    f(ignore);
  }

  using Column = bool;
  AB_HD Column column(int64_t b, int64_t, int32_t k) const { return ignore[b * keys + k] != 0; }
  template <class Real>
  AB_HD Real value(Column ignored, int32_t) const {
    return ignored ? hidden<Real>() : Real(0);
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    return byte_tile_class(ignore + t.b * keys + t.k0, 0, 1, t, false);
  }
};

// Visible where query_ids[b, q] equals key_ids[b, k].
struct BlockDiagonalTerm {
  const int32_t* query_ids;
  const int32_t* key_ids;
  int64_t queries, keys;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&& f) {
    f(query_ids), f(key_ids);
  }

  struct Column {
    const int32_t* query_ids;
    int32_t id;
  };
  AB_HD Column column(int64_t b, int64_t, int32_t k) const {
    return {query_ids + b * queries, key_ids[b * keys + k]};
  }
  template <class Real>
  AB_HD Real value(const Column& column, int32_t q) const {
    return column.query_ids[q] == column.id ? Real(0) : hidden<Real>();
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    const int32_t* q = query_ids + t.b * queries;
    const int32_t* k = key_ids + t.b * keys;
    int32_t q_min = q[t.q0], q_max = q_min, k_min = k[t.k0], k_max = k_min;
    for (int32_t i = t.q0; i < t.q1; ++i) q_min = min_i32(q_min, q[i]), q_max = max_i32(q_max, q[i]);
    for (int32_t i = t.k0; i < t.k1; ++i) k_min = min_i32(k_min, k[i]), k_max = max_i32(k_max, k[i]);
    if (q_max < k_min || k_max < q_min) return TileClass::kHidden;
    if (k_min != k_max) return TileClass::kMixed;
    return q_min == q_max ? TileClass::kZero : TileClass::kRowConstant;
  }
};

// ---------------------------------------------------------------------------------------------------------------
// Masks in which a key is visible to one range of queries

// Queries [begin, end) see the key. 64 bits: an offset and a limit may pass the ends of the tensor.
struct QueryRange {
  int64_t begin, end;

  template <class Real>
  AB_HD Real value(int32_t q) const {
    return q >= begin && q < end ? Real(0) : hidden<Real>();
  }
};

// Class of a tile whose keys are visible to at least `all` and at most `any`.
AB_HD TileClass range_tile_class(const QueryRange& all, const QueryRange& any, const Tile& t) {
  if (any.end <= t.q0 || any.begin >= t.q1) return TileClass::kHidden;
  return all.begin <= t.q0 && all.end >= t.q1 ? TileClass::kZero : TileClass::kMixed;
}

constexpr int64_t kUnlimited = int64_t{1} << 40;

// Visible where −left ≤ k − (q + offset) ≤ right. Causal is left unlimited, right 0.
struct SlidingWindowTerm {
  int64_t left, right, offset;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = false, kBoundsKeys = true;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&&) {}

  using Column = QueryRange;
  AB_HD Column column(int64_t, int64_t, int32_t k) const {
    return {k - offset - right, k - offset + left + 1};
  }
  template <class Real>
  AB_HD Real value(const Column& column, int32_t q) const {
    return column.value<Real>(q);
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    const QueryRange first = column(t.b, t.h, t.k0), last = column(t.b, t.h, t.k1 - 1);
    return range_tile_class({last.begin, first.end}, {first.begin, last.end}, t);
  }
  AB_HD int64_t most_visible(int64_t keys) const {
    const int64_t width = left + right + 1;
    return width < 0 ? 0 : width < keys ? width : keys;
  }
  template <class F>
  AB_HD void visible_runs(const Tile& t, int32_t q, F&& f) const {
    const int64_t first = q + offset - left, end = q + offset + right + 1;
    const int64_t k0 = first > t.k0 ? first : t.k0, k1 = end < t.k1 ? end : t.k1;
    if (k0 < k1) f(static_cast<int32_t>(k0), static_cast<int32_t>(k1));
  }
};

constexpr SlidingWindowTerm kWholeRow = {kUnlimited, kUnlimited, 0};

// Visible where both are.
AB_HD SlidingWindowTerm intersection(const SlidingWindowTerm& a, const SlidingWindowTerm& b) {
  const int64_t left_a = a.left - a.offset, left_b = b.left - b.offset;
  const int64_t right_a = a.right + a.offset, right_b = b.right + b.offset;
  return {left_a < left_b ? left_a : left_b, right_a < right_b ? right_a : right_b, 0};
}

// DN-DETR: the first `denoising` = groups·group_size tokens are denoising groups, the rest are matching
// tokens. A group's keys are visible to that group; matching keys to matching queries, and to groups if
// groups_see_matching.
struct DenoisingTerm {
  int64_t group_size, denoising, queries;
  bool groups_see_matching;

  static constexpr bool kHides = true, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&&) {}

  using Column = QueryRange;
  AB_HD Column column(int64_t, int64_t, int32_t k) const {
    if (k >= denoising) return {groups_see_matching ? 0 : denoising, queries};
    const int64_t first = k / group_size * group_size;
    return {first, first + group_size};
  }
  template <class Real>
  AB_HD Real value(const Column& column, int32_t q) const {
    return column.value<Real>(q);
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    // Ranges only differ between the tile's first key, its last denoising key and its last key; groups have
    // no query in common.
    QueryRange all = column(t.b, t.h, t.k0), any = all;
    const int32_t last_denoising = t.k1 - 1 < denoising ? t.k1 - 1 : static_cast<int32_t>(denoising) - 1;
    const int32_t ends[2] = {max_i32(last_denoising, t.k0), t.k1 - 1};
    for (const int32_t k : ends) {
      const QueryRange range = column(t.b, t.h, k);
      all = {all.begin > range.begin ? all.begin : range.begin, all.end < range.end ? all.end : range.end};
      any = {any.begin < range.begin ? any.begin : range.begin, any.end > range.end ? any.end : range.end};
    }
    return range_tile_class(all, any, t);
  }
};

// ---------------------------------------------------------------------------------------------------------------
// Segments of keys: modalities and grids of cells

// The first of a segment's two ends that lies beyond k, or `end` where that comes before.
AB_HD int32_t cut_of(int32_t start, int32_t segment_end, int32_t k, int32_t end) {
  return min_i32(k < start ? start : k < segment_end ? segment_end : end, end);
}

struct ModalitySegment {
  int32_t start, end;    // keys [start, end)
  const float* weights;  // [B, Q]

  template <class F>
  void each_tensor(F&& f) {
    f(weights);
  }
};

// (w[b,q] − 0.5)·2·strength in a segment, else 0. Segments are sorted and don't overlap.
struct ModalityTerm {
  const ModalitySegment* segments;
  int32_t count;
  float twice_strength;
  int64_t queries;

  static constexpr bool kHides = false, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = true;

  using Column = const float*;  // the segment's weights of batch row b, or null
  AB_HD Column column(int64_t b, int64_t, int32_t k) const {
    for (int32_t i = 0; i < count; ++i) {
      if (k >= segments[i].start && k < segments[i].end) return segments[i].weights + b * queries;
    }
    return nullptr;
  }
  template <class Real>
  AB_HD Real value(Column weights, int32_t q) const {
    return weights ? (static_cast<Real>(weights[q]) - Real(0.5)) * static_cast<Real>(twice_strength)
                   : Real(0);
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t, int32_t k, int32_t q, F&& f) const {
    for (int32_t i = 0; i < count; ++i) {
      if (k < segments[i].start || k >= segments[i].end) continue;
      f(i, b * queries + q, static_cast<Real>(twice_strength));
    }
  }
  AB_HD int32_t next_cut(int32_t k, int32_t end) const {
    for (int32_t i = 0; i < count; ++i) end = cut_of(segments[i].start, segments[i].end, k, end);
    return end;
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    for (int32_t i = 0; i < count; ++i) {
      if (t.k1 <= segments[i].start || t.k0 >= segments[i].end) continue;
      return t.k0 >= segments[i].start && t.k1 <= segments[i].end ? TileClass::kRowConstant
                                                                  : TileClass::kMixed;
    }
    return TileClass::kZero;
  }
};

// A grid of cells on keys [start, start + views·height·width): key = start + (view·height + y)·width + x.
struct CellGrid {
  int32_t start, end;
  int32_t views, height, width;
  const float* centers;  // [B, Q, components]: (y, x), or (view, y, x)
  int32_t components;
};

struct Cell {
  const float* centers;  // of batch row b, or null where the key is outside the grid
  float view, y, x;
};

AB_HD bool in_grid(const CellGrid& grid, int32_t k) { return k >= grid.start && k < grid.end; }

AB_HD Cell cell_of(const CellGrid& grid, int64_t b, int64_t queries, int32_t k) {
  const int32_t index = k - grid.start;
  const int32_t row = index / grid.width;
  const int32_t view = row / grid.height;
  return {grid.centers + b * queries * grid.components, static_cast<float>(view),
          static_cast<float>(row - view * grid.height), static_cast<float>(index - row * grid.width)};
}

// A query's centre: projected unless its view is below 0 or a component is NaN.
struct Center {
  float view, y, x;
  bool projected;
};

AB_HD Center center_of(const float* centers, int32_t components, int32_t q) {
  const float* c = centers + static_cast<int64_t>(q) * components;
  const float view = components == 3 ? __builtin_floorf(c[0]) : 0.0f;
  const float y = c[components - 2], x = c[components - 1];
  return {view, y, x, view >= 0.0f && y == y && x == x};
}

// The cells of one view that a query's term can touch: rows [y0, y1], columns [x0, x1]; none where y1 < y0.
struct CellBox {
  int32_t view, y0, y1, x0, x1;
};

// Closed integer range of [low, high] cut to [0, size): empty as {0, −1}.
AB_HD void cut_range(float low, float high, int32_t size, int32_t* first, int32_t* last) {
  const float top = static_cast<float>(size - 1);
  low = low > 0.0f ? low : 0.0f;
  high = high < top ? high : top;
  const bool any = low <= high;
  *first = any ? static_cast<int32_t>(low) : 0;
  *last = any ? static_cast<int32_t>(high) : -1;
}

AB_HD CellBox box_round(const CellGrid& grid, const Center& center, float low_y, float high_y, float low_x,
                        float high_x) {
  CellBox box = {0, 0, -1, 0, -1};
  if (!center.projected || center.view >= static_cast<float>(grid.views)) return box;
  box.view = static_cast<int32_t>(center.view);
  cut_range(low_y, high_y, grid.height, &box.y0, &box.y1);
  cut_range(low_x, high_x, grid.width, &box.x0, &box.x1);
  if (box.x1 < box.x0) box.y1 = box.y0 - 1;
  return box;
}

// Calls f(begin, end) for each run of the tile's keys that lies in the box.
template <class F>
AB_HD void runs_of(const CellGrid& grid, const CellBox& box, const Tile& t, F&& f) {
  if (box.y1 < box.y0) return;
  const int32_t origin = grid.start + box.view * grid.height * grid.width;  // the view's first key
  const int32_t begin = max_i32(t.k0, origin);
  int32_t row = box.y0;
  if (begin - origin > row * grid.width + box.x1)
    row = (begin - origin - box.x1 + grid.width - 1) / grid.width;
  for (; row <= box.y1; ++row) {
    const int32_t first = origin + row * grid.width;
    if (first + box.x0 >= t.k1) return;
    f(max_i32(first + box.x0, t.k0), min_i32(first + box.x1 + 1, t.k1));
  }
}

struct SpatialSegment {
  CellGrid grid;
  const float* weights;  // [B, Q]
  float radius;

  template <class F>
  void each_tensor(F&& f) {
    f(grid.centers), f(weights);
  }
};

// w[b,q]·strength·max(0, 1 − dist/radius) for a cell of the query's view, else 0.
struct SpatialTerm {
  const SpatialSegment* segments;
  int32_t count;
  float strength;
  int64_t queries;

  static constexpr bool kHides = false, kLocal = true, kBoundsKeys = false;
  static constexpr bool kLearns = true;

  struct Column {
    Cell cell;
    const float* weights;  // of batch row b
    float radius;
    int32_t components;
  };
  AB_HD Column column(int64_t b, int64_t, int32_t k) const {
    for (int32_t i = 0; i < count; ++i) {
      const SpatialSegment& s = segments[i];
      if (!in_grid(s.grid, k)) continue;
      return {cell_of(s.grid, b, queries, k), s.weights + b * queries, s.radius, s.grid.components};
    }
    return {{nullptr, 0, 0, 0}, nullptr, 1, 0};
  }
  template <class Real>
  AB_HD Real value(const Column& column, int32_t q) const {
    if (!column.cell.centers) return Real(0);
    const Center center = center_of(column.cell.centers, column.components, q);
    const Real share = share_of<Real>(column.cell, center, Real(1) / static_cast<Real>(column.radius));
    return share > Real(0) ? static_cast<Real>(column.weights[q]) * static_cast<Real>(strength) * share
                           : Real(0);
  }
  // Runs of the tile's keys within the radius of query q.
  template <class F>
  AB_HD void near(const Tile& t, int32_t q, F&& f) const {
    for (int32_t i = 0; i < count; ++i) {
      const SpatialSegment& s = segments[i];
      if (t.k1 <= s.grid.start || t.k0 >= s.grid.end) continue;
      const float* centers = s.grid.centers + t.b * queries * s.grid.components;
      runs_of(s.grid, box_of(s, center_of(centers, s.grid.components, q)), t, f);
    }
  }
  template <class Real, class F>
  AB_HD void near_values(const Tile& t, int32_t q, F&& f) const {
    near_shares<Real>(t, q, [&](int32_t i, int32_t begin, int32_t end, auto share) AB_INLINE_LAMBDA {
      const float weight = segments[i].weights[t.b * queries + q];
      const Real scale = static_cast<Real>(weight) * static_cast<Real>(strength);
      f(begin, end, [&](int32_t k) AB_INLINE_LAMBDA {
        const Real of_key = share(k);
        return of_key > Real(0) ? scale * of_key : Real(0);
      });
    });
  }
  template <class Real, class F>
  AB_HD void near_derivatives(const Tile& t, int32_t q, F&& f) const {
    near_shares<Real>(t, q, [&](int32_t i, int32_t begin, int32_t end, auto share) AB_INLINE_LAMBDA {
      f(i, t.b * queries + q, begin, end, [&](int32_t k) AB_INLINE_LAMBDA {
        const Real of_key = share(k);
        return of_key > Real(0) ? static_cast<Real>(strength) * of_key : Real(0);
      });
    });
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t h, int32_t k, int32_t q, F&& f) const {
    const Tile pair = {b, h, q, q + 1, k, k + 1};
    near_derivatives<Real>(pair, q,
                           [&](int32_t slot, int64_t at, int32_t, int32_t, auto derivative)
                               AB_INLINE_LAMBDA { f(slot, at, derivative(0)); });
  }
  AB_HD float outside(int32_t) const { return 0.0f; }
  AB_HD int32_t next_cut(int32_t, int32_t end) const { return end; }
  AB_HD TileClass tile_class(const Tile& t) const {
    bool touched = false;
    for (int32_t q = t.q0; q < t.q1 && !touched; ++q)
      near(t, q, [&](int32_t, int32_t) AB_INLINE_LAMBDA { touched = true; });
    return touched ? TileClass::kMixed : TileClass::kZero;
  }

 private:
  // One cell of slack: the bounds are rounded, and the cells at them have a share of 0 anyway.
  AB_HD static CellBox box_of(const SpatialSegment& s, const Center& c) {
    const float r = s.radius;
    return box_round(s.grid, c, c.y - r, c.y + r + 1, c.x - r, c.x + r + 1);
  }
  // Calls f(segment, begin, end, share) for the runs of near(); share(i) is that of key begin + i.
  template <class Real, class F>
  AB_HD void near_shares(const Tile& t, int32_t q, F&& f) const {
    for (int32_t i = 0; i < count; ++i) {
      const SpatialSegment& s = segments[i];
      if (t.k1 <= s.grid.start || t.k0 >= s.grid.end) continue;
      const float* centers = s.grid.centers + t.b * queries * s.grid.components;
      const Center center = center_of(centers, s.grid.components, q);
      const Real inverse = Real(1) / static_cast<Real>(s.radius);
      runs_of(s.grid, box_of(s, center), t, [&](int32_t begin, int32_t end) AB_INLINE_LAMBDA {
        const Cell first = cell_of(s.grid, t.b, queries, begin);
        f(i, begin, end, [&](int32_t k) AB_INLINE_LAMBDA {
          const Cell cell = {first.centers, first.view, first.y, first.x + static_cast<float>(k)};
          return share_of<Real>(cell, center, inverse);
        });
      });
    }
  }
  // 1 − dist/radius; not above 0 for a cell of another view, nor for NaN.
  template <class Real>
  AB_HD static Real share_of(const Cell& cell, const Center& center, Real inverse_radius) {
    // In radii: squares of great distances in cells pass float32.
    const Real dy = (static_cast<Real>(cell.y) - static_cast<Real>(center.y)) * inverse_radius;
    const Real dx = (static_cast<Real>(cell.x) - static_cast<Real>(center.x)) * inverse_radius;
    const Real share = Real(1) - square_root(dy * dy + dx * dx);
    return center.view == cell.view ? share : Real(0);
  }
  AB_HD static float square_root(float x) { return __builtin_sqrtf(x); }
  AB_HD static double square_root(double x) { return __builtin_sqrt(x); }
};

struct WindowSegment {
  CellGrid grid;
  int32_t half;  // ⌊size/2⌋

  template <class F>
  void each_tensor(F&& f) {
    f(grid.centers);
  }
};

// In a segment, visible where the view is the query's and |y − ⌊cy⌋| ≤ half and |x − ⌊cx⌋| ≤ half. Segments
// are sorted and don't overlap.
struct WindowTerm {
  const WindowSegment* segments;
  int32_t count;
  int64_t queries;

  static constexpr bool kHides = true, kLocal = true, kBoundsKeys = true;
  static constexpr bool kLearns = false;

  struct Column {
    Cell cell;
    float half;
    int32_t components;
  };
  AB_HD Column column(int64_t b, int64_t, int32_t k) const {
    for (int32_t i = 0; i < count; ++i) {
      const WindowSegment& s = segments[i];
      if (!in_grid(s.grid, k)) continue;
      return {cell_of(s.grid, b, queries, k), static_cast<float>(s.half), s.grid.components};
    }
    return {{nullptr, 0, 0, 0}, 0, 0};
  }
  template <class Real>
  AB_HD Real value(const Column& column, int32_t q) const {
    if (!column.cell.centers) return Real(0);
    const Center c = center_of(column.cell.centers, column.components, q);
    const float dy = column.cell.y - __builtin_floorf(c.y), dx = column.cell.x - __builtin_floorf(c.x);
    const bool near = c.view == column.cell.view && __builtin_fabsf(dy) <= column.half &&
                      __builtin_fabsf(dx) <= column.half;  // false for NaN
    return near ? Real(0) : hidden<Real>();
  }
  // Runs of the tile's keys in the windows of query q.
  template <class F>
  AB_HD void near(const Tile& t, int32_t q, F&& f) const {
    for (int32_t i = 0; i < count; ++i) {
      const WindowSegment& s = segments[i];
      if (t.k1 <= s.grid.start || t.k0 >= s.grid.end) continue;
      const Center c = center_of(s.grid.centers + t.b * queries * s.grid.components, s.grid.components, q);
      const float y = __builtin_floorf(c.y), x = __builtin_floorf(c.x), half = static_cast<float>(s.half);
      runs_of(s.grid, box_round(s.grid, c, y - half, y + half, x - half, x + half), t, f);
    }
  }
  AB_HD float outside(int32_t k) const {
    bool inside = false;
    for (int32_t i = 0; i < count; ++i) inside |= in_grid(segments[i].grid, k);
    return inside ? hidden<float>() : 0.0f;
  }
  AB_HD int32_t next_cut(int32_t k, int32_t end) const {
    for (int32_t i = 0; i < count; ++i) end = cut_of(segments[i].grid.start, segments[i].grid.end, k, end);
    return end;
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    int32_t covered = 0;  // keys of the tile that lie in segments
    for (int32_t i = 0; i < count; ++i) {
      const CellGrid& grid = segments[i].grid;
      const int32_t begin = max_i32(t.k0, grid.start), end = min_i32(t.k1, grid.end);
      covered += max_i32(end - begin, 0);
    }
    if (covered == 0) return TileClass::kZero;
    if (covered != t.k1 - t.k0) return TileClass::kMixed;
    bool touched = false;
    for (int32_t q = t.q0; q < t.q1 && !touched; ++q)
      near(t, q, [&](int32_t, int32_t) AB_INLINE_LAMBDA { touched = true; });
    return touched ? TileClass::kMixed : TileClass::kHidden;
  }
  AB_HD int64_t most_visible(int64_t keys) const {
    for (int32_t i = 0; i < count; ++i) {
      const CellGrid& grid = segments[i].grid;
      const int32_t size = 2 * segments[i].half + 1;
      keys -= grid.end - grid.start;
      keys += static_cast<int64_t>(min_i32(size, grid.height)) * min_i32(size, grid.width);
    }
    return keys;
  }
  template <class F>
  AB_HD void visible_runs(const Tile& t, int32_t q, F&& f) const {
    near(t, q, f);
    // What lies between the segments, which are sorted.
    int32_t begin = t.k0;
    for (int32_t i = 0; i <= count; ++i) {
      const int32_t end = i < count ? min_i32(segments[i].grid.start, t.k1) : t.k1;
      if (begin < end) f(begin, end);
      if (i < count) begin = max_i32(begin, segments[i].grid.end);
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------
// Positions of tokens

// Swin: batch row b is window b mod windows_y·windows_x of the shifted map. Only the last row and column of
// windows hold tokens of two regions; there the last `shift` rows (columns) came round from the other side.
struct ShiftedWindowTerm {
  int32_t windows_y, windows_x;
  int32_t height, width;  // of a window
  // First row and column of a window that came round: height − shift, or height for no shift.
  int32_t wrapped_y, wrapped_x;
  float masked;

  static constexpr bool kHides = false, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = false;
  template <class F>
  void each_tensor(F&&) {}

  struct Column {
    int32_t split_y, split_x;  // the window's first wrapped row and column
    int32_t region;
  };
  AB_HD int32_t region(int32_t split_y, int32_t split_x, int32_t token) const {
    const int32_t y = token / width, x = token - y * width;
    return (y >= split_y ? 2 : 0) + (x >= split_x ? 1 : 0);
  }
  AB_HD Column column(int64_t b, int64_t, int32_t k) const {
    const int32_t window = static_cast<int32_t>(b % (static_cast<int64_t>(windows_y) * windows_x));
    const int32_t split_y = window / windows_x == windows_y - 1 ? wrapped_y : height;
    const int32_t split_x = window % windows_x == windows_x - 1 ? wrapped_x : width;
    return {split_y, split_x, region(split_y, split_x, k)};
  }
  template <class Real>
  AB_HD Real value(const Column& c, int32_t q) const {
    return region(c.split_y, c.split_x, q) != c.region ? static_cast<Real>(masked) : Real(0);
  }
  AB_HD TileClass tile_class(const Tile& t) const {
    const Column c = column(t.b, t.h, t.k0);
    return c.split_y == height && c.split_x == width ? TileClass::kZero : TileClass::kMixed;
  }
  // The first batch row of the same values as b's: of the window's row and column only the wrapping counts.
  AB_HD int64_t first_alike(int64_t b) const {
    const Column c = column(b, 0, 0);
    const int64_t y = c.split_y < height ? windows_y - 1 : 0, x = c.split_x < width ? windows_x - 1 : 0;
    return y * windows_x + x;
  }
};

// table[index, h]; index (yq − yk + height − 1)·(2·width − 1) + xq − xk + width − 1. With a class token
// (token 0) the last three rows are cls→token, token→cls, cls→cls.
struct RelativePositionTerm {
  const float* table;
  int32_t height, width;
  int64_t heads;
  bool cls_token;

  static constexpr bool kHides = false, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = true;
  template <class F>
  void each_tensor(F&& f) {
    f(table);
  }

  struct Column {
    const float* table;  // of head h
    int32_t y, x;        // of the key; y = −1: the class token
  };
  AB_HD Column column(int64_t, int64_t h, int32_t k) const {
    if (cls_token && k == 0) return {table + h, -1, 0};
    const int32_t token = cls_token ? k - 1 : k;
    return {table + h, token / width, token % width};
  }
  // The row of the table.
  AB_HD int32_t index(const Column& c, int32_t q) const {
    const int32_t pairs = (2 * height - 1) * (2 * width - 1);
    if (cls_token && q == 0) return c.y < 0 ? pairs + 2 : pairs;
    if (c.y < 0) return pairs + 1;
    const int32_t token = cls_token ? q - 1 : q;
    const int32_t y = token / width, x = token - y * width;
    return (y - c.y + height - 1) * (2 * width - 1) + x - c.x + width - 1;
  }
  AB_HD int32_t rows() const { return (2 * height - 1) * (2 * width - 1) + (cls_token ? 3 : 0); }
  // index() backwards: the queries that have row i of the table with key `c`.
  AB_HD QueryRange queries_of(const Column& c, int32_t i, int32_t queries) const {
    const int32_t columns = 2 * width - 1, pairs = (2 * height - 1) * columns;
    if (i >= pairs) {
      if (i == (c.y < 0 ? pairs + 2 : pairs)) return {0, 1};
      return {1, c.y < 0 && i == pairs + 1 ? queries : 1};
    }
    const int32_t y = c.y + i / columns - (height - 1), x = c.x + i % columns - (width - 1);
    if (c.y < 0 || y < 0 || y >= height || x < 0 || x >= width) return {0, 0};
    const int32_t q = y * width + x + (cls_token ? 1 : 0);
    return {q, q + 1};
  }
  // Rows [*begin, *end) of the table, with the last three where there is a class token, are those of all
  // pairs of a tile.
  AB_HD void rows_of(const Tile& t, int32_t* begin, int32_t* end) const {
    const int32_t first = cls_token ? 1 : 0, columns = 2 * width - 1;
    const int32_t least = max_i32(t.q0 - first, 0) / width - max_i32(t.k1 - 1 - first, 0) / width;
    const int32_t most = max_i32(t.q1 - 1 - first, 0) / width - max_i32(t.k0 - first, 0) / width;
    *begin = (least + height - 1) * columns;
    *end = (most + height) * columns;
  }
  template <class Real>
  AB_HD Real value(const Column& c, int32_t q) const {
    return static_cast<Real>(c.table[index(c, q) * heads]);
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t h, int32_t k, int32_t q, F&& f) const {
    f(0, index(column(b, h, k), q) * heads + h, Real(1));
  }
  AB_HD TileClass tile_class(const Tile&) const { return TileClass::kMixed; }
};

// scale·Σ_r query_factors[b,h,q,r]·key_factors[b,h,k,r]
struct LowRankTerm {
  const float* query_factors;
  const float* key_factors;
  int64_t query_batch_stride, query_head_stride, key_batch_stride, key_head_stride;
  int32_t rank;
  float scale;

  static constexpr bool kHides = false, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = true;
  template <class F>
  void each_tensor(F&& f) {
    f(query_factors), f(key_factors);
  }

  struct Column {
    const float* query_factors;  // [Q, rank] of batch row b and head h
    const float* key_factors;    // [rank] of the key
  };
  AB_HD Column column(int64_t b, int64_t h, int32_t k) const {
    return {query_factors + b * query_batch_stride + h * query_head_stride,
            key_factors + b * key_batch_stride + h * key_head_stride + static_cast<int64_t>(k) * rank};
  }
  template <class Real>
  AB_HD Real value(const Column& c, int32_t q) const {
    const float* row = c.query_factors + static_cast<int64_t>(q) * rank;
    Real sum = 0;
    for (int32_t r = 0; r < rank; ++r) sum += static_cast<Real>(row[r]) * static_cast<Real>(c.key_factors[r]);
    return sum * static_cast<Real>(scale);
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t h, int32_t k, int32_t q, F&& f) const {
    const int64_t query = b * query_batch_stride + h * query_head_stride + static_cast<int64_t>(q) * rank;
    const int64_t key = b * key_batch_stride + h * key_head_stride + static_cast<int64_t>(k) * rank;
    for (int32_t r = 0; r < rank; ++r) {
      f(0, query + r, static_cast<Real>(scale) * static_cast<Real>(key_factors[key + r]));
      f(1, key + r, static_cast<Real>(scale) * static_cast<Real>(query_factors[query + r]));
    }
  }
  AB_HD TileClass tile_class(const Tile&) const {
    return scale == 0.0f ? TileClass::kZero : TileClass::kMixed;
  }
};

// −slopes[h]·|q + offset − k|, offset = K − Q
struct AlibiTerm {
  const float* slopes;
  int64_t offset;

  static constexpr bool kHides = false, kLocal = false, kKeysTogether = false, kBoundsKeys = false;
  static constexpr bool kLearns = true;
  template <class F>
  void each_tensor(F&& f) {
    f(slopes);
  }

  struct Column {
    float slope;
    int64_t origin;  // the query at distance 0
  };
  AB_HD Column column(int64_t, int64_t h, int32_t k) const { return {slopes[h], k - offset}; }
  AB_HD static int64_t distance(const Column& c, int32_t q) {
    return q >= c.origin ? q - c.origin : c.origin - q;
  }
  template <class Real>
  AB_HD Real value(const Column& c, int32_t q) const {
    return -static_cast<Real>(c.slope) * static_cast<Real>(distance(c, q));
  }
  template <class Real, class F>
  AB_HD void derivatives(int64_t b, int64_t h, int32_t k, int32_t q, F&& f) const {
    f(0, h, -static_cast<Real>(distance(column(b, h, k), q)));
  }
  // Mixed even where the slope is 0: its derivative is not.
  AB_HD TileClass tile_class(const Tile&) const { return TileClass::kMixed; }
};

// ---------------------------------------------------------------------------------------------------------------

// The one list of terms: enumerator, struct, member.
#define AB_TERMS(X)                                             \
  X(kDense, DenseTerm, dense)                                   \
  X(kMask, MaskTerm, mask)                                      \
  X(kPadding, PaddingTerm, padding)                             \
  X(kBlockDiagonal, BlockDiagonalTerm, block_diagonal)          \
  X(kSlidingWindow, SlidingWindowTerm, sliding_window)          \
  X(kDenoising, DenoisingTerm, denoising)                       \
  X(kModality, ModalityTerm, modality)                          \
  X(kSpatial, SpatialTerm, spatial)                             \
  X(kWindow, WindowTerm, window)                                \
  X(kShiftedWindow, ShiftedWindowTerm, shifted_window)          \
  X(kRelativePosition, RelativePositionTerm, relative_position) \
  X(kLowRank, LowRankTerm, low_rank)                            \
  X(kAlibi, AlibiTerm, alibi)

enum class TermType : uint8_t {
#define AB_ENUMERATOR(name, Type, member) name,
  AB_TERMS(AB_ENUMERATOR)
#undef AB_ENUMERATOR
};

struct Term {
  TermType type;
  union {
#define AB_MEMBER(name, Type, member) Type member;
    AB_TERMS(AB_MEMBER)
#undef AB_MEMBER
  };
};

// Calls f with the term's own struct. On a device f may be a device function, which nvcc warns of otherwise.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class AnyTerm, class F>  // Term or const Term
AB_HD auto visit(AnyTerm& term, F&& f) {
  switch (term.type) {
#define AB_CASE(name, Type, member) \
  case TermType::name:              \
    return f(term.member);
    AB_TERMS(AB_CASE)
#undef AB_CASE
  }
  __builtin_unreachable();
}

// Index of the lowest bit that is set.
AB_HD int lowest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(static_cast<long long>(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

// The bits of `count` terms.
AB_HD uint64_t all_terms(int count) { return count == 0 ? 0 : ~uint64_t{0} >> (64 - count); }

// What a list of terms makes of one tile, for a kernel to act on. Bit i speaks of term i.
struct TilePlan {
  bool hidden;            // skip the tile
  uint64_t row_constant;  // one value a row
  uint64_t mixed;         // to be evaluated for each element
};

constexpr int kMaxTerms = 64;

// Classes a tile by those of the terms whose bits are in `candidates`.
AB_HD TilePlan plan_tile(const Term* terms, uint64_t candidates, const Tile& tile) {
  TilePlan plan = {false, 0, 0};
  for (uint64_t left = candidates; left != 0; left &= left - 1) {
    const int i = lowest_bit(left);
    const uint64_t bit = uint64_t{1} << i;
    switch (visit(terms[i], [&](const auto& term) AB_INLINE_LAMBDA { return term.tile_class(tile); })) {
      case TileClass::kHidden:
        plan.hidden = true;
        return plan;
      case TileClass::kZero:
        break;
      case TileClass::kRowConstant:
        plan.row_constant |= bit;
        break;
      case TileClass::kMixed:
        plan.mixed |= bit;
        break;
    }
  }
  return plan;
}

// The keys that a row of a program can see at most: those of one term that bounds them, cut to the band of
// all sliding windows.
struct KeyBound {
  int64_t most_keys;       // of any row
  SlidingWindowTerm band;  // what all sliding windows leave visible
  int32_t term;            // another that bounds a row's keys, or −1
  uint64_t rest;           // the terms that `band` and `term` leave to be evaluated; bit i speaks of term i
};

// Calls f(begin, end) for the runs of the tile's keys that `bound` leaves visible to query q, each key once.
template <class F>
AB_HD void visible_runs(const KeyBound& bound, const Term* terms, const Tile& tile, int32_t q, F&& f) {
  bound.band.visible_runs(tile, q, [&](int32_t k0, int32_t k1) AB_INLINE_LAMBDA {
    if (bound.term < 0) return f(k0, k1);
    const Tile cut = {tile.b, tile.h, tile.q0, tile.q1, k0, k1};
    visit(terms[bound.term], [&](const auto& term) AB_INLINE_LAMBDA {
      if constexpr (std::decay_t<decltype(term)>::kBoundsKeys) term.visible_runs(cut, q, f);
    });
  });
}

}  // namespace attention_bias
