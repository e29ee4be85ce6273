// What lets one definition serve host and device.
#pragma once

// Always inlined on the host: kernels are compiled once an instruction set, and a function left out of line
// there could be merged by the linker with a copy that an older processor can't run. AB_INLINE_LAMBDA says
// the same of a lambda.
#if defined(__CUDACC__)
#define AB_HD __host__ __device__ __forceinline__
#define AB_INLINE_LAMBDA
#else
#define AB_HD __attribute__((always_inline)) inline
#define AB_INLINE_LAMBDA __attribute__((always_inline))
#endif
