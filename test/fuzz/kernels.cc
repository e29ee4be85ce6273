// Random programs of valid terms on the CPU backend, forward and backward, against the float64 reference.
#include <cmath>
#include <limits>
#include <string>

#include "agreement.h"
#include "core/errors.h"

namespace attention_bias::fuzz {

namespace {

// The greatest magnitude that a tensor may hold here: a score's products, and a gradient's, stay within
// float32.
float greatest_of(const std::string& name) {
  if (name == "weights") return 1;
  if (name == "slopes") return 1e30f;  // times a distance
  if (name == "queryFactors" || name == "keyFactors") return 1e15f;
  return kGreatestFloat;
}

void change_term(test::Random& r, const std::string& name, std::vector<float>* values) {
  if (name == "centers" && r.chance(0.1)) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float places[] = {infinity, -infinity, 1e9f, -0.0f, kGreatestFloat, -1.0f};
    (*values)[r.integer(0, static_cast<int64_t>(values->size()) - 1)] = places[r.integer(0, 5)];
    return;
  }
  change_values(r, greatest_of(name), values);
  if (name == "weights") {
    for (float& x : *values) x = std::fabs(x);
  }
}

}  // namespace

void run_input(const uint8_t* bytes, size_t count) {
  test::Random r(bytes, count);
  const bool long_rows = r.chance(0.1);
  Extent e;
  e.keys = long_rows ? r.integer(500, 1500) : r.integer(1, 255);
  e.queries = !long_rows && e.keys < 100 && r.chance(0.5) ? e.keys : r.integer(1, 40);
  e.batch = r.integer(1, e.keys < 50 ? 6 : 2);
  e.heads = r.integer(1, 2);
  const int64_t d = r.integer(1, 40), dv = r.integer(1, 40);
  const int threads = static_cast<int>(r.integer(1, 2));
  std::unique_ptr<test::Case> c;
  {
    const test::Random::Values values(&r);
    c = test::make_case(e, d, dv, r);
  }
  const auto change_input = [&](const HeadRows& tensor, int64_t rows, int64_t dim) {
    float* const floats = test::floats(tensor);
    std::vector<float> values(floats, floats + rows * dim);
    change_values(r, 1e6f, &values);
    std::copy(values.begin(), values.end(), floats);
  };
  change_input(c->problem.query, e.batch * e.heads * e.queries, d);
  change_input(c->problem.key, e.batch * e.heads * e.keys, d);
  change_input(c->problem.value, e.batch * e.heads * e.keys, dv);
  test::Tensors tensors(
      &r, [&](const std::string& name, std::vector<float>* values) { change_term(r, name, values); });
  std::string kinds;
  for (int64_t left = r.integer(0, 4); left > 0; --left) {
    kinds += test::add_random_terms(c->bias.get(), 1, r, tensors);
  }
  require_agreement(*c, r, threads,
                    "shape " + to_string({e.batch, e.heads, e.queries, e.keys}) + ", head dims " +
                        std::to_string(d) + " and " + std::to_string(dv) + ", kinds" + kinds);
}

}  // namespace attention_bias::fuzz
