#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "cuda/backward_kernel.cuh"
#include "cuda/backward_launch.cuh"

namespace attention_bias::cuda {

namespace {

// Calls f with the tile of the least compiled head dim that is enough for `dim`.
template <class F>
void with_backward_tile(int64_t dim, F&& f) {
  if (dim <= 32) return f(BackwardTile<32>());
  if (dim <= 64) return f(BackwardTile<64>());
  if (dim <= 128) return f(BackwardTile<128>());
  if (dim <= 256) return f(BackwardTile<256>());
  throw expected(ErrorCode::kShape, "head dims of at most 256", "query and value", std::to_string(dim));
}

constexpr int64_t kBlocksPerMultiprocessor = 8;       // of a launch: four waves
constexpr int64_t kLeastRun = 256;                    // keys of a block: below it the sums cost more
constexpr int64_t kPartialBytes = 256 * 1024 * 1024;  // of what is to be summed up
constexpr int64_t kMostRuns = 65535;                  // what a grid takes
constexpr int64_t kLongSum = 64;                      // from here on a warp sums

// A sum over p and over those of b, h, n that are not kept.
template <class Real>
void launch_sum(Work* work, const SumArguments<Real>& a) {
  const int64_t elements = a.kept[0] * a.kept[1] * a.kept[2];
  const int64_t all = a.sizes[0] * a.sizes[1] * a.sizes[2] * a.sizes[3];
  work->check_abort();
  if (all / elements < kLongSum) {
    work->launch(sum_kernel<Real, 1>, grid_of(elements, kSumThreads), kSumThreads, size_t{0}, a);
  } else {
    work->launch(sum_kernel<Real, kWarpLanes>, grid_of(elements, kSumThreads / kWarpLanes), kSumThreads,
                 size_t{0}, a);
  }
}

template <class T>
class Backward {
 public:
  Backward(Work* work, int multiprocessors, const BackwardProblem& problem, const BackwardArguments& a)
      : work_(work),
        multiprocessors_(multiprocessors),
        problem_(problem),
        a_(a),
        batch_(problem.attention.extent.batch),
        query_tiles_(ceil_div(a.queries, T::kTile)),
        key_tiles_(ceil_div(a.keys, T::kTile)) {
    for (size_t i = 0; i < problem.grad_terms.size(); ++i) {
      const Learnable& learnable = problem.attention.bias->learnables()[i];
      const int64_t count = element_count(learnable.tensor.shape, learnable.tensor.name);
      outputs_.push_back(work->output(problem.grad_terms[i], count));
    }
  }

  void launch() {
    by_key();
    by_query();
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (kind_of(i) == Kind::kPairs) by_pair(i);
      if (kind_of(i) == Kind::kFactors && learnable(i).slot == 0) by_factors(i);
    }
  }

 private:
  // By what a learnable tensor's gradient is summed up.
  enum class Kind { kQueries, kKeys, kPairs, kTable, kFactors };

  const Learnable& learnable(size_t i) const { return problem_.attention.bias->learnables()[i]; }
  const Term& term_of(size_t i) const {
    return problem_.attention.bias->terms()[static_cast<size_t>(learnable(i).term)];
  }
  Kind kind_of(size_t i) const {
    switch (term_of(i).type) {
      case TermType::kDense: {
        const Shape& shape = learnable(i).tensor.shape;
        if (shape[3] == 1) return Kind::kQueries;
        return shape[2] == 1 ? Kind::kKeys : Kind::kPairs;
      }
      case TermType::kRelativePosition:
        return Kind::kTable;
      case TermType::kLowRank:
        return Kind::kFactors;
      default:
        return Kind::kQueries;
    }
  }

  Grid grid(int64_t tiles, int64_t runs) const {
    Grid grid = grid_of(a_.rows * tiles, 1);
    grid.y = static_cast<int>(runs);
    return grid;
  }

  template <bool kOwnKeys>
  void launch_gradients(int64_t runs, const GradientOutputs& o) {
    work_->check_abort();
    work_->launch(gradient_kernel<T::kDim, kOwnKeys>, grid(kOwnKeys ? key_tiles_ : query_tiles_, runs),
                  T::kThreads, T::kSharedBytes, a_, o);
  }

  // How many runs the keys are cut into: by the shape and the device only. `bytes` is what a run leaves.
  int64_t key_runs(int64_t bytes) const {
    const int64_t wanted = ceil_div(kBlocksPerMultiprocessor * multiprocessors_, a_.rows * query_tiles_);
    const int64_t most =
        std::min({a_.keys / kLeastRun, kPartialBytes / std::max<int64_t>(bytes, 1), kMostRuns});
    return std::max<int64_t>(1, std::min(wanted, most));
  }
  // Their length.
  int64_t key_run(int64_t runs) const { return ceil_div(ceil_div(a_.keys, runs), T::kTile) * T::kTile; }

  void by_key() {
    const AttentionProblem& p = problem_.attention;
    GradientOutputs o = {};
    o.run = a_.queries;
    o.factor_term = -1;
    o.columns = a_.head_dim;
    o.rows = work_->output(problem_.grad_key, a_.rows * a_.keys * p.head_dim);
    o.values = work_->output(problem_.grad_value, a_.rows * a_.keys * p.value_dim);
    take_slots(Kind::kKeys, &o);
    o.own_sums = work_->template allocate<double>(int64_t{T::kParts} * o.slots * a_.rows * a_.keys);
    launch_gradients<true>(1, o);
    sum_own(Kind::kKeys, o, T::kParts, a_.keys);
  }

  void by_query() {
    const int64_t floats = a_.rows * a_.queries * a_.head_dim;
    GradientOutputs o = {};
    o.factor_term = -1;
    o.columns = a_.head_dim;
    take_slots(Kind::kQueries, &o);
    take_bins(&o);
    const int64_t own_doubles = int64_t{T::kParts} * o.slots * a_.rows * a_.queries;
    const int64_t table_doubles = a_.rows * query_tiles_ * o.bins;
    const int64_t bytes = floats * static_cast<int64_t>(sizeof(float)) +
                          (own_doubles + table_doubles) * static_cast<int64_t>(sizeof(double));
    const int64_t run = key_run(key_runs(bytes)), runs = ceil_div(a_.keys, run);
    o.run = static_cast<int32_t>(run);
    o.own_sums = work_->template allocate<double>(runs * own_doubles);
    o.table_sums = work_->template allocate<double>(runs * table_doubles);
    float* const out = work_->output(problem_.grad_query, floats);
    o.rows = runs == 1 ? out : work_->template allocate<float>(runs * floats);
    launch_gradients<false>(runs, o);
    if (runs != 1) {
      launch_sum<float>(work_,
                        {o.rows, {runs, 1, 1, floats}, {floats, 0, 0}, out, {1, 1, floats}, {0, 0, 1}});
    }
    sum_own(Kind::kQueries, o, runs * T::kParts, a_.queries);
    sum_tables(o, query_tiles_ * runs);
  }

  // A slot for each learnable tensor of the kind.
  void take_slots(Kind kind, GradientOutputs* o) const {
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (kind_of(i) != kind) continue;
      const int term = learnable(i).term;
      if (learnable(i).slot == 0) o->first[term] = o->slots;
      o->own_terms |= uint64_t{1} << term;
      ++o->slots;
    }
  }
  void take_bins(GradientOutputs* o) const {
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (kind_of(i) != Kind::kTable) continue;
      const int term = learnable(i).term;
      o->first[term] = static_cast<int32_t>(o->bins);
      o->table_terms |= uint64_t{1} << term;
      o->bins += term_of(i).relative_position.rows();
    }
    if (o->bins > std::numeric_limits<int32_t>::max()) {
      throw expected(ErrorCode::kShape, "fewer than 2^31 rows", "the tables", std::to_string(o->bins));
    }
  }

  void sum_own(Kind kind, const GradientOutputs& o, int64_t parts, int64_t own) {
    const int64_t heads = a_.heads, all = a_.rows * own;
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (kind_of(i) != kind) continue;
      const Shape& shape = learnable(i).tensor.shape;
      SumArguments<double> s = {};
      s.from = o.own_sums + (o.first[learnable(i).term] + learnable(i).slot) * all;
      const int64_t sizes[4] = {parts, batch_, heads, own}, strides[3] = {o.slots * all, heads * own, own};
      std::copy(sizes, sizes + 4, s.sizes);
      std::copy(strides, strides + 3, s.strides);
      s.to = outputs_[i];
      switch (term_of(i).type) {
        case TermType::kDense:
          s.kept[0] = shape[0], s.kept[1] = shape[1], s.kept[2] = shape[2] * shape[3];
          break;
        case TermType::kAlibi:  // [H]
          s.kept[0] = 1, s.kept[1] = heads, s.kept[2] = 1;
          break;
        default:  // [B, Q]
          s.kept[0] = batch_, s.kept[1] = 1, s.kept[2] = own;
      }
      s.to_strides[0] = s.kept[1] * s.kept[2], s.to_strides[1] = s.kept[2], s.to_strides[2] = 1;
      launch_sum(work_, s);
    }
  }

  // [rows, H]
  void sum_tables(const GradientOutputs& o, int64_t parts) {
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (kind_of(i) != Kind::kTable) continue;
      const int64_t rows = term_of(i).relative_position.rows(), of_head = parts * o.bins;
      launch_sum<double>(work_, {o.table_sums + o.first[learnable(i).term],
                                 {parts, batch_, a_.heads, rows},
                                 {o.bins, a_.heads * of_head, of_head},
                                 outputs_[i],
                                 {1, a_.heads, rows},
                                 {0, 1, a_.heads}});
    }
  }

  void by_pair(size_t i) {
    const Shape& shape = learnable(i).tensor.shape;
    PairArguments pairs = {};
    pairs.term = term_of(i).dense;
    pairs.batch = shape[0];
    pairs.heads = shape[1];
    pairs.elements = element_count(shape, learnable(i).tensor.name);
    const int64_t count = a_.rows / (shape[0] * shape[1]);
    Grid grid = grid_of(shape[0] * shape[1] * query_tiles_ * key_tiles_, 1);
    const int64_t wanted = ceil_div(kBlocksPerMultiprocessor * multiprocessors_, grid.x);
    const int64_t most =
        std::min(kPartialBytes / static_cast<int64_t>(sizeof(float)) / pairs.elements, kMostRuns);
    pairs.run = ceil_div(count, std::max<int64_t>(1, std::min({count, wanted, most})));
    const int64_t runs = ceil_div(count, pairs.run);
    pairs.out = runs == 1 ? outputs_[i] : work_->template allocate<float>(runs * pairs.elements);
    grid.y = static_cast<int>(runs);
    work_->check_abort();
    work_->launch(pair_kernel<T::kDim>, grid, T::kThreads, T::kSharedBytes, a_, pairs);
    if (runs == 1) return;
    launch_sum<float>(work_, {pairs.out,
                              {runs, 1, 1, pairs.elements},
                              {pairs.elements, 0, 0},
                              outputs_[i],
                              {1, 1, pairs.elements},
                              {0, 0, 1}});
  }

  // Both factors of a lowRank term.
  void by_factors(size_t i) {
    const int64_t rank = term_of(i).low_rank.rank;
    const int64_t query_floats = a_.rows * a_.queries * rank, key_floats = a_.rows * a_.keys * rank;
    const int64_t run = key_run(key_runs(query_floats * static_cast<int64_t>(sizeof(float))));
    const int64_t runs = ceil_div(a_.keys, run);
    GradientOutputs o = {};
    o.factor_term = learnable(i).term;
    o.columns = static_cast<int32_t>(rank);
    o.run = static_cast<int32_t>(run);
    o.rows = work_->template allocate<float>(runs * query_floats);
    by_columns<false>(runs, o);
    sum_factors(o.rows, runs, a_.queries * rank, i);
    o.run = a_.queries;
    o.rows = work_->template allocate<float>(key_floats);
    by_columns<true>(1, o);
    sum_factors(o.rows, 1, a_.keys * rank, i + 1);
  }
  template <bool kOwnKeys>
  void by_columns(int64_t runs, GradientOutputs o) {
    for (; o.first_column < o.columns; o.first_column += T::kDim) launch_gradients<kOwnKeys>(runs, o);
  }
  void sum_factors(const float* from, int64_t runs, int64_t of_row, size_t i) {
    const Shape& shape = learnable(i).tensor.shape;
    launch_sum<float>(work_, {from,
                              {runs, batch_, a_.heads, of_row},
                              {a_.rows * of_row, a_.heads * of_row, of_row},
                              outputs_[i],
                              {shape[0], shape[1], of_row},
                              {shape[1] * of_row, of_row, 1}});
  }

  Work* work_;
  int64_t multiprocessors_;
  const BackwardProblem& problem_;
  const BackwardArguments& a_;
  int64_t batch_, query_tiles_, key_tiles_;
  std::vector<float*> outputs_;  // of the learnable tensors, on the device
};

}  // namespace

void launch_backward(Work* work, int multiprocessors, const BackwardProblem& problem, const float* out,
                     const float* lse, BackwardArguments a) {
  const int64_t query_rows = a.rows * a.queries;
  float* const mean = work->allocate<float>(query_rows);
  a.mean = mean;
  work->launch(mean_kernel, grid_of(query_rows, kMeanRows), kMeanThreads, size_t{0}, out, a.grad_out,
               query_rows, a.value_dim, mean);
  RowSum* const row_sums = work->allocate<RowSum>(query_rows);
  a.row_sums = row_sums;
  with_backward_tile(std::max(a.head_dim, a.value_dim), [&](auto tile) {
    using T = decltype(tile);
    work->launch(row_sum_kernel<T::kDim>, grid_of(a.rows * ceil_div(a.queries, T::kTile), 1), T::kThreads,
                 T::kSharedBytes, a, lse, row_sums);
    Backward<T>(work, multiprocessors, problem, a).launch();
  });
}

}  // namespace attention_bias::cuda
