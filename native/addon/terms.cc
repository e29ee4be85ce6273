#include "addon/terms.h"

#include <string>
#include <utility>

#include "addon/js_errors.h"

namespace attention_bias::addon {

namespace {

Align read_align(Fields& term) {
  return term.choice("align", {"top-left", "bottom-right"}) == 0 ? Align::kTopLeft : Align::kBottomRight;
}

// Tensor views have no pointers yet when a term is read, so a segment refers to them until the term is added.
struct ModalitySegmentFields {
  int64_t start, length;
  const TensorView* weights;
};

struct GridFields {
  int64_t start;
  std::vector<int64_t> grid;
  const TensorView* centers;

  explicit GridFields(Fields& segment)
      : start(segment.integer("start")), grid(segment.integers("grid")), centers(segment.tensor("centers")) {}
  GridSpec spec() const { return {start, grid, *centers}; }
};

struct SpatialSegmentFields {
  GridFields cells;
  double radius;
  const TensorView* weights;
};

struct WindowSegmentFields {
  GridFields cells;
  int64_t size;
};

constexpr double kStrength = 5;         // MoME's AQR
constexpr double kShiftedValue = -100;  // Swin's

AddTerm read_dense(Fields& term) {
  return [bias = term.tensor("bias"), path = term.path()](Program* p) { p->add_dense(*bias, path); };
}

AddTerm read_mask(Fields& term) {
  return [visible = term.tensor("visible"), path = term.path()](Program* p) { p->add_mask(*visible, path); };
}

AddTerm read_padding(Fields& term) {
  return [ignore = term.tensor("ignore"), path = term.path()](Program* p) { p->add_padding(*ignore, path); };
}

AddTerm read_causal(Fields& term) {
  return [align = read_align(term), path = term.path()](Program* p) { p->add_causal(align, path); };
}

AddTerm read_sliding_window(Fields& term) {
  const int64_t left = term.integer("left"), right = term.integer("right");
  return [=, align = read_align(term), path = term.path()](Program* p) {
    p->add_sliding_window(left, right, align, path);
  };
}

AddTerm read_block_diagonal(Fields& term) {
  const TensorView *query_ids = term.tensor("queryIds"), *key_ids = term.tensor("keyIds");
  return [=, path = term.path()](Program* p) { p->add_block_diagonal(*query_ids, *key_ids, path); };
}

AddTerm read_modality(Fields& term) {
  const double strength = term.number("strength", kStrength);
  std::vector<ModalitySegmentFields> segments;
  term.each("segments", [&](Fields& segment) {
    segments.push_back({segment.integer("start"), segment.integer("length"), segment.tensor("weights")});
  });
  return [=, path = term.path()](Program* p) {
    std::vector<ModalitySegmentSpec> specs;
    for (const auto& s : segments) specs.push_back({s.start, s.length, *s.weights});
    p->add_modality(strength, specs, path);
  };
}

AddTerm read_spatial(Fields& term) {
  const double strength = term.number("strength", kStrength);
  std::vector<SpatialSegmentFields> segments;
  term.each("segments", [&](Fields& segment) {
    segments.push_back({GridFields(segment), segment.number("radius"), segment.tensor("weights")});
  });
  return [=, path = term.path()](Program* p) {
    std::vector<SpatialSegmentSpec> specs;
    for (const auto& s : segments) specs.push_back({s.cells.spec(), s.radius, *s.weights});
    p->add_spatial(strength, specs, path);
  };
}

AddTerm read_window(Fields& term) {
  std::vector<WindowSegmentFields> segments;
  term.each("segments", [&](Fields& segment) {
    segments.push_back({GridFields(segment), segment.integer("size")});
  });
  return [=, path = term.path()](Program* p) {
    std::vector<WindowSegmentSpec> specs;
    for (const auto& s : segments) specs.push_back({s.cells.spec(), s.size});
    p->add_window(specs, path);
  };
}

AddTerm read_denoising(Fields& term) {
  const int64_t groups = term.integer("groups"), group_size = term.integer("groupSize");
  const bool see_matching = term.boolean("groupsSeeMatching", true);
  return [=, path = term.path()](Program* p) { p->add_denoising(groups, group_size, see_matching, path); };
}

AddTerm read_shifted_window(Fields& term) {
  return [resolution = term.integers("resolution"), window = term.integers("window"),
          shift = term.integers("shift"), value = term.number("value", kShiftedValue),
          path = term.path()](Program* p) { p->add_shifted_window(resolution, window, shift, value, path); };
}

AddTerm read_relative_position(Fields& term) {
  return
      [window = term.integers("window"), table = term.tensor("table"), cls = term.boolean("clsToken", false),
       path = term.path()](Program* p) { p->add_relative_position(window, *table, cls, path); };
}

AddTerm read_low_rank(Fields& term) {
  const TensorView *query_factors = term.tensor("queryFactors"), *key_factors = term.tensor("keyFactors");
  return [=, scale = term.number("scale", 1), path = term.path()](Program* p) {
    p->add_low_rank(*query_factors, *key_factors, scale, path);
  };
}

AddTerm read_alibi(Fields& term) {
  return [slopes = term.tensor("slopes"), path = term.path()](Program* p) { p->add_alibi(*slopes, path); };
}

struct TermReader {
  const char* type;
  AddTerm (*read)(Fields&);
};

constexpr TermReader kReaders[] = {
    {"dense", read_dense},
    {"mask", read_mask},
    {"padding", read_padding},
    {"causal", read_causal},
    {"slidingWindow", read_sliding_window},
    {"blockDiagonal", read_block_diagonal},
    {"modality", read_modality},
    {"spatial", read_spatial},
    {"window", read_window},
    {"denoising", read_denoising},
    {"shiftedWindow", read_shifted_window},
    {"relativePosition", read_relative_position},
    {"lowRank", read_low_rank},
    {"alibi", read_alibi},
};

const TermReader& find_reader(Fields& term) {
  const Napi::Value type = term.required("type", "a type of term");
  const std::string name = type.IsString() ? type.As<Napi::String>().Utf8Value() : "";
  std::string known;
  for (const TermReader& reader : kReaders) {
    if (name == reader.type) return reader;
    known += (known.empty() ? "one of " : ", ") + std::string(reader.type);
  }
  throw expected(ErrorCode::kTerm, known + ",", term.path() + ".type", describe(type));
}

}  // namespace

std::vector<AddTerm> read_terms(Fields* arguments, const char* name) {
  std::vector<AddTerm> terms;
  arguments->each(
      name, [&](Fields& term) { terms.push_back(find_reader(term).read(term)); }, ErrorCode::kTerm);
  return terms;
}

}  // namespace attention_bias::addon
