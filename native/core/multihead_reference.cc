#include <vector>

#include "core/reference.h"

namespace attention_bias {

void reference_linear(const LinearProblem& p, double* out) {
  const HeadLayout input = p.input_layout(), to = p.out_layout();
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int32_t n = 0; n < p.outputs; ++n) {
        double sum = p.bias ? p.bias[n] : 0;
        for (int32_t e = 0; e < p.features; ++e) {
          double x = p.input[input.row(b, t) + input.column(e)];
          if (p.position) x += p.position[(b * p.tokens + t) * p.features + e];
          sum += x * p.weight[n * p.features + e];
        }
        if (p.residual) sum += p.residual[(b * p.tokens + t) * p.outputs + n];
        out[to.row(b, t) + to.column(n)] = sum;
      }
    }
  }
}

void reference_multihead(const MultiheadProblem& p, double* out) {
  const MultiheadSizes sizes = multihead_sizes(p);
  std::vector<float> query(sizes.query), key(sizes.key), value(sizes.value), attended(sizes.attended),
      lse(sizes.lse);
  const MultiheadParts parts =
      multihead_parts(p, {query.data(), key.data(), value.data(), attended.data(), lse.data()});
  const auto project = [](const LinearProblem& linear, std::vector<float>* to) {
    std::vector<double> exact(to->size());
    reference_linear(linear, exact.data());
    to->assign(exact.begin(), exact.end());
  };
  project(parts.query, &query);
  project(parts.key, &key);
  project(parts.value, &value);
  std::vector<double> exact(attended.size()), exact_lse(lse.size());
  reference_attention(parts.attention, exact.data(), exact_lse.data());
  attended.assign(exact.begin(), exact.end());
  reference_linear(parts.out, out);
}

}  // namespace attention_bias
