// Term programs with fields and tensors at and beyond the edges of what they may hold. A program is refused
// with an error of one sentence, or it computes what the float64 reference does: its bias, and an attention
// under it.
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "agreement.h"
#include "core/errors.h"

namespace attention_bias::fuzz {

namespace {

constexpr int64_t kMaxInteger = int64_t{1} << 53;  // what JavaScript can count to, and the addon lets through

class Specs {
 public:
  Specs(const Extent& extent, test::Random* random)
      : e_(extent),
        r_(random),
        tensors_(random, [this](const std::string&, std::vector<float>* values) { spoil(values); }) {}

  void add_term(Program* program) {
    const std::string path = "bias[" + std::to_string(program->terms().size()) + "]";
    const Shape broadcast = {size(e_.batch), size(e_.heads), size(e_.queries), size(e_.keys)};
    const Align align = r_->chance(0.5) ? Align::kTopLeft : Align::kBottomRight;
    switch (r_->integer(0, 13)) {
      case 0:
        return program->add_dense(floats(broadcast, path + ".bias", -4, 4), path);
      case 1:
        return program->add_mask(bytes(broadcast, path + ".visible"), path);
      case 2:
        return program->add_padding(bytes({e_.batch, e_.keys}, path + ".ignore"), path);
      case 3:
        return program->add_causal(align, path);
      case 4: {
        const int64_t left = integer(-1, e_.keys);
        return program->add_sliding_window(left, integer(-1, e_.keys), align, path);
      }
      case 5: {
        const TensorView query_ids = ids({e_.batch, e_.queries}, path + ".queryIds");
        return program->add_block_diagonal(query_ids, ids({e_.batch, e_.keys}, path + ".keyIds"), path);
      }
      case 6: {
        const double strength = number(-6, 6);
        std::vector<ModalitySegmentSpec> segments;
        each_segment(path, [&](int64_t start, int64_t length, const std::string& at) {
          segments.push_back({start, length, weights(at)});
        });
        return program->add_modality(strength, segments, path);
      }
      case 7: {
        const double strength = number(-6, 6);
        std::vector<SpatialSegmentSpec> segments;
        each_segment(path, [&](int64_t start, int64_t length, const std::string& at) {
          const GridSpec cells = grid(start, length, at);
          const double radius = number(0.3f, 5);
          segments.push_back({cells, radius, weights(at)});
        });
        return program->add_spatial(strength, segments, path);
      }
      case 8: {
        std::vector<WindowSegmentSpec> segments;
        each_segment(path, [&](int64_t start, int64_t length, const std::string& at) {
          const GridSpec cells = grid(start, length, at);
          segments.push_back({cells, 2 * integer(0, 4) + 1});
        });
        return program->add_window(segments, path);
      }
      case 9: {
        const int64_t groups = integer(1, 3);
        return program->add_denoising(groups, integer(1, e_.keys / 3 + 1), r_->chance(0.5), path);
      }
      case 10: {
        const std::vector<int64_t> window = sides();
        const std::vector<int64_t> resolution = list({window[0] * integer(1, 2), window[1] * integer(1, 2)});
        const std::vector<int64_t> shift = list({integer(0, 2), integer(0, 2)});
        return program->add_shifted_window(resolution, list(window), shift, number(-100, 0), path);
      }
      case 11: {
        const std::vector<int64_t> window = sides();
        const bool cls = r_->chance(0.3);
        const int64_t rows = (2 * window[0] - 1) * (2 * window[1] - 1) + (cls ? 3 : 0);
        return program->add_relative_position(list(window), floats({rows, e_.heads}, path + ".table", -2, 2),
                                              cls, path);
      }
      case 12: {
        const int64_t rank = r_->integer(1, 5);
        const TensorView query_factors =
            floats({size(e_.batch), size(e_.heads), e_.queries, rank}, path + ".queryFactors", -1, 1);
        const TensorView key_factors =
            floats({size(e_.batch), size(e_.heads), e_.keys, rank}, path + ".keyFactors", -1, 1);
        return program->add_low_rank(query_factors, key_factors, number(-1, 1), path);
      }
      default:
        return program->add_alibi(floats({e_.heads}, path + ".slopes", 0, 1), path);
    }
  }

 private:
  int64_t size(int64_t full) { return r_->chance(0.4) ? 1 : full; }

  int64_t integer(int64_t low, int64_t high) {
    static constexpr int64_t kEdges[] = {0,
                                         -1,
                                         1,
                                         2,
                                         -2,
                                         255,
                                         (int64_t{1} << 24) + 1,
                                         int64_t{1} << 30,
                                         (int64_t{1} << 31) - 1,
                                         int64_t{1} << 31,
                                         int64_t{1} << 32,
                                         int64_t{1} << 40,
                                         kMaxInteger,
                                         -kMaxInteger};
    if (!r_->chance(0.06)) return r_->integer(low, high);
    return kEdges[r_->integer(0, static_cast<int64_t>(std::size(kEdges)) - 1)];
  }

  double number(float low, float high) {
    static constexpr double kEdges[] = {0.0,
                                        -0.0,
                                        1e-45,
                                        1e-300,
                                        1e4,
                                        -1e4,
                                        1e9,
                                        -1e9,
                                        1.7e38,
                                        -1.7e38,
                                        3.4e38,
                                        -3.4e38,
                                        3.5e38,
                                        1e308,
                                        std::numeric_limits<double>::infinity(),
                                        -std::numeric_limits<double>::infinity(),
                                        std::numeric_limits<double>::quiet_NaN()};
    if (!r_->chance(0.15)) return r_->uniform(low, high);
    return kEdges[r_->integer(0, static_cast<int64_t>(std::size(kEdges)) - 1)];
  }

  // What tensors hold: now and then an element at the edges of float32, or beyond.
  void spoil(std::vector<float>* values) {
    if (r_->chance(0.05)) {
      const float beyond[] = {test::kNan, test::kInf, -test::kInf};
      (*values)[r_->integer(0, static_cast<int64_t>(values->size()) - 1)] = beyond[r_->integer(0, 2)];
    } else {
      change_values(*r_, kGreatestFloat, values);
    }
  }

  std::vector<int64_t> list(std::vector<int64_t> values) {
    if (r_->chance(0.03)) values.pop_back();
    if (r_->chance(0.03)) values.push_back(integer(1, 3));
    return values;
  }

  // A window of as many tokens as there are keys, or nearly.
  std::vector<int64_t> sides() {
    int64_t height = r_->integer(1, e_.keys);
    while (e_.keys % height != 0) --height;
    if (r_->chance(0.05)) return {integer(1, 4), integer(1, 4)};
    return {height, e_.keys / height};
  }

  // The tensor under another shape or dtype than its own, now and then.
  TensorView changed(TensorView view, const Shape& shape) {
    view.shape = shape;
    if (r_->chance(0.03)) view.shape[r_->integer(0, static_cast<int64_t>(shape.size()) - 1)] = integer(1, 9);
    if (r_->chance(0.02)) view.shape.pop_back();
    if (r_->chance(0.02)) view.shape.push_back(integer(1, 2));
    if (elements(view.shape) > elements(shape)) view.shape = shape;  // it has no more memory
    if (r_->chance(0.02)) view.dtype = static_cast<DType>(r_->integer(0, 3));
    return view;
  }

  // As many elements as a valid shape has; one that asks for more is refused before it is read.
  static int64_t elements(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t size : shape) {
      if (size < 1 || size > 4096 || count * size > 1 << 16) return 16;
      count *= size;
    }
    return count;
  }

  TensorView floats(const Shape& shape, const std::string& name, float low, float high) {
    return changed(tensors_.f32({elements(shape)}, name, [&] { return r_->uniform(low, high); }), shape);
  }
  TensorView weights(const std::string& at) { return floats({e_.batch, e_.queries}, at + ".weights", 0, 1); }
  TensorView bytes(const Shape& shape, const std::string& name) {
    return changed(
        tensors_.u8({elements(shape)}, name, [&] { return static_cast<uint8_t>(r_->chance(0.6)); }), shape);
  }
  TensorView ids(const Shape& shape, const std::string& name) {
    return changed(tensors_.i32({elements(shape)}, name,
                                [&] {
                                  return r_->chance(0.05) ? std::numeric_limits<int32_t>::min()
                                                          : static_cast<int32_t>(r_->integer(0, 2));
                                }),
                   shape);
  }

  GridSpec grid(int64_t start, int64_t keys, const std::string& at) {
    const bool views = r_->chance(0.5);
    const int64_t v = views ? r_->integer(1, 2) : 1, h = integer(1, 3);
    const int64_t w = h > 0 && h <= keys ? std::max<int64_t>(1, keys / v / h) : integer(1, 4);
    GridSpec spec;
    spec.start = start;
    spec.grid = list(views ? std::vector<int64_t>{v, h, w} : std::vector<int64_t>{h, w});
    spec.centers = floats({e_.batch, e_.queries, views ? 3 : 2}, at + ".centers", -1, 5);
    return spec;
  }

  template <class F>
  void each_segment(const std::string& path, F f) {
    int64_t start = r_->chance(0.5) ? 0 : r_->integer(0, e_.keys - 1);
    const int64_t count = r_->chance(0.03) ? 0 : r_->integer(1, 3);
    for (int64_t i = 0; i < count && start < e_.keys; ++i) {
      const int64_t length = r_->integer(1, e_.keys - start);
      const int64_t first = r_->chance(0.05) ? integer(0, e_.keys) : start;
      f(first, r_->chance(0.05) ? integer(1, e_.keys) : length,
        path + ".segments[" + std::to_string(i) + "]");
      start += length;
    }
  }

  Extent e_;
  test::Random* r_;
  test::Tensors tensors_;
};

constexpr const char* kNames[] = {
#define AB_NAME(name, Type, member) #member,
    AB_TERMS(AB_NAME)
#undef AB_NAME
};

void require_sentence(const Error& error) {
  const std::string text = error.what();
  const bool good = text.find("expected ") == 0 && text.find(" but received ") != std::string::npos &&
                    text.find('\n') == std::string::npos && text.size() < 1000;
  if (!good) throw Failure("an error that is no sentence: " + text);
}

// Of each entry the greatest magnitude among what is summed.
std::vector<double> greatest_summands(const Program& bias) {
  std::vector<double> all;
  const Shape shape = bias_shape(bias);
  for (int64_t b = 0; b < shape[0]; ++b) {
    for (int64_t h = 0; h < shape[1]; ++h) {
      for (int32_t q = 0; q < shape[2]; ++q) {
        for (int32_t k = 0; k < shape[3]; ++k) {
          double greatest = 0;
          for (const Term& term : bias.terms()) {
            visit(term,
                  [&](const auto& t) { greatest = std::fmax(greatest, test::magnitude_of(t, b, h, k, q)); });
          }
          all.push_back(greatest);
        }
      }
    }
  }
  return all;
}

// Whether a product within a lowRank or spatial term is beyond float32: an infinity where it is computed in
// float32, as docs/terms.md says of attention. What all other terms sum up to is held to stay finite.
bool beyond_float32(const Program& bias) {
  const Extent& e = bias.extent();
  bool beyond = false;
  for (const Term& term : bias.terms()) {
    if (term.type != TermType::kLowRank && term.type != TermType::kSpatial) continue;
    visit(term, [&](const auto& t) {
      for (int64_t row = 0; row < e.batch * e.heads; ++row) {
        for (int32_t q = 0; q < e.queries; ++q) {
          for (int32_t k = 0; k < e.keys; ++k) {
            const int64_t b = row / e.heads, h = row % e.heads;
            beyond |= test::magnitude_of(t, b, h, k, q) > kGreatestFloat;
            if constexpr (std::is_same_v<std::decay_t<decltype(t)>, LowRankTerm>) {
              // Products, and a gradient's: factors by gradients of scores. Both are summed up before they
              // are scaled, or scaled before.
              const auto column = t.column(b, h, k);
              const double most = kGreatestFloat / std::fmax(1.0, std::fabs(static_cast<double>(t.scale)));
              double sum = 0;
              for (int32_t r = 0; r < t.rank; ++r) {
                const double of_key = std::fabs(static_cast<double>(column.key_factors[r]));
                const double of_query =
                    std::fabs(static_cast<double>(column.query_factors[int64_t{q} * t.rank + r]));
                sum += of_key * of_query;
                beyond |= std::fmax(of_key, of_query) > most / 1e4;
              }
              beyond |= sum > most;
            }
          }
        }
      }
    });
  }
  return beyond;
}

void require_bias(const Program& bias, const std::string& context) {
  std::vector<double> want(static_cast<size_t>(element_count(bias_shape(bias), "bias")));
  reference_bias(bias, want.data());
  const std::vector<double> summands = greatest_summands(bias);
  for (const std::string& isa : cpu::supported_isas()) {
    std::vector<float> got(want.size(), 123.0f);
    backend_of(isa, 2).bias({&bias, got.data()}, nullptr);
    for (size_t i = 0; i < want.size(); ++i) {
      const double exact =
          std::isinf(want[i]) ? want[i] : std::fmax(-kGreatestFloat, std::fmin(kGreatestFloat, want[i]));
      const double tolerance = std::fmax(1e-6, 4 * test::kUnit * summands[i]);  // 2 ulp
      if (std::isinf(exact) ? got[i] == exact : std::fabs(got[i] - exact) <= tolerance) continue;
      throw Failure(context + ", " + isa + ": bias holds " + show(got[i]) + " at element " +
                    std::to_string(i) + ", not " + show(exact));
    }
  }
}

}  // namespace

void run_input(const uint8_t* bytes, size_t count) {
  test::Random r(bytes, count);
  Extent e;
  e.keys = r.integer(1, 24);
  e.queries = r.chance(0.5) ? e.keys : r.integer(1, 12);
  e.batch = r.integer(1, 4);
  e.heads = r.integer(1, 3);
  std::unique_ptr<test::Case> c;
  {
    const test::Random::Values values(&r);
    c = test::make_case(e, 3, 5, r);
  }
  Specs specs(e, &r);
  try {
    for (int64_t left = r.integer(1, 4); left > 0; --left) specs.add_term(c->bias.get());
  } catch (const Error& error) {
    return require_sentence(error);
  }
  std::string context = "shape " + to_string({e.batch, e.heads, e.queries, e.keys}) + ", terms";
  for (const Term& term : c->bias->terms()) context += std::string(" ") + kNames[static_cast<int>(term.type)];
  require_bias(*c->bias, context);
  if (!beyond_float32(*c->bias)) require_agreement(*c, r, 1, context);
}

}  // namespace attention_bias::fuzz
