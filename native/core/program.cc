#include "core/program.h"

#include <algorithm>
#include <cmath>

namespace attention_bias {

namespace {

float finite_number(double value, const std::string& name) {
  if (!std::isfinite(static_cast<float>(value))) {
    throw expected(ErrorCode::kValue, "a finite float32", name, number(value));
  }
  return static_cast<float>(value);
}

int64_t at_least(int64_t value, int64_t least, const std::string& name) {
  if (value < least) {
    throw expected(ErrorCode::kValue, "an integer of at least " + std::to_string(least), name,
                   std::to_string(value));
  }
  return value;
}

struct KeyRange {
  int64_t start, length;
  std::string path;         // bias[0].segments[1]
  std::string length_name;  // the field that gives the length: length, or grid
};

// Segments lie within the keys and don't overlap.
void require_segments(std::vector<KeyRange> ranges, int64_t keys, const std::string& path) {
  if (ranges.empty()) throw expected(ErrorCode::kTerm, "at least one segment", path + ".segments", "none");
  for (const KeyRange& r : ranges) {
    at_least(r.start, 0, r.path + ".start");
    if (r.length > keys || r.start > keys - r.length) {
      throw expected(ErrorCode::kValue, "a segment that ends at or before key " + std::to_string(keys),
                     r.path + "." + r.length_name,
                     "start " + std::to_string(r.start) + " and " + std::to_string(r.length) + " keys");
    }
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const KeyRange& a, const KeyRange& b) { return a.start < b.start; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    const KeyRange &a = ranges[i - 1], &b = ranges[i];
    if (a.start + a.length > b.start) {
      throw expected(ErrorCode::kValue, "segments that don't overlap", path + ".segments",
                     a.path + " ending at key " + std::to_string(a.start + a.length) + " and " + b.path +
                         " starting at key " + std::to_string(b.start));
    }
  }
}

int64_t align_offset(Align align, const Extent& e) {
  return align == Align::kBottomRight ? e.keys - e.queries : 0;
}

std::string list(const std::vector<int64_t>& values) { return to_string(values); }

// A pair of positive integers that fit 32 bits.
void require_pair(const std::vector<int64_t>& values, int64_t least, const char* letters,
                  const std::string& name) {
  const bool good = values.size() == 2 && std::all_of(values.begin(), values.end(), [&](int64_t v) {
                      return v >= least && v < (int64_t{1} << 31);
                    });
  if (!good) {
    throw expected(ErrorCode::kValue,
                   std::string(letters) + ", integers of at least " + std::to_string(least), name,
                   list(values));
  }
}

KeyRange key_range(const GridSpec& spec, const std::string& path) {
  return {spec.start, element_count(spec.grid, path + ".grid"), path, "grid"};
}

std::string segment_path(const std::string& path, size_t i) {
  return path + ".segments[" + std::to_string(i) + "]";
}

template <class Segment, class Start>
void sort_by_start(std::vector<Segment>* segments, Start start) {
  std::sort(segments->begin(), segments->end(),
            [&](const Segment& a, const Segment& b) { return start(a) < start(b); });
}

Term term_of(TermType type) {
  Term term = {};
  term.type = type;
  return term;
}

}  // namespace

Program::Program(const Extent& extent) : extent_(extent) { require_extent(extent, "shape"); }

const Term* Program::term_data() const { return terms_.data(); }

int Program::term_count() const { return static_cast<int>(terms_.size()); }

int Program::learnable_count(int term) const {
  return static_cast<int>(std::count_if(learnables_.begin(), learnables_.end(),
                                        [&](const Learnable& l) { return l.term == term; }));
}

KeyBound Program::key_bound() const {
  KeyBound bound = {extent_.keys, kWholeRow, -1, 0};
  for (size_t i = 0; i < terms_.size(); ++i) {
    if (terms_[i].type == TermType::kSlidingWindow) {
      bound.band = intersection(bound.band, terms_[i].sliding_window);
    } else {
      bound.rest |= uint64_t{1} << i;
    }
  }
  bound.most_keys = bound.band.most_visible(extent_.keys);
  for (size_t i = 0; i < terms_.size(); ++i) {
    visit(terms_[i], [&](const auto& term) {
      if constexpr (std::decay_t<decltype(term)>::kBoundsKeys) {
        const int64_t most = term.most_visible(extent_.keys);
        if (most >= bound.most_keys) return;  // a sliding window is no narrower than the band
        bound.most_keys = most;
        bound.term = static_cast<int32_t>(i);
      }
    });
  }
  if (bound.term >= 0) bound.rest &= ~(uint64_t{1} << bound.term);
  return bound;
}

int64_t Program::first_alike(int64_t b) const {
  if (batch_terms_ == 0) return 0;
  const Term& term = terms_[static_cast<size_t>(lowest_bit(batch_terms_))];
  const bool alone = (batch_terms_ & (batch_terms_ - 1)) == 0;
  return alone && term.type == TermType::kShiftedWindow ? term.shifted_window.first_alike(b) : b;
}

void Program::append(const Term& term, const std::string& path, bool depends_on_batch, bool depends_on_head) {
  if (terms_.size() == kMaxTerms) {
    throw expected(ErrorCode::kTerm, "at most " + std::to_string(kMaxTerms) + " terms", "bias",
                   "more, with " + path);
  }
  if (depends_on_batch) batch_terms_ |= uint64_t{1} << terms_.size();
  terms_.push_back(term);
  depends_on_head_ |= depends_on_head;
}

// The grid of a segment, checked but for its place among the keys, which require_segments checks of
// key_range().
CellGrid Program::cell_grid(const GridSpec& spec, const std::string& path) {
  const size_t rank = spec.grid.size();
  const bool positive = std::all_of(spec.grid.begin(), spec.grid.end(),
                                    [](int64_t size) { return size >= 1 && size < (int64_t{1} << 31); });
  if ((rank != 2 && rank != 3) || !positive) {
    throw expected(ErrorCode::kValue, "[V, Hg, Wg] or [Hg, Wg], integers of at least 1", path + ".grid",
                   list(spec.grid));
  }
  const bool views = rank == 3;
  require(spec.centers, DType::kFloat32, {dim(extent_.batch), dim(extent_.queries), dim(views ? 3 : 2)},
          views ? "[B, Q, 3]" : "[B, Q, 2]");
  CellGrid grid = {};
  // A grid larger than the keys is refused by require_segments before these are used.
  grid.start = static_cast<int32_t>(spec.start);
  grid.views = static_cast<int32_t>(views ? spec.grid[0] : 1);
  grid.height = static_cast<int32_t>(spec.grid[rank - 2]);
  grid.width = static_cast<int32_t>(spec.grid[rank - 1]);
  grid.centers = spec.centers.f32();
  grid.components = views ? 3 : 2;
  grid.end = static_cast<int32_t>(spec.start + element_count(spec.grid, path + ".grid"));
  return grid;
}

void Program::require(const TensorView& view, DType dtype, const std::vector<Dim>& dims,
                      const char* letters) {
  attention_bias::require(view, dtype, dims, letters);
  tensors_.push_back(view);
}

void Program::learn(const TensorView& tensor) {
  const int term = static_cast<int>(terms_.size());
  const bool more = !learnables_.empty() && learnables_.back().term == term;
  learnables_.push_back({tensor, term, more ? learnables_.back().slot + 1 : 0});
}

void Program::require_range(const TensorView& view, float low, float high, const char* what) {
  const ValueCheck check = {view, low, high, what};
  if (view.on_device) {
    device_checks_.push_back(check);
  } else {
    require_values(check);
  }
}

void Program::require_finite(const TensorView& view) {
  require_range(view, -kGreatestFloat, kGreatestFloat, "finite values");
}

void Program::add_dense(const TensorView& bias, const std::string& path) {
  const Extent& e = extent_;
  require(bias, DType::kFloat32, {one_or(e.batch), one_or(e.heads), one_or(e.queries), one_or(e.keys)},
          "[1|B, 1|H, 1|Q, 1|K]");
  require_range(bias, -INFINITY, kGreatestFloat, "finite values or -Infinity");
  const BroadcastStrides s = broadcast_strides(bias.shape);
  Term term = term_of(TermType::kDense);
  term.dense = {bias.f32(), s.batch, s.head, s.query, s.key};
  learn(bias);
  append(term, path, bias.shape[0] > 1, bias.shape[1] > 1);
}

void Program::add_mask(const TensorView& visible, const std::string& path) {
  const Extent& e = extent_;
  require(visible, DType::kUint8, {one_or(e.batch), one_or(e.heads), one_or(e.queries), one_or(e.keys)},
          "[1|B, 1|H, 1|Q, 1|K]");
  const BroadcastStrides s = broadcast_strides(visible.shape);
  Term term = term_of(TermType::kMask);
  term.mask = {visible.u8(), s.batch, s.head, s.query, s.key};
  append(term, path, visible.shape[0] > 1, visible.shape[1] > 1);
}

void Program::add_padding(const TensorView& ignore, const std::string& path) {
  require(ignore, DType::kUint8, {dim(extent_.batch), dim(extent_.keys)}, "[B, K]");
  Term term = term_of(TermType::kPadding);
  term.padding = {ignore.u8(), extent_.keys};
  append(term, path, true, false);
}

void Program::add_causal(Align align, const std::string& path) { add_sliding_window(-1, 0, align, path); }

void Program::add_sliding_window(int64_t left, int64_t right, Align align, const std::string& path) {
  at_least(left, -1, path + ".left");
  at_least(right, -1, path + ".right");
  const auto limit = [](int64_t side) { return side < 0 ? kUnlimited : std::min(side, kUnlimited); };
  Term term = term_of(TermType::kSlidingWindow);
  term.sliding_window = {limit(left), limit(right), align_offset(align, extent_)};
  append(term, path, false, false);
}

void Program::add_block_diagonal(const TensorView& query_ids, const TensorView& key_ids,
                                 const std::string& path) {
  require(query_ids, DType::kInt32, {dim(extent_.batch), dim(extent_.queries)}, "[B, Q]");
  require(key_ids, DType::kInt32, {dim(extent_.batch), dim(extent_.keys)}, "[B, K]");
  Term term = term_of(TermType::kBlockDiagonal);
  term.block_diagonal = {query_ids.i32(), key_ids.i32(), extent_.queries, extent_.keys};
  append(term, path, true, false);
}

void Program::add_modality(double strength, const std::vector<ModalitySegmentSpec>& segments,
                           const std::string& path) {
  const Extent& e = extent_;
  const float twice_strength = finite_number(2 * strength, path + ".strength");
  std::vector<KeyRange> ranges;
  for (size_t i = 0; i < segments.size(); ++i) {
    const std::string at = segment_path(path, i);
    ranges.push_back({segments[i].start, at_least(segments[i].length, 1, at + ".length"), at, "length"});
  }
  require_segments(ranges, e.keys, path);
  std::vector<ModalitySegment> resolved;
  for (const ModalitySegmentSpec& s : segments) {
    require(s.weights, DType::kFloat32, {dim(e.batch), dim(e.queries)}, "[B, Q]");
    require_range(s.weights, 0.0f, 1.0f, "values in [0, 1]");
    resolved.push_back(
        {static_cast<int32_t>(s.start), static_cast<int32_t>(s.start + s.length), s.weights.f32()});
  }
  sort_by_start(&resolved, [](const ModalitySegment& s) { return s.start; });
  std::vector<ModalitySegmentSpec> by_slot = segments;
  sort_by_start(&by_slot, [](const ModalitySegmentSpec& s) { return s.start; });
  for (const ModalitySegmentSpec& s : by_slot) learn(s.weights);
  modality_segments_.push_back(std::move(resolved));
  Term term = term_of(TermType::kModality);
  const auto& owned = modality_segments_.back();
  term.modality = {owned.data(), static_cast<int32_t>(owned.size()), twice_strength, e.queries};
  append(term, path, true, false);
}

void Program::add_spatial(double strength, const std::vector<SpatialSegmentSpec>& segments,
                          const std::string& path) {
  const Extent& e = extent_;
  const float checked_strength = finite_number(strength, path + ".strength");
  std::vector<KeyRange> ranges;
  std::vector<SpatialSegment> resolved;
  for (size_t i = 0; i < segments.size(); ++i) {
    const SpatialSegmentSpec& s = segments[i];
    const std::string at = segment_path(path, i);
    const CellGrid grid = cell_grid(s.cells, at);
    ranges.push_back(key_range(s.cells, at));
    const float radius = finite_number(s.radius, at + ".radius");
    if (!(radius > 0))
      throw expected(ErrorCode::kValue, "a number above 0", at + ".radius", number(s.radius));
    require(s.weights, DType::kFloat32, {dim(e.batch), dim(e.queries)}, "[B, Q]");
    require_finite(s.weights);
    // A distance over it, and its inverse, are float32: below, only a cell whose centre this is lies within.
    constexpr float kLeastRadius = 1e-30f;
    resolved.push_back({grid, s.weights.f32(), std::max(radius, kLeastRadius)});
  }
  require_segments(ranges, e.keys, path);
  sort_by_start(&resolved, [](const SpatialSegment& s) { return s.grid.start; });
  std::vector<SpatialSegmentSpec> by_slot = segments;
  sort_by_start(&by_slot, [](const SpatialSegmentSpec& s) { return s.cells.start; });
  for (const SpatialSegmentSpec& s : by_slot) learn(s.weights);
  spatial_segments_.push_back(std::move(resolved));
  Term term = term_of(TermType::kSpatial);
  const auto& owned = spatial_segments_.back();
  term.spatial = {owned.data(), static_cast<int32_t>(owned.size()), checked_strength, e.queries};
  append(term, path, true, false);
}

void Program::add_window(const std::vector<WindowSegmentSpec>& segments, const std::string& path) {
  const Extent& e = extent_;
  std::vector<KeyRange> ranges;
  std::vector<WindowSegment> resolved;
  for (size_t i = 0; i < segments.size(); ++i) {
    const WindowSegmentSpec& s = segments[i];
    const std::string at = segment_path(path, i);
    const CellGrid grid = cell_grid(s.cells, at);
    ranges.push_back(key_range(s.cells, at));
    if (s.size < 1 || s.size % 2 == 0 || s.size >= (int64_t{1} << 24)) {
      throw expected(ErrorCode::kValue, "an odd integer from 1 to 2^24", at + ".size",
                     std::to_string(s.size));
    }
    resolved.push_back({grid, static_cast<int32_t>(s.size / 2)});
  }
  require_segments(ranges, e.keys, path);
  sort_by_start(&resolved, [](const WindowSegment& s) { return s.grid.start; });
  window_segments_.push_back(std::move(resolved));
  Term term = term_of(TermType::kWindow);
  const auto& owned = window_segments_.back();
  term.window = {owned.data(), static_cast<int32_t>(owned.size()), e.queries};
  append(term, path, true, false);
}

void Program::add_denoising(int64_t groups, int64_t group_size, bool groups_see_matching,
                            const std::string& path) {
  const Extent& e = extent_;
  at_least(groups, 1, path + ".groups");
  at_least(group_size, 1, path + ".groupSize");
  if (e.queries != e.keys) {
    throw expected(ErrorCode::kShape, "self-attention, Q = K,", path,
                   "Q " + std::to_string(e.queries) + " and K " + std::to_string(e.keys));
  }
  if (groups > e.queries || group_size > e.queries / groups) {
    throw expected(ErrorCode::kValue, "groups·groupSize of at most Q = " + std::to_string(e.queries),
                   path + ".groupSize", std::to_string(groups) + " groups of " + std::to_string(group_size));
  }
  Term term = term_of(TermType::kDenoising);
  term.denoising = {group_size, groups * group_size, e.queries, groups_see_matching};
  append(term, path, false, false);
}

void Program::add_shifted_window(const std::vector<int64_t>& resolution, const std::vector<int64_t>& window,
                                 const std::vector<int64_t>& shift, double value, const std::string& path) {
  const Extent& e = extent_;
  require_pair(resolution, 1, "[H, W]", path + ".resolution");
  require_pair(window, 1, "[Mh, Mw]", path + ".window");
  require_pair(shift, 0, "[sh, sw]", path + ".shift");
  if (resolution[0] % window[0] != 0 || resolution[1] % window[1] != 0) {
    throw expected(ErrorCode::kValue, "a multiple of the window " + list(window), path + ".resolution",
                   list(resolution));
  }
  if (shift[0] >= window[0] || shift[1] >= window[1]) {
    throw expected(ErrorCode::kValue, "a shift below the window " + list(window), path + ".shift",
                   list(shift));
  }
  const int64_t windows_y = resolution[0] / window[0], windows_x = resolution[1] / window[1];
  if (e.queries != e.keys || e.keys != window[0] * window[1]) {
    throw expected(ErrorCode::kShape, "Q = K = Mh·Mw = " + std::to_string(window[0] * window[1]),
                   path + ".window", "Q " + std::to_string(e.queries) + " and K " + std::to_string(e.keys));
  }
  if (e.batch % (windows_y * windows_x) != 0) {
    throw expected(ErrorCode::kShape,
                   "a batch that is a multiple of the " + std::to_string(windows_y * windows_x) + " windows",
                   path + ".resolution", "B " + std::to_string(e.batch));
  }
  Term term = term_of(TermType::kShiftedWindow);
  term.shifted_window = {static_cast<int32_t>(windows_y),
                         static_cast<int32_t>(windows_x),
                         static_cast<int32_t>(window[0]),
                         static_cast<int32_t>(window[1]),
                         static_cast<int32_t>(window[0] - shift[0]),
                         static_cast<int32_t>(window[1] - shift[1]),
                         finite_number(value, path + ".value")};
  append(term, path, true, false);
}

void Program::add_relative_position(const std::vector<int64_t>& window, const TensorView& table,
                                    bool cls_token, const std::string& path) {
  const Extent& e = extent_;
  require_pair(window, 1, "[Mh, Mw]", path + ".window");
  // A window that matches Q fits 32 bits; so does its table of less than 4·Q rows only where Q is below 2^29.
  const int64_t tokens = window[0] * window[1] + (cls_token ? 1 : 0);
  if (e.queries != tokens || e.keys != tokens || tokens >= (int64_t{1} << 29)) {
    throw expected(ErrorCode::kShape,
                   "Q = K = Mh·Mw" + std::string(cls_token ? " + 1" : "") + " = " + std::to_string(tokens),
                   path + ".window", "Q " + std::to_string(e.queries) + " and K " + std::to_string(e.keys));
  }
  const int64_t rows = (2 * window[0] - 1) * (2 * window[1] - 1) + (cls_token ? 3 : 0);
  require(table, DType::kFloat32, {dim(rows), dim(e.heads)},
          cls_token ? "[(2Mh-1)(2Mw-1)+3, H]" : "[(2Mh-1)(2Mw-1), H]");
  require_finite(table);
  Term term = term_of(TermType::kRelativePosition);
  term.relative_position = {table.f32(), static_cast<int32_t>(window[0]), static_cast<int32_t>(window[1]),
                            e.heads, cls_token};
  learn(table);
  append(term, path, false, true);
}

void Program::add_low_rank(const TensorView& query_factors, const TensorView& key_factors, double scale,
                           const std::string& path) {
  const Extent& e = extent_;
  const int64_t rank = query_factors.shape.size() == 4 ? query_factors.shape[3] : 0;
  require(query_factors, DType::kFloat32, {one_or(e.batch), one_or(e.heads), dim(e.queries), dim(rank)},
          "[1|B, 1|H, Q, R]");
  require(key_factors, DType::kFloat32, {one_or(e.batch), one_or(e.heads), dim(e.keys), dim(rank)},
          "[1|B, 1|H, K, R]");
  if (rank > kMaxHeadDim) {
    throw expected(ErrorCode::kShape, "a rank of at most " + std::to_string(kMaxHeadDim), query_factors.name,
                   to_string(query_factors.shape));
  }
  require_finite(query_factors);
  require_finite(key_factors);
  const BroadcastStrides q = broadcast_strides(query_factors.shape), k = broadcast_strides(key_factors.shape);
  low_rank_dims_ += rank;
  Term term = term_of(TermType::kLowRank);
  term.low_rank = {query_factors.f32(),
                   key_factors.f32(),
                   q.batch,
                   q.head,
                   k.batch,
                   k.head,
                   static_cast<int32_t>(rank),
                   finite_number(scale, path + ".scale")};
  learn(query_factors);
  learn(key_factors);
  append(term, path, query_factors.shape[0] > 1 || key_factors.shape[0] > 1,
         query_factors.shape[1] > 1 || key_factors.shape[1] > 1);
}

void Program::add_alibi(const TensorView& slopes, const std::string& path) {
  require(slopes, DType::kFloat32, {dim(extent_.heads)}, "[H]");
  const double farthest = static_cast<double>(std::max({extent_.queries, extent_.keys, int64_t{2}}) - 1);
  // The division's rounding may pass the limit by one.
  const float greatest = std::nextafter(static_cast<float>(kGreatestFloat / farthest), 0.0f);
  require_range(slopes, -greatest, greatest, "slopes that times every distance are finite in float32");
  Term term = term_of(TermType::kAlibi);
  term.alibi = {slopes.f32(), extent_.keys - extent_.queries};
  learn(slopes);
  append(term, path, false, true);
}

}  // namespace attention_bias
