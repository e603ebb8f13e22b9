/* The kernels as plain C: what every machine can run; compilers vectorise most of it (SSE2, aarch64 NEON). */
#define ZC_ISA_NAME "portable"
#define ZC_ISA_SYMBOL zc_portable
#include "kernels/compact_portable.h"
#include "kernels/wide_portable.h"
#include "kernels/all.h"
