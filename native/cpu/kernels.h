// What the per-instruction-set kernels offer to the backend: one table an instruction set, each of the same
// functions.
#pragma once

#include <cstdint>

#include "core/deformable.h"
#include "core/multihead.h"
#include "core/operations.h"
#include "core/softmax.h"

namespace attention_bias::cpu {

// Whether the flag is there and set. Out of line: see annotations.h.
bool aborted(AbortFlag abort);

constexpr int32_t kTileKeys = 64;  // of a tile; pieces begin at multiples of it

// The local additive terms of a block of queries, element by element and by tile of keys.
struct NearElement {
  int32_t at;  // key of the tile · query_block() + query of the block
  float bias;  // not 0; an element may be listed once a term
};
template <class Element>
struct NearBlockOf {
  const Element* elements;
  const uint32_t *begins, *ends;  // of each tile, from key 0
};
using NearBlock = NearBlockOf<NearElement>;

// The same for gradients.
struct NearGradient {
  int32_t at;
  int32_t learnable;   // of Program::learnables(), whose element is that of batch row and query
  float derivative;    // of the bias by it; not 0
  float bias, factor;  // e^bias
};

// One piece of an attention: some queries of one batch row and head, over some of the keys.
struct AttentionTask {
  const AttentionProblem* problem;
  int64_t b, h;
  int32_t q0, q1, k0, k1;
  float* scratch;  // 64-byte aligned, attention_scratch_floats() long
  AbortFlag abort;
  // Where it is not null, what local additive terms come to, by block of queries from query 0, at multiples
  // of which the piece then begins; the kernel of rows evaluates them itself.
  const NearBlock* near;
  // Where to write the rows [q1 − q0]. With `partial` null the piece is whole: out is normalised and lse is
  // written. Otherwise out is left unnormalised, by the states written to partial.
  float* out;
  float* lse;
  SoftmaxState* partial;
};

// Whole rows of one batch row and some of its heads, where the bias bounds the keys that a row sees.
struct GatherTask {
  const AttentionProblem* problem;
  const KeyBound* bound;
  bool bias_by_head;  // whether the bias differs between heads
  int64_t b, h0, h1;
  const int32_t* queries;  // `count` of them, in any order; faster where neighbours see the same keys
  int32_t count;
  float* scratch;  // 64-byte aligned, gather_scratch_floats() long
  AbortFlag abort;
};

// Batch rows and heads [row0, row1) of a problem with few keys, whole.
struct ShortTask {
  const AttentionProblem* problem;
  // Of each batch row what expand_bias wrote for head 0, head_stride floats before the next head's; null for
  // no bias.
  const float* const* biases;
  int64_t head_stride;
  bool hides;  // whether biases may be −∞
  int64_t row0, row1;
  float* scratch;  // 64-byte aligned, short_scratch_floats() long
  AbortFlag abort;
};

// Where the gradient of one of Program::learnables() is summed up.
struct GradientSink {
  double* sums;  // the elements from `first` on; null where `floats` is in use
  int64_t first;
  float* floats;  // all of them: a tensor of single pairs, to whose elements few are added
};

// What the batch rows of a group of tasks have in common, one thread's: for each head, block of queries and
// tile of keys, in this order, [kTileKeys][kQueries] floats.
struct SharedTiles {
  float* grad_sums;  // gradients by scores since flush_grad_sums(), of terms that don't depend on batch rows
  float* biases;     // of the batch rows like `bias_of`
  int64_t* bias_of;  // by tile: Program::first_alike(), or −1 where there are none yet
};

// The gradients by some queries and keys of one batch row and head.
struct BackwardTask {
  const BackwardProblem* problem;
  int64_t b, h;
  int32_t q0, q1, k0, k1;
  bool adds;                              // to the gradients by keys and values, which an earlier task wrote
  bool careful;                           // whether inputs may hold NaN or infinities that masks hide
  const NearBlockOf<NearGradient>* near;  // as AttentionTask::near
  const GradientSink* sinks;              // of learnables(); null where nobody wants those gradients
  const SharedTiles* shared;              // null where batch rows are few or their tiles too many
  const RowSum* row_sums;                 // [B, H, Q]; null where no lse is far
  // By panel, which are the head's own dims and each lowRank term's: rows [q1 − q0] to write, and rows of all
  // keys of this batch row and head. The pointers of a panel that nobody wants are null.
  float* const* grad_query;
  float* const* grad_key;
  float* grad_value;  // rows of all keys
  float* scratch;     // 64-byte aligned, backward_scratch_floats() long
  AbortFlag abort;
};

// Queries [row0, row1) of deformable attention, flattened over batch rows.
struct DeformableRows {
  const DeformableProblem* problem;
  const DeformableBackwardProblem* backward;  // of gradients; its forward is the problem
  int64_t row0, row1;
  float* scratch;  // 64-byte aligned, deformable_scratch_floats() long
};

// The gradient of one level of value, of one batch row and head, by channels [d0, d1): all of it that the
// queries add up to.
struct DeformableLevelTask {
  const DeformableBackwardProblem* backward;
  int64_t b, h, level, d0, d1;
  float* scratch;  // 64-byte aligned, deformable_scratch_floats() long
  AbortFlag abort;
};

// Rows [row0, row1) of a linear layer, flattened over batch and tokens, and panels [panel0, panel1) of its
// outputs.
struct LinearTask {
  const LinearProblem* problem;
  const float* packed;  // what pack_weight wrote of all panels
  int64_t row0, row1, panel0, panel1;
  float* scratch;  // 64-byte aligned, linear_scratch_floats() of that many rows long
};

// Floats of state that a kernel keeps for a query: the packed query of all panels, three times the outputs
// and their sum (of the block of keys at hand, of those before, and what rounding lost), and three numbers.
int64_t state_floats(const AttentionProblem& problem);
// The head's dims and those of lowRank terms.
int64_t packed_dims(const AttentionProblem& problem);

struct Kernels {
  int32_t (*query_block)();  // queries that a kernel handles side by side; pieces are best multiples of it

  int64_t (*attention_scratch_floats)(const AttentionProblem& problem, int32_t queries);
  // False when it saw the abort flag set; out is then undefined.
  bool (*attention)(const AttentionTask& task);

  // The same with products in bfloat16, where this processor has an instruction for them.
  bool (*has_bf16)();
  int64_t (*bf16_scratch_floats)(const AttentionProblem& problem, int32_t queries);
  bool (*attention_bf16)(const AttentionTask& task);

  // How many of a piece's queries, its last, are better attended as rows.
  int32_t (*left_over_rows)(int32_t queries);
  // The same task a query at a time. bias_rows, where it is not null, holds the biases [q1 − q0][k1 − k0] in
  // place of the problem's terms; −∞ hides.
  int64_t (*row_scratch_floats)(const AttentionProblem& problem, int32_t queries);
  bool (*attention_rows)(const AttentionTask& task, const float* bias_rows);

  int64_t (*gather_scratch_floats)(const AttentionProblem& problem, const KeyBound& bound);
  bool (*gather)(const GatherTask& task);

  // The bias of one batch row and head as attention_short reads it: shared_bias_floats() long.
  int64_t (*shared_bias_floats)(int32_t queries, int32_t keys);
  void (*expand_bias)(const Program& bias, int64_t b, int64_t h, float* to);
  int64_t (*short_scratch_floats)(const AttentionProblem& problem);
  bool (*attention_short)(const ShortTask& task);

  int64_t (*backward_scratch_floats)(const AttentionProblem& problem, int32_t queries);
  // False when it saw the abort flag set.
  bool (*backward)(const BackwardTask& task);
  // Before: what a block of queries has for RowSum, of all keys [k0, k1), which are cut into tasks of key_run
  // keys.
  bool (*row_sums)(const BackwardTask& task, int32_t key_run, RowSum* to);
  // Adds what the tasks of a group left in their shared tiles, of all heads and the task's keys, to its
  // sinks.
  void (*flush_grad_sums)(const BackwardTask& task);
  // Weights of a linear layer are packed by panel of outputs, into memory aligned to 64 bytes.
  int64_t (*linear_panels)(const LinearProblem& problem);
  int64_t (*packed_weight_floats)(const LinearProblem& problem);
  void (*pack_weight)(const LinearProblem& problem, int64_t panel, float* packed);
  int64_t (*linear_scratch_floats)(const LinearProblem& problem, int64_t rows);
  void (*linear)(const LinearTask& task);

  // Rows [row0, row1) of bias_shape(), flattened over batch, heads and queries.
  void (*bias_rows)(const BiasProblem& problem, int64_t row0, int64_t row1);
  // Batch rows [b0, b1), but for those that are their own first_alike(): copies of that one, which is
  // written.
  void (*bias_copies)(const BiasProblem& problem, int64_t b0, int64_t b1);

  // What a core can do at most. The first two return how many operations they did; peak_bf16 is called only
  // where has_bf16(). *sink, near 1, is read and written so that no compiler leaves the work out. Memory is
  // 64-byte aligned and a multiple of 512 bytes.
  int64_t (*peak_fma)(int64_t rounds, float* sink);
  int64_t (*peak_bf16)(int64_t rounds, float* sink);
  void (*peak_fill)(float* to, int64_t count, float value);
  float (*peak_read)(const float* from, int64_t count);

  // Deformable attention; its gradients by sampling locations and attention weights, and by value. The last
  // adds to grad_value, and returns false when it saw the abort flag set; grad_value is then undefined.
  int64_t (*deformable_scratch_floats)(const DeformableProblem& problem);
  void (*deformable_rows)(const DeformableRows& task);
  void (*deformable_gradient_rows)(const DeformableRows& task);
  bool (*deformable_value_gradient)(const DeformableLevelTask& task);
};

// The instruction sets that are compiled into this binary. Each namespace is defined by the *_kernel.cc,
// compiled once for it.
#if defined(AB_ISAS_X86_64)
#if defined(AB_WITHOUT_X86_64_V2)
#define AB_FOR_EACH_ISA(X) X(x86_64_v3) X(x86_64_v4)
#else
#define AB_FOR_EACH_ISA(X) X(x86_64_v2) X(x86_64_v3) X(x86_64_v4)
#endif
#elif defined(__aarch64__)
#define AB_FOR_EACH_ISA(X) X(arm64)
#else
#define AB_FOR_EACH_ISA(X) X(generic)
#endif

#define AB_DECLARE_KERNELS(isa)                                                       \
  namespace isa {                                                                     \
  int32_t query_block();                                                              \
  int64_t attention_scratch_floats(const AttentionProblem& problem, int32_t queries); \
  bool attention(const AttentionTask& task);                                          \
  bool has_bf16();                                                                    \
  int64_t bf16_scratch_floats(const AttentionProblem& problem, int32_t queries);      \
  bool attention_bf16(const AttentionTask& task);                                     \
  int32_t left_over_rows(int32_t queries);                                            \
  int64_t row_scratch_floats(const AttentionProblem& problem, int32_t queries);       \
  bool attention_rows(const AttentionTask& task, const float* bias_rows);             \
  int64_t gather_scratch_floats(const AttentionProblem& p, const KeyBound& bound);    \
  bool gather(const GatherTask& task);                                                \
  int64_t shared_bias_floats(int32_t queries, int32_t keys);                          \
  void expand_bias(const Program& bias, int64_t b, int64_t h, float* to);             \
  int64_t short_scratch_floats(const AttentionProblem& problem);                      \
  bool attention_short(const ShortTask& task);                                        \
  int64_t backward_scratch_floats(const AttentionProblem& problem, int32_t queries);  \
  bool backward(const BackwardTask& task);                                            \
  bool row_sums(const BackwardTask& task, int32_t key_run, RowSum* to);               \
  void flush_grad_sums(const BackwardTask& task);                                     \
  int64_t linear_panels(const LinearProblem& problem);                                \
  int64_t packed_weight_floats(const LinearProblem& problem);                         \
  void pack_weight(const LinearProblem& problem, int64_t panel, float* packed);       \
  int64_t linear_scratch_floats(const LinearProblem& problem, int64_t rows);          \
  void linear(const LinearTask& task);                                                \
  void bias_rows(const BiasProblem& problem, int64_t row0, int64_t row1);             \
  void bias_copies(const BiasProblem& problem, int64_t b0, int64_t b1);               \
  int64_t peak_fma(int64_t rounds, float* sink);                                      \
  int64_t peak_bf16(int64_t rounds, float* sink);                                     \
  void peak_fill(float* to, int64_t count, float value);                              \
  float peak_read(const float* from, int64_t count);                                  \
  int64_t deformable_scratch_floats(const DeformableProblem& problem);                \
  void deformable_rows(const DeformableRows& task);                                   \
  void deformable_gradient_rows(const DeformableRows& task);                          \
  bool deformable_value_gradient(const DeformableLevelTask& task);                    \
  }
AB_FOR_EACH_ISA(AB_DECLARE_KERNELS)
#undef AB_DECLARE_KERNELS

}  // namespace attention_bias::cpu
