/* Where there is no code for many values at a time: every function does none of them, and its caller does the rest.
 *
 * Each works from the front, on whole groups, and gives the number of values done; it stops before a group that holds a
 * NaN or an infinity it has no answer for. What lies behind the values done may have been written. */
#include "memory.h"

/* bf16 without NaN; 2 bytes per value. */
static inline size_t bf16_wide(const uint8_t *src, size_t n, uint8_t *dst)
{
    (void)src, (void)n, (void)dst;
    return 0;
}

/* Groups of 8 int8 or int4 blocks of finite values and ranges. */
static inline size_t int8_wide(const f32u *x, size_t n, uint8_t *out)
{
    (void)x, (void)n, (void)out;
    return 0;
}

static inline size_t int4_wide(const f32u *x, size_t n, uint8_t *out)
{
    (void)x, (void)n, (void)out;
    return 0;
}

/* Whole int4 blocks, whatever they hold. */
static inline size_t int4_wide_decode(const uint8_t *src, size_t n, f32u *out)
{
    (void)src, (void)n, (void)out;
    return 0;
}

/* One bit per value, set where it is not 0; groups of 32. */
static inline size_t mask_wide(const uint8_t *src, size_t n, uint8_t *dst)
{
    (void)src, (void)n, (void)dst;
    return 0;
}

/* Adds squares in 16 lanes, which start at 0 and stay so where nothing is done. */
static inline size_t mean_square_wide(const uint8_t *src, size_t n, double *lane)
{
    (void)src, (void)n, (void)lane;
    return 0;
}

/* The lower 7 bits of each byte together, 8 of them in 7; groups of 8, with 8 more values behind them at least. */
static inline size_t squeeze_wide(const uint8_t *middle, size_t n, uint8_t *dst)
{
    (void)middle, (void)n, (void)dst;
    return 0;
}

/* The reverse, with as many behind them. */
static inline size_t unsqueeze_wide(const uint8_t *src, size_t n, uint8_t *middle)
{
    (void)src, (void)n, (void)middle;
    return 0;
}

/* Floats of their exponents, middle bytes and lower halves (NULL: 0). */
static inline size_t merge_wide(const uint8_t *exponents, const uint8_t *middle, const u16u *low, size_t n, u32u *x)
{
    (void)exponents, (void)middle, (void)low, (void)n, (void)x;
    return 0;
}

/* The highest bit of each byte; groups of 64. */
static inline size_t top_bits_wide(const uint8_t *bytes, size_t n, uint64_t *bits)
{
    (void)bytes, (void)n, (void)bits;
    return 0;
}

/* Exponents of symbols, and bits as the highest of the middle bytes: see signs.h. */
static inline size_t put_signs_wide(const uint64_t *bits, unsigned base, size_t n, uint8_t *exponents, uint8_t *middle)
{
    (void)bits, (void)base, (void)n, (void)exponents, (void)middle;
    return 0;
}
