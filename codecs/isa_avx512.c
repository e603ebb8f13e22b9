/* The same kernels built for AVX-512 with VBMI2, which has instructions to compact and expand. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx2,fma,bmi,bmi2,lzcnt,popcnt"))),           \
    apply_to = function)
#else
#pragma GCC target("avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,avx2,fma,bmi,bmi2,lzcnt,popcnt")
#endif
#define ZC_ISA_NAME "avx512"
#define ZC_ISA_SYMBOL zc_avx512
#include "kernels/compact_avx512.h"
#include "kernels/blocks_avx512.h"
#include "kernels/planes_avx512.h"
#include "kernels/all.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int zc_no_avx512_here; /* a file must hold something */
#endif
