// What kernels use of the device. Under nvcc each function is the instruction it names; compiled as plain C++
// the same names are the emulator's twins (test/native/emulator.h), so a kernel runs in tests with no GPU.
// Kernels name nothing else of CUDA: no threadIdx, no __syncthreads, no static __shared__. Blocks are
// one-dimensional, a multiple of 32 threads, and every operation of a warp is one of all 32 lanes. Sums
// that depend on the order of threads are not reproducible, so there is one atomic operation, for gradients
// of which the caller was told.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)

#include "emulator.h"

#else

#define AB_KERNEL __global__
#define AB_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define AB_DEVICE __device__ __forceinline__
#define AB_UNROLL _Pragma("unroll")
#define AB_NO_UNROLL _Pragma("unroll 1")

namespace attention_bias::cuda {

constexpr int kWarpLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// ---- coordinates
// ----------------------------------------------------------------------------------------------------

AB_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
AB_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
AB_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
AB_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
AB_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
AB_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
AB_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
AB_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }
AB_DEVICE int lane_index() { return thread_index() % kWarpLanes; }
AB_DEVICE int warp_index() { return thread_index() / kWarpLanes; }

// ---- shared memory, barriers, exchange within a warp
// ----------------------------------------------------------------

// The block's dynamic shared memory, of the size given at launch, aligned to 16 bytes.
AB_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char attention_bias_shared_memory[];
  return attention_bias_shared_memory;
}

// All threads of the block, or of the warp, wait for each other and see each other's earlier writes.
AB_DEVICE void barrier() { __syncthreads(); }
AB_DEVICE void warp_barrier() { __syncwarp(kAllLanes); }

// The value that lane (own lane ^ lane_mask), or lane `lane`, passed; both modulo 32.
template <class T>
AB_DEVICE T shuffle_xor(T value, int lane_mask) {
  static_assert(sizeof(T) == 4, "a shuffle moves 4 bytes");
  return __shfl_xor_sync(kAllLanes, value, lane_mask);
}
template <class T>
AB_DEVICE T shuffle(T value, int lane) {
  static_assert(sizeof(T) == 4, "a shuffle moves 4 bytes");
  return __shfl_sync(kAllLanes, value, lane);
}

AB_DEVICE bool any_in_warp(bool value) { return __any_sync(kAllLanes, value) != 0; }
// Bit i is what lane i passed.
AB_DEVICE uint32_t ballot(bool value) { return __ballot_sync(kAllLanes, value); }
AB_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }
// A barrier too.
AB_DEVICE bool any_in_block(bool value) { return __syncthreads_or(value) != 0; }

// ---- asynchronous copies from global to shared memory
// ---------------------------------------------------------------

// 16 bytes past the L1 cache, or 4 bytes through it; both addresses are aligned to the size. Where !valid the
// destination gets zeros and `global` is not read. The destination holds nothing defined until this thread
// has committed and waited; other threads see it after a barrier behind that wait.
AB_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
AB_DEVICE void copy_async_4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
               : "memory");
}

// Ends a group: this thread's copies since the last commit. A group may be empty.
AB_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest N groups of this thread are under way.
template <int N>
AB_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- vector access
// --------------------------------------------------------------------------------------------------

struct alignas(16) Float4 {
  float x, y, z, w;
};

// Four floats at an address aligned to 16 bytes, global or shared.
AB_DEVICE Float4 load_16(const float* address) { return *reinterpret_cast<const Float4*>(address); }
// 8 bytes at an address aligned to 8.
AB_DEVICE void load_8(uint16_t (&to)[4], const uint16_t* address) {
  const uint2 words = *reinterpret_cast<const uint2*>(address);
  __builtin_memcpy(to, &words, 8);
}
AB_DEVICE void store_16(float* address, Float4 value) { *reinterpret_cast<Float4*>(address) = value; }
AB_DEVICE void store_16(void* address, const uint32_t (&words)[4]) {
  *reinterpret_cast<uint4*>(address) = make_uint4(words[0], words[1], words[2], words[3]);
}
// To global memory, for what is not read again soon: first to leave the caches.
AB_DEVICE void store_16_streaming(float* address, Float4 value) {
  __stcs(reinterpret_cast<float4*>(address), make_float4(value.x, value.y, value.z, value.w));
}

// Adds to global memory, in whatever order threads come; four floats at an address aligned to 16 bytes.
AB_DEVICE void atomic_add(float* address, float value) { atomicAdd(address, value); }
AB_DEVICE void atomic_add_16(float* address, Float4 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)),
               "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
               : "memory");
#else
  atomicAdd(address, value.x);
  atomicAdd(address + 1, value.y);
  atomicAdd(address + 2, value.z);
  atomicAdd(address + 3, value.w);
#endif
}

// Four 8 × 8 matrices of 16 bits from shared memory, by a warp. Lane 8·m + r gives the address of row r of
// matrix m, aligned to 16 bytes. With g = lane / 4 and t = lane % 4, words[m] is (g, 2t) in the low and
// (g, 2t + 1) in the high half of matrix m; transposed, (2t, g) and (2t + 1, g). A matrix's row is also four
// tf32, of which words[m] is (g, t).
AB_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}
AB_DEVICE void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
}

// ---- arithmetic
// -----------------------------------------------------------------------------------------------------

// 2^x with a relative error of about 2^-22; a subnormal result is 0, exp2(-inf) is 0.
AB_DEVICE float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// The nearest tf32 (10 explicit bits of mantissa), ties away from zero, in the upper 19 bits of a float32;
// what the lower 13 hold is open on the device, 0 in the twin, and an mma ignores them.
AB_DEVICE uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Two bfloat16, rounded to nearest even, `low` in the lower half; a NaN becomes 0x7fff.
AB_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// D = A·B + C of a warp, A 16 rows × K, B K × 8 columns, C and D 16 × 8 in float32. With g = lane / 4 and
// t = lane % 4, each lane holds, written (row, column):
//
//            mma_tf32, K = 8, a tf32 a register      mma_bf16, K = 16, two columns (A) or rows (B) a register
//   a[0]     (g,     t)                              (g,     2t) low half, (g,     2t + 1) high half
//   a[1]     (g + 8, t)                              (g + 8, 2t)           (g + 8, 2t + 1)
//   a[2]     (g,     t + 4)                          (g,     2t + 8)       (g,     2t + 9)
//   a[3]     (g + 8, t + 4)                          (g + 8, 2t + 8)       (g + 8, 2t + 9)
//   b[0]     (t,     g)                              (2t,     g)           (2t + 1, g)
//   b[1]     (t + 4, g)                              (2t + 8, g)           (2t + 9, g)
//   c, d     [0] (g, 2t)   [1] (g, 2t + 1)   [2] (g + 8, 2t)   [3] (g + 8, 2t + 1), of both
//
// Products are exact. The hardware cuts bits off while it aligns the terms of a sum; the twin sums in float64
// and rounds once to float32, so the two differ by a few units in the last place of the largest term.
// The low 13 bits of a tf32 register are ignored.
AB_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
AB_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}

}  // namespace attention_bias::cuda

#endif
