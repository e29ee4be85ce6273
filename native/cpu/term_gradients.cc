#include "cpu/term_gradients.h"

#include <algorithm>

namespace attention_bias::cpu {

namespace {

// A dense bias that differs by query and by key.
bool of_pairs(const Learnable& learnable, const Program& bias) {
  const bool dense = bias.terms()[static_cast<size_t>(learnable.term)].type == TermType::kDense;
  return dense && learnable.tensor.shape[2] > 1 && learnable.tensor.shape[3] > 1;
}

bool low_rank(const Learnable& learnable, const Program& bias) {
  return bias.terms()[static_cast<size_t>(learnable.term)].type == TermType::kLowRank;
}

// A tensor's elements of a batch row, or 0 where batch rows have them in common.
int64_t elements_of_batch_row(const Learnable& learnable, const Program& bias) {
  const Shape& shape = learnable.tensor.shape;
  switch (bias.terms()[static_cast<size_t>(learnable.term)].type) {
    case TermType::kDense:
      return shape[0] > 1 ? shape[1] * shape[2] * shape[3] : 0;
    case TermType::kModality:
    case TermType::kSpatial:
      return shape[1];
    default:
      return 0;
  }
}

}  // namespace

bool TermGradients::shares_pairs(const BackwardProblem& problem) {
  if (problem.grad_terms.empty()) return false;
  const Program& bias = *problem.attention.bias;
  const Extent& e = bias.extent();
  return std::any_of(bias.learnables().begin(), bias.learnables().end(), [&](const Learnable& learnable) {
    const Shape& shape = learnable.tensor.shape;
    return of_pairs(learnable, bias) && (shape[0] < e.batch || shape[1] < e.heads);
  });
}

int64_t TermGradients::most_bytes(const BackwardProblem& problem, int64_t groups) {
  int64_t elements = 0;
  for (size_t i = 0; i < problem.grad_terms.size(); ++i) {
    const Program& bias = *problem.attention.bias;
    const Learnable& learnable = bias.learnables()[i];
    if (of_pairs(learnable, bias) || low_rank(learnable, bias)) continue;
    elements += element_count(learnable.tensor.shape, learnable.tensor.name);
  }
  return groups * elements * static_cast<int64_t>(sizeof(double));
}

TermGradients::TermGradients(const BackwardProblem& problem, int64_t groups)
    : groups_(static_cast<size_t>(groups)) {
  for (size_t i = 0; i < problem.grad_terms.size(); ++i) {
    const Program& bias = *problem.attention.bias;
    const Learnable& learnable = bias.learnables()[i];
    const int64_t elements = element_count(learnable.tensor.shape, learnable.tensor.name);
    const bool pairs = of_pairs(learnable, bias), in_place = pairs || low_rank(learnable, bias);
    tensors_.push_back({problem.grad_terms[i], elements, elements_of_batch_row(learnable, bias), in_place});
    if (pairs) std::fill_n(problem.grad_terms[i], elements, 0.0f);
  }
}

const GradientSink* TermGradients::enter(int64_t group, int64_t b0, int64_t b1) {
  Group& g = groups_[static_cast<size_t>(group)];
  for (const Sum& tensor : tensors_) {
    if (tensor.in_place) {
      g.sums.emplace_back();
      g.sinks.push_back({nullptr, 0, tensor.out});
      continue;
    }
    const bool by_batch = tensor.batch_elements != 0;
    g.sums.emplace_back(static_cast<size_t>(by_batch ? (b1 - b0) * tensor.batch_elements : tensor.elements));
    g.sinks.push_back({nullptr, by_batch ? b0 * tensor.batch_elements : 0, nullptr});
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensors_[i].in_place) g.sinks[i].sums = g.sums[i].data();
  }
  return g.sinks.data();
}

void TermGradients::join(const Run& run) {
  constexpr int64_t kRun = 16 * 1024;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const Sum& tensor = tensors_[i];
    if (tensor.in_place) continue;
    run((tensor.elements + kRun - 1) / kRun, [&](int64_t item, int) {
      const int64_t begin = item * kRun, end = std::min(tensor.elements, begin + kRun);
      std::vector<double> sums(static_cast<size_t>(end - begin));
      for (const Group& g : groups_) {
        if (g.sinks.empty()) continue;
        const int64_t first = g.sinks[i].first;
        const int64_t last = first + static_cast<int64_t>(g.sums[i].size());
        for (int64_t at = std::max(begin, first); at < std::min(end, last); ++at) {
          sums[static_cast<size_t>(at - begin)] += g.sums[i][static_cast<size_t>(at - first)];
        }
      }
      std::copy(sums.begin(), sums.end(), tensor.out + begin);
    });
  }
}

}  // namespace attention_bias::cpu
