// A bias as a program: a list of terms, checked once and resolved to plain structs (terms.h) that kernels
// evaluate. Each add_* checks everything that docs/terms.md asks of its term and throws Error naming the
// field by `path` (such as bias[2]) and the tensors by their own names. Tensors are not copied: they must
// outlive the program.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "core/shapes.h"
#include "core/terms.h"
#include "core/values.h"

namespace attention_bias {

enum class Align : uint8_t { kTopLeft, kBottomRight };

struct ModalitySegmentSpec {
  int64_t start = 0;
  int64_t length = 0;
  TensorView weights;  // [B, Q] in [0, 1]
};

// A grid of cells on a segment of keys: what spatial and window terms share.
struct GridSpec {
  int64_t start = 0;
  std::vector<int64_t> grid;  // [V, Hg, Wg] or [Hg, Wg]
  TensorView centers;         // [B, Q, 3] or [B, Q, 2]
};

struct SpatialSegmentSpec {
  GridSpec cells;
  double radius = 0;
  TensorView weights;  // [B, Q]
};

struct WindowSegmentSpec {
  GridSpec cells;
  int64_t size = 0;
};

// A tensor of a term for which a gradient can be asked.
struct Learnable {
  TensorView tensor;
  int term;
  int32_t slot;  // among the term's: see terms.h
};

class Program {
 public:
  // ERR_SHAPE for an extent that can't be addressed.
  explicit Program(const Extent& extent);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void add_dense(const TensorView& bias, const std::string& path);
  void add_mask(const TensorView& visible, const std::string& path);
  void add_padding(const TensorView& ignore, const std::string& path);
  void add_causal(Align align, const std::string& path);
  void add_sliding_window(int64_t left, int64_t right, Align align, const std::string& path);
  void add_block_diagonal(const TensorView& query_ids, const TensorView& key_ids, const std::string& path);
  void add_modality(double strength, const std::vector<ModalitySegmentSpec>& segments,
                    const std::string& path);
  void add_spatial(double strength, const std::vector<SpatialSegmentSpec>& segments, const std::string& path);
  void add_window(const std::vector<WindowSegmentSpec>& segments, const std::string& path);
  void add_denoising(int64_t groups, int64_t group_size, bool groups_see_matching, const std::string& path);
  void add_shifted_window(const std::vector<int64_t>& resolution, const std::vector<int64_t>& window,
                          const std::vector<int64_t>& shift, double value, const std::string& path);
  void add_relative_position(const std::vector<int64_t>& window, const TensorView& table, bool cls_token,
                             const std::string& path);
  void add_low_rank(const TensorView& query_factors, const TensorView& key_factors, double scale,
                    const std::string& path);
  void add_alibi(const TensorView& slopes, const std::string& path);

  const Extent& extent() const { return extent_; }
  const std::vector<Term>& terms() const { return terms_; }
  // The same, out of line, for kernels that may not instantiate anything inline (annotations.h).
  const Term* term_data() const;
  int term_count() const;

  // The tensors that the terms point to, each as often as it is used.
  const std::vector<TensorView>& tensors() const { return tensors_; }

  // The learnable ones, by term, then by slot.
  const std::vector<Learnable>& learnables() const { return learnables_; }

  // How many of them are a term's. Out of line, as term_data().
  int learnable_count(int term) const;

  // What is to be checked of values that the host can't read. Those that it can are checked already.
  const std::vector<ValueCheck>& device_checks() const { return device_checks_; }

  // How many keys a row sees at most, and which: by the terms' fields, without a look at any tensor.
  KeyBound key_bound() const;

  // Σ rank of the lowRank terms.
  int64_t low_rank_dims() const { return low_rank_dims_; }

  // Whether the bias differs between batch rows or heads, by the terms' types and their tensors' shapes.
  bool depends_on_batch() const { return batch_terms_ != 0; }
  // Bits of the terms that differ between batch rows.
  uint64_t batch_terms() const { return batch_terms_; }
  bool depends_on_head() const { return depends_on_head_; }

  // The first batch row whose bias is that of batch row b, by the terms' fields: b, unless b counts in
  // nothing but the place of a shifted window.
  int64_t first_alike(int64_t b) const;

 private:
  void append(const Term& term, const std::string& path, bool depends_on_batch, bool depends_on_head);
  // As attention_bias::require, of a tensor that a term will point to.
  void require(const TensorView& view, DType dtype, const std::vector<Dim>& dims, const char* letters);
  // The next slot of the term that append() will add.
  void learn(const TensorView& tensor);
  void require_range(const TensorView& view, float low, float high, const char* what);
  void require_finite(const TensorView& view);
  CellGrid cell_grid(const GridSpec& spec, const std::string& path);

  Extent extent_;
  std::vector<Term> terms_;
  std::vector<TensorView> tensors_;
  std::vector<Learnable> learnables_;
  std::vector<ValueCheck> device_checks_;
  int64_t low_rank_dims_ = 0;
  uint64_t batch_terms_ = 0;  // those that differ between batch rows; bit i speaks of term i
  bool depends_on_head_ = false;
  // What terms point to. A deque never moves its elements.
  std::deque<std::vector<ModalitySegment>> modality_segments_;
  std::deque<std::vector<SpatialSegment>> spatial_segments_;
  std::deque<std::vector<WindowSegment>> window_segments_;
};

}  // namespace attention_bias
