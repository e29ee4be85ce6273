#include "cpu/near_lists.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace attention_bias::cpu {

namespace {

constexpr int64_t kMostElements = 4 * 1024 * 1024;

template <class T>
constexpr bool kListed = T::kLocal && !T::kHides;

// Biases beyond are not listed for gradients, nor those of many terms that come to more for a pair: their
// exponentials would overflow.
constexpr float kMostBias = 20.0f, kMostBiases = 80.0f;

// Calls f(term, its number) for each term that is listed.
template <class F>
void each_listed(const Program& bias, F f) {
  for (int i = 0; i < bias.term_count(); ++i) {
    visit(bias.terms()[static_cast<size_t>(i)], [&](const auto& t) {
      using T = std::decay_t<decltype(t)>;
      if constexpr (kListed<T>) {
        static_assert(std::is_same_v<T, SpatialTerm>,
                      "lists serve all heads: their terms may not depend on it");
        f(t, i);
      }
    });
  }
}

// Calls add(key, element) for the elements of a query in a row of keys, but for `at`. False where one can't
// be listed, of a bias beyond `most`.
template <class Add>
bool list_row(const Program&, const SpatialTerm& term, int, float, const Tile& row, Add add,
              const NearElement*) {
  term.near_values<float>(row, row.q0, [&](int32_t begin, int32_t end, auto value) {
    for (int32_t k = begin; k < end; ++k) {
      const float bias = value(k - begin);
      if (bias != 0.0f) add(k, NearElement{0, bias});
    }
  });
  return true;
}

template <class Add>
bool list_row(const Program& bias, const SpatialTerm& term, int index, float most, const Tile& row, Add add,
              const NearGradient*) {
  int32_t first = 0;
  while (bias.learnables()[static_cast<size_t>(first)].term != index) ++first;
  bool listed = true;
  term.near_derivatives<float>(row, row.q0,
                               [&](int32_t slot, int64_t at, int32_t begin, int32_t end, auto derivative) {
                                 const float weight = term.segments[slot].weights[at];
                                 for (int32_t k = begin; k < end; ++k) {
                                   const float of_key = derivative(k - begin);
                                   const float bias = weight * of_key;
                                   listed &= std::fabs(bias) <= most;
                                   if (of_key != 0.0f)
                                     add(k, NearGradient{0, first + slot, of_key, bias, std::exp(bias)});
                                 }
                               });
  return listed;
}

}  // namespace

template <class Element>
bool NearListsOf<Element>::build(const AttentionProblem& p, int32_t query_block, const Run& run) {
  if (!p.bias) return false;
  int count = 0;
  each_listed(*p.bias, [&](const auto&, int) { ++count; });
  if (count == 0) return false;
  const float most = std::min(kMostBias, kMostBiases / static_cast<float>(count));

  const Extent& e = p.extent;
  const int32_t keys = static_cast<int32_t>(e.keys), queries = static_cast<int32_t>(e.queries);
  const size_t tiles = static_cast<size_t>((keys + kTileKeys - 1) / kTileKeys);
  blocks_ = (e.queries + query_block - 1) / query_block;
  if (e.batch * blocks_ * static_cast<int64_t>(tiles) > kMostElements) return false;
  lists_.resize(static_cast<size_t>(e.batch * blocks_));
  views_.resize(lists_.size());
  std::atomic<int64_t> total{0};
  run(e.batch * blocks_, [&](int64_t item, int) {
    Block& list = lists_[static_cast<size_t>(item)];
    const int64_t b = item / blocks_;
    const int32_t q0 = static_cast<int32_t>(item % blocks_) * query_block;
    const int32_t q1 = std::min(queries, q0 + query_block);
    // The terms' runs hold a few elements that are 0 beside those to list: each tile has room for all.
    list.begins.assign(tiles + 1, 0);
    each_listed(*p.bias, [&](const auto& term, int) {
      for (int32_t q = q0; q < q1; ++q) {
        term.near({b, 0, q, q + 1, 0, keys}, q, [&](int32_t begin, int32_t end) {
          for (int32_t k = begin; k < end;) {
            const int32_t tile = k / kTileKeys, next = std::min(end, (tile + 1) * kTileKeys);
            list.begins[static_cast<size_t>(tile) + 1] += static_cast<uint32_t>(next - k);
            k = next;
          }
        });
      }
    });
    for (size_t i = 0; i < tiles; ++i) list.begins[i + 1] += list.begins[i];
    const uint32_t elements = list.begins[tiles];
    if (total.fetch_add(elements) + elements > kMostElements) return;
    list.ends.assign(list.begins.begin(), list.begins.end() - 1);
    list.elements.resize(elements);
    each_listed(*p.bias, [&](const auto& term, int index) {
      for (int32_t q = q0; q < q1; ++q) {
        const auto add = [&](int32_t k, Element element) {
          element.at = k % kTileKeys * query_block + q - q0;
          list.elements[list.ends[static_cast<size_t>(k / kTileKeys)]++] = element;
        };
        const Tile row = {b, 0, q, q + 1, 0, keys};
        if (!list_row(*p.bias, term, index, most, row, add, static_cast<const Element*>(nullptr))) {
          total.store(kMostElements + 1);
        }
      }
    });
    views_[static_cast<size_t>(item)] = {list.elements.data(), list.begins.data(), list.ends.data()};
  });
  return total.load() <= kMostElements;
}

template class NearListsOf<NearElement>;
template class NearListsOf<NearGradient>;

}  // namespace attention_bias::cpu
