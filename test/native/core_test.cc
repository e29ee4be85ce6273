// Terms keep the promise of their tile class and of their bound on a row's keys; programs refuse what
// CONTRACT section 2 refuses.
#include <cmath>
#include <vector>

#include "check.h"
#include "core/program.h"
#include "random_program.h"

namespace attention_bias::test {
namespace {

// Compares a tile's class with the values of all its elements.
void check_tile(const Term& term, const Tile& tile) {
  visit(term, [&](const auto& t) {
    const TileClass tile_class = t.tile_class(tile);
    for (int32_t q = tile.q0; q < tile.q1; ++q) {
      const float first = t.template value<float>(t.column(tile.b, tile.h, tile.k0), q);
      for (int32_t k = tile.k0; k < tile.k1; ++k) {
        const float value = t.template value<float>(t.column(tile.b, tile.h, k), q);
        const double exact = t.template value<double>(t.column(tile.b, tile.h, k), q);
        CHECK(value == exact || std::fabs(value - exact) <= 1e-6 * std::fmax(1, std::fabs(exact)));
        if (tile_class == TileClass::kHidden) CHECK_EQ(value, -INFINITY);
        if (tile_class == TileClass::kZero) CHECK_EQ(value, 0.0f);
        if (tile_class == TileClass::kRowConstant) CHECK_EQ(value, first);
      }
    }
  });
}

void tile_classes() {
  int counts[4] = {};
  for (uint32_t seed = 0; seed < 1500; ++seed) {
    Random r(seed);
    Tensors tensors;
    const int kind = static_cast<int>(seed) % kKindsOfTerm;
    const int64_t keys = r.integer(1, 150);
    Program program({r.integer(1, 4), r.integer(1, 3), r.chance(0.6) ? keys : r.integer(1, 90), keys});
    if (!add_random_term(&program, kind, r, tensors)) continue;
    context = "seed " + std::to_string(seed) + ", kind " + std::to_string(kind);
    const Extent& e = program.extent();
    for (int i = 0; i < 12; ++i) {
      Tile tile = {r.integer(0, e.batch - 1), r.integer(0, e.heads - 1), 0, 0, 0, 0};
      tile.q0 = static_cast<int32_t>(r.integer(0, e.queries - 1));
      tile.k0 = static_cast<int32_t>(r.integer(0, e.keys - 1));
      tile.q1 = static_cast<int32_t>(r.integer(tile.q0 + 1, std::min<int64_t>(e.queries, tile.q0 + 20)));
      tile.k1 = static_cast<int32_t>(r.integer(tile.k0 + 1, std::min<int64_t>(e.keys, tile.k0 + 40)));
      check_tile(program.terms()[0], tile);
      ++counts[static_cast<int>(
          visit(program.terms()[0], [&](const auto& t) { return t.tile_class(tile); }))];
    }
  }
  context = "every class occurs";
  for (const int count : counts) CHECK(count > 100);
}

// A class must not only be right but sharp where skipping pays: these tiles are what kernels skip.
void sharp_classes() {
  context = "sharp";
  Program program({1, 1, 1000, 1000});
  Tensors t;
  program.add_causal(Align::kTopLeft, "bias[0]");
  program.add_sliding_window(10, 10, Align::kTopLeft, "bias[1]");
  program.add_denoising(4, 100, true, "bias[2]");
  const auto class_of = [&](int i, Tile tile) {
    return visit(program.terms()[i], [&](const auto& term) { return term.tile_class(tile); });
  };
  CHECK(class_of(0, {0, 0, 0, 64, 64, 128}) == TileClass::kHidden);
  CHECK(class_of(0, {0, 0, 64, 128, 0, 64}) == TileClass::kZero);
  CHECK(class_of(0, {0, 0, 64, 128, 64, 128}) == TileClass::kMixed);
  CHECK(class_of(1, {0, 0, 0, 64, 75, 128}) == TileClass::kHidden);
  CHECK(class_of(1, {0, 0, 500, 505, 498, 502}) == TileClass::kZero);
  CHECK(class_of(2, {0, 0, 0, 100, 100, 200}) == TileClass::kHidden);
  CHECK(class_of(2, {0, 0, 0, 100, 0, 100}) == TileClass::kZero);
  CHECK(class_of(2, {0, 0, 0, 100, 400, 1000}) == TileClass::kZero);
  CHECK(class_of(2, {0, 0, 400, 1000, 0, 400}) == TileClass::kHidden);
}

// The bound of a row's keys holds for every row, and its runs are exactly the keys that its terms leave
// visible.
void key_bounds() {
  int64_t narrow = 0, rows = 0;
  for (uint32_t seed = 0; seed < 1500; ++seed) {
    Random r(seed);
    Tensors tensors;
    const int64_t keys = r.integer(1, 150);
    Program program({r.integer(1, 3), 1, r.chance(0.6) ? keys : r.integer(1, 40), keys});
    if (r.chance(0.7)) add_random_windows(&program, r, tensors);
    if (r.chance(0.5)) add_narrow_window(&program, r);
    add_random_terms(&program, r.integer(0, 3), r, tensors);
    context = "key bound, seed " + std::to_string(seed);
    const Extent& e = program.extent();
    const KeyBound bound = program.key_bound();
    CHECK(bound.most_keys >= 0 && bound.most_keys <= keys);
    for (int i = 0; i < 20; ++i) {
      Tile tile = {r.integer(0, e.batch - 1), 0, static_cast<int32_t>(r.integer(0, e.queries - 1)), 0, 0, 0};
      const int32_t q = tile.q0;
      tile.q1 = q + 1;
      tile.k1 = static_cast<int32_t>(keys);
      if (r.chance(0.3)) {
        tile.k0 = static_cast<int32_t>(r.integer(0, keys - 1));
        tile.k1 = static_cast<int32_t>(r.integer(tile.k0 + 1, keys));
      }
      std::vector<int> visits(static_cast<size_t>(keys));
      int64_t visited = 0;
      visible_runs(bound, program.term_data(), tile, q, [&](int32_t begin, int32_t end) {
        CHECK(tile.k0 <= begin && begin < end && end <= tile.k1);
        for (int32_t k = begin; k < end; ++k) ++visits[k], ++visited;
      });
      CHECK(visited <= bound.most_keys);
      for (int32_t k = tile.k0; k < tile.k1; ++k) {
        bool bounded = true;  // by the terms that are not left to be evaluated
        for (size_t t = 0; t < program.terms().size(); ++t) {
          if (bound.rest >> t & 1) continue;
          bounded &= visit(program.terms()[t], [&](const auto& term) {
            return term.template value<float>(term.column(tile.b, tile.h, k), q) == 0.0f;
          });
        }
        CHECK_EQ(visits[k], bounded ? 1 : 0);
      }
      narrow += bound.most_keys < keys;
      ++rows;
    }
  }
  context = "key bound: many rows are bounded, and many are not";
  CHECK(narrow > rows / 4 && narrow < rows);

  context = "key bound";
  Tensors t;
  const auto most = [](const Program& program) { return program.key_bound().most_keys; };
  Program banded({1, 1, 1000, 1000});
  CHECK_EQ(most(banded), 1000);
  banded.add_sliding_window(10, -1, Align::kTopLeft, "bias[0]");
  CHECK_EQ(most(banded), 1000);
  banded.add_causal(Align::kTopLeft, "bias[1]");
  CHECK_EQ(most(banded), 11);
  CHECK_EQ(banded.key_bound().rest, uint64_t{0});
  banded.add_sliding_window(0, 0, Align::kTopLeft, "bias[2]");
  CHECK_EQ(most(banded), 1);

  // MoME's local attention, and 100 keys outside its grids.
  const int64_t keys = 180 * 180 + 6 * 40 * 100;
  for (const int64_t outside : {0, 100}) {
    const auto zero = [] { return 0.0f; };
    Program local({1, 8, 900, keys + outside});
    local.add_modality(5, {{0, 32400, t.f32({1, 900}, "weights", zero)}}, "bias[0]");
    local.add_window({{{0, {180, 180}, t.f32({1, 900, 2}, "bev", zero)}, 5},
                      {{32400, {6, 40, 100}, t.f32({1, 900, 3}, "camera", zero)}, 15}},
                     "bias[1]");
    CHECK_EQ(most(local), 250 + outside);
    CHECK_EQ(local.key_bound().term, 1);
    CHECK_EQ(local.key_bound().rest, uint64_t{1});
  }
}

void refusals() {
  context = "refusals";
  Tensors t;
  const auto zero = [] { return 0.0f; };
  const auto f32 = [&](const Shape& shape, const char* name) { return t.f32(shape, name, zero); };
  const int64_t big = int64_t{1} << 40;
  CHECK_ERROR(Program({0, 1, 1, 1}), ErrorCode::kShape, "at least 1");
  CHECK_ERROR(Program({1, 1, big, 1}), ErrorCode::kShape, "2^30");
  CHECK_ERROR(Program({big, big, 1, 1}), ErrorCode::kShape, "2^53");
  Program p({2, 3, 12, 12});

  CHECK_ERROR(p.add_dense(f32({2, 3, 12, 11}, "x"), "p"), ErrorCode::kShape,
              "for x but received [2, 3, 12, 11]");
  CHECK_ERROR(p.add_dense(f32({2, 12, 12}, "x"), "p"), ErrorCode::kShape, "x");
  CHECK_ERROR(p.add_dense(t.f32({1, 1, 12, 12}, "x", [] { return NAN; }), "p"), ErrorCode::kValue, "x");
  CHECK_ERROR(p.add_dense(t.f32({1, 1, 12, 12}, "x", [] { return INFINITY; }), "p"), ErrorCode::kValue,
              "inf at element 0");
  CHECK_ERROR(p.add_mask(f32({1, 1, 12, 12}, "x"), "p"), ErrorCode::kDtype, "uint8");
  CHECK_ERROR(p.add_padding(t.u8({2, 11}, "x", [] { return uint8_t{0}; }), "p"), ErrorCode::kShape, "[B, K]");
  CHECK_ERROR(p.add_sliding_window(-2, 0, Align::kTopLeft, "p"), ErrorCode::kValue, "p.left");
  CHECK_ERROR(p.add_sliding_window(0, -2, Align::kTopLeft, "p"), ErrorCode::kValue, "p.right");

  const TensorView w = f32({2, 12}, "w"), centers = f32({2, 12, 2}, "c");
  CHECK_ERROR(p.add_modality(5, {}, "p"), ErrorCode::kTerm, "p.segments");
  CHECK_ERROR(p.add_modality(NAN, {{0, 1, w}}, "p"), ErrorCode::kValue, "p.strength");
  CHECK_ERROR(p.add_modality(5, {{0, 0, w}}, "p"), ErrorCode::kValue, "p.segments[0].length");
  CHECK_ERROR(p.add_modality(5, {{-1, 1, w}}, "p"), ErrorCode::kValue, "p.segments[0].start");
  CHECK_ERROR(p.add_modality(5, {{6, 7, w}}, "p"), ErrorCode::kValue, "p.segments[0].length");
  CHECK_ERROR(p.add_modality(5, {{big * 4096, big * 4096, w}}, "p"), ErrorCode::kValue,
              "p.segments[0].length");
  CHECK_ERROR(p.add_modality(5, {{0, 6, w}, {5, 6, w}}, "p"), ErrorCode::kValue,
              "p.segments[1] starting at key 5");
  CHECK_ERROR(p.add_modality(5, {{6, 6, w}, {0, 7, w}}, "p"), ErrorCode::kValue, "overlap");
  CHECK_ERROR(p.add_modality(5, {{0, 6, t.f32({2, 12}, "w", [] { return 1.01f; })}}, "p"), ErrorCode::kValue,
              "[0, 1]");
  CHECK_ERROR(p.add_modality(5, {{0, 6, t.f32({2, 12}, "w", [] { return NAN; })}}, "p"), ErrorCode::kValue,
              "nan");
  CHECK_ERROR(p.add_spatial(5, {{{0, {3, 4}, centers}, 0, w}}, "p"), ErrorCode::kValue,
              "p.segments[0].radius");
  CHECK_ERROR(p.add_spatial(5, {{{0, {3, 4}, centers}, NAN, w}}, "p"), ErrorCode::kValue,
              "p.segments[0].radius");
  CHECK_ERROR(p.add_spatial(5, {{{0, {3, 5}, centers}, 1, w}}, "p"), ErrorCode::kValue, "p.segments[0].grid");
  CHECK_ERROR(p.add_spatial(5, {{{0, {big, big}, centers}, 1, w}}, "p"), ErrorCode::kValue,
              "p.segments[0].grid");
  CHECK_ERROR(p.add_spatial(5, {{{0, {0, 4}, centers}, 1, w}}, "p"), ErrorCode::kValue, "p.segments[0].grid");
  CHECK_ERROR(p.add_spatial(5, {{{0, {1, 3, 4}, centers}, 1, w}}, "p"), ErrorCode::kShape, "[B, Q, 3]");
  CHECK_ERROR(p.add_window({{{0, {3, 4}, centers}, 4}}, "p"), ErrorCode::kValue, "p.segments[0].size");
  CHECK_ERROR(p.add_window({{{0, {3, 4}, centers}, -1}}, "p"), ErrorCode::kValue, "p.segments[0].size");

  CHECK_ERROR(p.add_denoising(0, 1, true, "p"), ErrorCode::kValue, "p.groups");
  CHECK_ERROR(p.add_denoising(3, 5, true, "p"), ErrorCode::kValue, "p.groupSize");
  CHECK_ERROR(p.add_denoising(big, big, true, "p"), ErrorCode::kValue, "p.groupSize");
  CHECK_ERROR(p.add_shifted_window({7, 4}, {3, 4}, {1, 1}, -100, "p"), ErrorCode::kValue, "p.resolution");
  CHECK_ERROR(p.add_shifted_window({6, 4}, {3, 4}, {3, 1}, -100, "p"), ErrorCode::kValue, "p.shift");
  CHECK_ERROR(p.add_shifted_window({6, 8}, {3, 4}, {1, 1}, -100, "p"), ErrorCode::kShape, "4 windows");
  CHECK_ERROR(p.add_shifted_window({6, 6}, {3, 3}, {1, 1}, -100, "p"), ErrorCode::kShape, "p.window");
  CHECK_ERROR(p.add_relative_position({3, 4}, f32({34, 3}, "t"), false, "p"), ErrorCode::kShape, "t");
  CHECK_ERROR(p.add_relative_position({3, 4}, f32({38, 3}, "t"), true, "p"), ErrorCode::kShape, "p.window");
  CHECK_ERROR(p.add_relative_position({big, big}, f32({38, 3}, "t"), true, "p"), ErrorCode::kValue,
              "p.window");
  CHECK_ERROR(p.add_low_rank(f32({2, 3, 12, 4}, "q"), f32({2, 3, 12, 5}, "k"), 1, "p"), ErrorCode::kShape,
              "k");
  CHECK_ERROR(p.add_low_rank(f32({2, 3, 12, 4}, "q"), f32({2, 3, 12, 4}, "k"), INFINITY, "p"),
              ErrorCode::kValue, "p.scale");
  CHECK_ERROR(p.add_alibi(f32({2}, "s"), "p"), ErrorCode::kShape, "s");
  CHECK_EQ(p.terms().size(), size_t{0});  // a refused term leaves nothing behind

  for (int i = 0; i < kMaxTerms; ++i) p.add_causal(Align::kTopLeft, "p");
  CHECK_ERROR(p.add_causal(Align::kTopLeft, "bias[64]"), ErrorCode::kTerm, "bias[64]");
}

}  // namespace
}  // namespace attention_bias::test

int main() {
  attention_bias::test::tile_classes();
  attention_bias::test::sharp_classes();
  attention_bias::test::key_bounds();
  attention_bias::test::refusals();
  return attention_bias::test::finish("core");
}
