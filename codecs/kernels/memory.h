/* Types and loads that may be unaligned, and the sizes that every kernel shares. */
#ifndef ZMPSL_MEMORY_H
#define ZMPSL_MEMORY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels are written for little-endian machines; others use the NumPy twins"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF /* as -ffp-contract=off: a fused multiply-add would round differently */
#endif

/* Values coded together, with tables of their own: the tables cost less than 0.01 bit per value. */
#define ZC_BLOCK 65536u
/* Values that pass through the first-level cache at a time; a multiple of 32. */
#define ZC_TILE 2048u
/* Values, and bytes, that may be read or written beyond the packed ones. */
#define ZC_BEYOND 16u
#define ZC_BYTES_BEYOND 64u

/* The compiler may vectorise through these, yet assumes neither alignment nor that nothing else points there. */
typedef uint16_t u16u __attribute__((aligned(1), may_alias));
typedef uint32_t u32u __attribute__((aligned(1), may_alias));
typedef float f32u __attribute__((aligned(1), may_alias));

static inline uint64_t zc_load64(const uint8_t *p)
{
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline void zc_store64(uint8_t *p, uint64_t value)
{
    memcpy(p, &value, sizeof value);
}

static inline uint32_t zc_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float zc_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline size_t zc_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline size_t zc_popcount(const uint8_t *bytes, size_t size)
{
    size_t count = 0;
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        count += (size_t)__builtin_popcountll(zc_load64(bytes + i));
    }
    for (; i < size; i++) {
        count += (size_t)__builtin_popcount(bytes[i]);
    }
    return count;
}

/* Number of bits set among the first n; -1 where a bit beyond them is set. */
static inline ptrdiff_t zc_count_mask(const uint8_t *mask, size_t n)
{
    if (n % 8 != 0 && mask[n / 8] >> (n % 8) != 0) {
        return -1;
    }
    return (ptrdiff_t)zc_popcount(mask, (n + 7) / 8);
}

#endif
