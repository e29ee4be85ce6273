// Biased attention forward in float32, compiled once an instruction set: attention_body.h with keys and
// values read where they lie, a scalar at a time, broadcast.
//
// Work for a vector of scores at head dim 32: 32 + 32 multiply-adds, and for exp 7 more (2 for the power of
// two, 5 for the polynomial) with 5 operations that run beside them on Zen 4. So 90 % of the multipliers'
// time are the two products, and CMT (1×8×900×56,400×32, modality bias) takes 494 ms of one core at best. On
// an AMD EPYC (family 25, model 17, 2 cores) with AVX-512: 535 ms with one thread, 267 with two: 195 of 229
// GFLOP/s, 85 %. No gain: prefetching, tiles of 32 to 128 keys, blocks of 256 to 1,152, vreduceps.
#include "cpu/attention_body.h"

namespace attention_bias::cpu {
namespace {

struct Float32 {
  static constexpr bool kRedoesAsRows = false;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kConverts = false;
  static constexpr bool kBeside = false;
  static constexpr int32_t kFoldKeys = 4096;

  static int64_t block_floats(const AttentionProblem&, int32_t) { return 0; }
  static void enter_block(Work*, int32_t, int32_t) {}

  static void pack(const float* rows, int32_t count, int32_t dims, float scale, float* packed) {
    cpu::pack(rows, count, dims, scale, packed);
  }

  template <int NR, int NV, Start kStart, bool kExp>
  AB_INLINE static void score_rows(const Work& w, const Panel* panels, int64_t key, int in_tile,
                                   const Vec* row, Vec* greatest, float*) {
    cpu::score_rows<NR, NV, kStart>(panels, w.panel_count, key, row, w.tile_bias + in_tile * kQueries,
                                    w.scores + in_tile * kQueries, greatest);
  }

  template <int NV, bool kSubtract>
  AB_INLINE static void exp_tile(const Work& w, int count, const Vec* subtract, Vec* sum) {
    cpu::exp_tile<NV, kSubtract>(w.scores, count, subtract, sum);
  }

  template <int ND, int NV, bool kCareful>
  AB_INLINE static void output_rows(const Work& w, int64_t key, int count, int32_t d, float* output) {
    const int64_t stride = w.problem->value_dim;
    cpu::output_rows<ND, NV, kCareful>(w.scores, w.tile_bias, count, w.value + key * stride + d, stride,
                                       output);
  }
};

}  // namespace

namespace AB_ISA_NAME {

int32_t query_block() { return kQueries; }

int64_t attention_scratch_floats(const AttentionProblem& p, int32_t queries) {
  return scratch_floats<Float32>(p, queries);
}

bool attention(const AttentionTask& t) { return attend_piece<Float32>(t); }

}  // namespace AB_ISA_NAME
}  // namespace attention_bias::cpu
