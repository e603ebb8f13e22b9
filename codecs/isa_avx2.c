/* The same kernels built for AVX2, FMA and BMI2, with compaction and expansion by shuffles. */
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt")
#endif
#define ZC_ISA_NAME "avx2"
#define ZC_ISA_SYMBOL zc_avx2
#include "kernels/compact_avx2.h"
#include "kernels/blocks_avx2.h"
#include "kernels/planes_avx2.h"
#include "kernels/all.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int zc_no_avx2_here; /* a file must hold something */
#endif
