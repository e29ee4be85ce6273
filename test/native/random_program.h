// Random bias programs with every kind of term, and the tensors that they point to.
#pragma once

#include <cmath>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/program.h"

namespace attention_bias::test {

// Draws by a seed; or, for fuzzing, by bytes while there are any.
class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  // The first two bytes are the seed of what tensors hold (Values) and of all that is drawn once the others
  // are used up.
  Random(const uint8_t* bytes, size_t count)
      : engine_(count < 2 ? 0 : bytes[0] | bytes[1] << 8), next_(bytes), end_(bytes + count) {
    next_ += count < 2 ? count : 2;
  }

  int64_t integer(int64_t low, int64_t high) {
    if (next_ == end_) return std::uniform_int_distribution<int64_t>(low, high)(engine_);
    const uint64_t choices = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int64_t>(take(choices <= 256 ? 1 : choices <= 65536 ? 2 : 4) % choices);
  }
  float uniform(float low, float high) {
    if (next_ == end_) return std::uniform_real_distribution<float>(low, high)(engine_);
    return low + (high - low) * (static_cast<float>(take(2)) / 65536);
  }
  float normal() { return std::normal_distribution<float>()(engine_); }
  bool chance(double p) { return next_ == end_ ? uniform(0, 1) < p : static_cast<double>(take(1)) < 256 * p; }

  // While one lives, draws leave the bytes alone: a tensor's values would use them all up.
  class Values {
   public:
    explicit Values(Random* random) : random_(random) {
      if (!random_) return;
      kept_ = random_->next_;
      random_->next_ = random_->end_;
    }
    ~Values() {
      if (random_) random_->next_ = kept_;
    }
    Values(const Values&) = delete;
    Values& operator=(const Values&) = delete;

   private:
    Random* const random_;
    const uint8_t* kept_ = nullptr;
  };

 private:
  uint64_t take(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes && next_ != end_; ++i) value = value << 8 | *next_++;
    return value;
  }

  std::mt19937 engine_;
  const uint8_t *next_ = nullptr, *end_ = nullptr;
};

// Tensors that live as long as the object.
class Tensors {
 public:
  using Change = std::function<void(const std::string& name, std::vector<float>* values)>;

  Tensors() = default;
  // `random` is what tensors are filled by; `change` is called with each float32 tensor once it is filled.
  Tensors(Random* random, Change change) : random_(random), change_(std::move(change)) {}

  template <class F>
  TensorView f32(const Shape& shape, const std::string& name, F next) {
    fill(&floats_, shape, name, next);
    if (change_) change_(name, &floats_.back());
    return {floats_.back().data(), DType::kFloat32, shape, name};
  }
  template <class F>
  TensorView i32(const Shape& shape, const std::string& name, F next) {
    return {fill(&integers_, shape, name, next), DType::kInt32, shape, name};
  }
  template <class F>
  TensorView u8(const Shape& shape, const std::string& name, F next) {
    return {fill(&bytes_, shape, name, next), DType::kUint8, shape, name};
  }

 private:
  template <class T, class F>
  T* fill(std::deque<std::vector<T>>* tensors, const Shape& shape, const std::string& name, F next) {
    const Random::Values values(random_);
    tensors->emplace_back(static_cast<size_t>(element_count(shape, name)));
    for (T& x : tensors->back()) x = next();
    return tensors->back().data();
  }

  Random* random_ = nullptr;
  Change change_;
  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<int32_t>> integers_;
  std::deque<std::vector<uint8_t>> bytes_;
};

constexpr int kKindsOfTerm = 14;

// A grid that fits `keys` at `start`, and centres, some not projected, some outside it.
inline GridSpec random_grid(int64_t start, int64_t keys, const Extent& e, Random& r, Tensors& t) {
  GridSpec spec;
  spec.start = start;
  const bool views = r.chance(0.5);
  const int64_t v = views ? r.integer(1, std::min<int64_t>(3, keys)) : 1;
  const int64_t h = r.integer(1, std::max<int64_t>(1, static_cast<int64_t>(std::sqrt(double(keys / v)))));
  const int64_t w = keys / v / h;
  spec.grid = views ? std::vector<int64_t>{v, h, w} : std::vector<int64_t>{h, w};
  int64_t i = 0;
  const int64_t components = views ? 3 : 2;
  spec.centers = t.f32({e.batch, e.queries, components}, "centers", [&] {
    const int64_t component = i++ % components;
    if (r.chance(0.05)) return std::numeric_limits<float>::quiet_NaN();
    if (views && component == 0) return r.uniform(-1.5f, static_cast<float>(v) + 0.5f);
    const float size = static_cast<float>(component == components - 1 ? w : h);
    const float at = r.uniform(-2.0f, size + 2.0f);
    return r.chance(0.5) ? std::floor(at) : at;
  });
  return spec;
}

// Adds one random term of the kind, in [0, kKindsOfTerm). False where the extent allows none of it.
inline bool add_random_term(Program* program, int kind, Random& r, Tensors& t) {
  const Extent e = program->extent();
  const std::string path = "bias[" + std::to_string(program->terms().size()) + "]";
  const auto broadcast = [&] {
    return Shape{r.chance(0.5) ? 1 : e.batch, r.chance(0.5) ? 1 : e.heads, r.chance(0.3) ? 1 : e.queries,
                 r.chance(0.3) ? 1 : e.keys};
  };
  const auto weight = [&] { return r.uniform(0, 1); };
  const Align align = r.chance(0.5) ? Align::kTopLeft : Align::kBottomRight;
  // A segment of keys, at random.
  const int64_t start = r.integer(0, e.keys - 1), length = r.integer(1, e.keys - start);
  switch (kind) {
    case 0:
      program->add_dense(
          t.f32(broadcast(), "bias", [&] { return r.chance(0.1) ? -INFINITY : 2 * r.normal(); }), path);
      return true;
    case 1:
      program->add_mask(t.u8(broadcast(), "visible",
                             [&] { return static_cast<uint8_t>(r.chance(0.7) ? r.integer(1, 255) : 0); }),
                        path);
      return true;
    case 2: {
      const bool sparse = r.chance(0.5);
      program->add_padding(
          t.u8({e.batch, e.keys}, "ignore", [&] { return uint8_t(r.chance(sparse ? 0.02 : 0.4)); }), path);
      return true;
    }
    case 3:
      program->add_causal(align, path);
      return true;
    case 4:
      program->add_sliding_window(r.integer(-1, e.keys), r.integer(-1, e.keys / 2), align, path);
      return true;
    case 5: {
      int32_t id = 0;
      const auto next = [&] { return id = r.chance(0.02) ? static_cast<int32_t>(r.integer(0, 3)) : id; };
      const TensorView query_ids = t.i32({e.batch, e.queries}, "queryIds", next);
      program->add_block_diagonal(query_ids, t.i32({e.batch, e.keys}, "keyIds", next), path);
      return true;
    }
    case 6: {
      std::vector<ModalitySegmentSpec> segments = {
          {start, length, t.f32({e.batch, e.queries}, "weights", weight)}};
      if (start > 0)
        segments.push_back({0, r.integer(1, start), t.f32({e.batch, e.queries}, "weights", weight)});
      program->add_modality(r.uniform(-6, 6), segments, path);
      return true;
    }
    case 7:
      program->add_spatial(r.uniform(0, 6),
                           {{random_grid(start, length, e, r, t), r.uniform(0.3f, 9),
                             t.f32({e.batch, e.queries}, "weights", weight)}},
                           path);
      return true;
    case 8:
      program->add_window({{random_grid(start, length, e, r, t), 2 * r.integer(0, 4) + 1}}, path);
      return true;
    case 9: {
      if (e.queries != e.keys) return false;
      const int64_t groups = r.integer(1, e.keys), size = r.integer(1, e.keys / groups);
      program->add_denoising(groups, size, r.chance(0.5), path);
      return true;
    }
    case 10:
    case 11: {
      if (e.queries != e.keys) return false;
      const bool cls = kind == 11 && e.keys > 1 && r.chance(0.5);
      const int64_t tokens = e.keys - (cls ? 1 : 0);
      int64_t h = r.integer(1, tokens);
      while (tokens % h != 0) --h;
      const int64_t w = tokens / h;
      if (kind == 11) {
        program->add_relative_position(
            {h, w},
            t.f32({(2 * h - 1) * (2 * w - 1) + (cls ? 3 : 0), e.heads}, "table", [&] { return r.normal(); }),
            cls, path);
        return true;
      }
      int64_t windows_y = r.integer(1, e.batch);
      while (e.batch % windows_y != 0) --windows_y;
      const int64_t windows_x = r.chance(0.5) ? 1 : e.batch / windows_y;
      program->add_shifted_window({windows_y * h, windows_x * w}, {h, w},
                                  {r.integer(0, h - 1), r.integer(0, w - 1)}, -100, path);
      return true;
    }
    case 12: {
      const int64_t rank = r.integer(1, 9);
      const auto factor = [&] { return 0.5f * r.normal(); };
      const Shape q = {r.chance(0.5) ? 1 : e.batch, r.chance(0.5) ? 1 : e.heads, e.queries, rank};
      const Shape k = {r.chance(0.5) ? 1 : e.batch, r.chance(0.5) ? 1 : e.heads, e.keys, rank};
      const TensorView query_factors = t.f32(q, "queryFactors", factor);
      program->add_low_rank(query_factors, t.f32(k, "keyFactors", factor), r.uniform(-1, 1), path);
      return true;
    }
    case 13:
      // Biases of at most 10: float32 can't tell scores of 1,000 apart to the contract's tolerance.
      program->add_alibi(t.f32({e.heads}, "slopes",
                               [&] {
                                 return r.chance(0.2)
                                            ? 0.0f
                                            : r.uniform(
                                                  0, 10.0f / static_cast<float>(std::max(e.keys, e.queries)));
                               }),
                         path);
      return true;
  }
  return false;
}

// Adds a window term of one to three segments, with keys outside them at random.
inline void add_random_windows(Program* program, Random& r, Tensors& t) {
  const Extent e = program->extent();
  std::vector<WindowSegmentSpec> segments;
  int64_t start = r.chance(0.5) ? 0 : r.integer(0, e.keys - 1);
  for (int64_t left = r.integer(1, 3); left > 0 && start < e.keys; --left) {
    const int64_t length = left == 1 ? e.keys - start : r.integer(1, e.keys - start);
    segments.push_back({random_grid(start, length, e, r, t), 2 * r.integer(0, 4) + 1});
    start += length;
  }
  if (r.chance(0.3)) std::swap(segments.front(), segments.back());
  program->add_window(segments, "bias[" + std::to_string(program->terms().size()) + "]");
}

// Adds a sliding window of few keys, or none.
inline void add_narrow_window(Program* program, Random& r) {
  const std::string path = "bias[" + std::to_string(program->terms().size()) + "]";
  const Align align = r.chance(0.5) ? Align::kTopLeft : Align::kBottomRight;
  program->add_sliding_window(r.integer(-1, 20), r.integer(-1, 20), align, path);
}

// Adds up to `count` terms of random kinds, those that fit the program's shape; returns the kinds, for
// messages.
inline std::string add_random_terms(Program* bias, int64_t count, Random& r, Tensors& tensors) {
  std::string kinds;
  for (int64_t i = 0; i < count; ++i) {
    const int kind = static_cast<int>(r.integer(0, kKindsOfTerm - 1));
    if (add_random_term(bias, kind, r, tensors)) kinds += " " + std::to_string(kind);
  }
  return kinds;
}

}  // namespace attention_bias::test
