/* bf16: the upper half of a float32, rounded to nearest, ties to even; a NaN stays a (quiet) NaN. */
#include "memory.h"

static inline uint32_t bf16_round(uint32_t bits)
{
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1);
    uint32_t quiet = bits | 0x400000u;
    return ((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) & 0xffff0000u;
}

static size_t bf16_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    const u32u *restrict values = (const u32u *)(const void *)src;
    u16u *restrict out = (u16u *)(void *)dst;
    (void)step;
    for (size_t i = 0, stop; i < n;) {
        i += bf16_wide(src + 4 * i, n - i, dst + 2 * i);
        stop = i + zc_min(n - i, ZC_TILE);
        for (; i < stop; i++) {
            out[i] = (uint16_t)(bf16_round(values[i]) >> 16);
        }
    }
    return 2 * n;
}

static int bf16_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    const u16u *restrict values = (const u16u *)(const void *)src;
    u32u *restrict out = (u32u *)(void *)dst;
    if (size != 2 * n) {
        return size < 2 * n ? ZC_TRUNCATED : ZC_TRAILING;
    }
    for (size_t i = 0; i < n; i++) {
        out[i] = (uint32_t)values[i] << 16;
    }
    return ZC_OK;
}
