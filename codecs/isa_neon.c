/* The same kernels for aarch64, with compaction and expansion by NEON table look-ups. */
#if defined(__aarch64__)
#define ZC_ISA_NAME "neon"
#define ZC_ISA_SYMBOL zc_neon
#include "kernels/compact_neon.h"
#include "kernels/wide_portable.h"
#include "kernels/all.h"
#else
typedef int zc_no_neon_here; /* a file must hold something */
#endif
