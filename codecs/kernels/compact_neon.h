/* Moves the non-zero values of a run together, and apart again: NEON look-ups by table. Contracts: see the portable
 * twin. */
#include "../codecs.h"
#include "memory.h"

#include <arm_neon.h>

static inline uint8x16_t load_values(const void *p)
{
    return vld1q_u8((const uint8_t *)p);
}

static inline unsigned nonzero_mask4(uint8x16_t values)
{
    static const uint32_t weight[4] = {1, 2, 4, 8};
    uint32x4_t wide = vreinterpretq_u32_u8(values);
    return vaddvq_u32(vandq_u32(vtstq_u32(wide, wide), vld1q_u32(weight)));
}

/* Stores 4 values, of which those in the mask stand in front. */
static inline size_t pack4(uint8x16_t values, unsigned bits, void *out)
{
    vst1q_u8((uint8_t *)out, vqtbl1q_u8(values, vld1q_u8(zc_shuffle.pack4[bits])));
    return (size_t)__builtin_popcount(bits);
}

static size_t compact32(const u32u *restrict src, size_t n, uint8_t *restrict map, u32u *restrict out)
{
    size_t count = 0;
    size_t base = 0;
    for (; base + 8 <= n; base += 8) {
        uint8x16_t first = load_values(src + base);
        uint8x16_t second = load_values(src + base + 4);
        unsigned low = nonzero_mask4(first);
        unsigned high = nonzero_mask4(second);
        count += pack4(first, low, out + count);
        count += pack4(second, high, out + count);
        map[base / 8] = (uint8_t)(low | high << 4);
    }
    if (base < n) {
        unsigned bits = 0;
        for (size_t j = 0; base + j < n; j++) {
            unsigned set = src[base + j] != 0;
            out[count] = src[base + j];
            count += set;
            bits |= set << j;
        }
        map[base / 8] = (uint8_t)bits;
    }
    return count;
}

static size_t compact8(const uint8_t *restrict src, size_t n, uint8_t *restrict map, uint8_t *restrict out)
{
    static const uint8_t weight[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    size_t count = 0;
    for (size_t base = 0; base < n; base += 8) {
        uint8_t last[8] = {0};
        const uint8_t *from = src + base;
        if (n - base < 8) {
            memcpy(last, from, n - base);
            from = last;
        }
        uint8x8_t values = vld1_u8(from);
        unsigned bits = vaddv_u8(vand_u8(vtst_u8(values, values), vld1_u8(weight)));
        vst1_u8(out + count, vtbl1_u8(values, vld1_u8(zc_shuffle.pack[bits])));
        count += (size_t)__builtin_popcount(bits);
        map[base / 8] = (uint8_t)bits;
    }
    return count;
}

static size_t gather32(const u32u *restrict src, const uint8_t *restrict map, size_t groups, u32u *restrict out)
{
    size_t count = 0;
    for (size_t i = 0; i < groups; i++) {
        count += pack4(load_values(src + 8 * i), map[i] & 15, out + count);
        count += pack4(load_values(src + 8 * i + 4), map[i] >> 4, out + count);
    }
    return count;
}

static inline size_t unpack4(const void *packed, unsigned bits, void *out)
{
    vst1q_u8((uint8_t *)out, vqtbl1q_u8(load_values(packed), vld1q_u8(zc_shuffle.unpack4[bits])));
    return (size_t)__builtin_popcount(bits);
}

static size_t expand32(const u32u *restrict packed, const uint8_t *restrict map, size_t groups, u32u *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        taken += unpack4(packed + taken, map[i] & 15, dst + 8 * i);
        taken += unpack4(packed + taken, map[i] >> 4, dst + 8 * i + 4);
    }
    return taken;
}

static size_t expand8(const uint8_t *restrict packed, const uint8_t *restrict map, size_t groups, uint8_t *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        vst1_u8(dst + 8 * i, vtbl1_u8(vld1_u8(packed + taken), vld1_u8(zc_shuffle.unpack[map[i]])));
        taken += (size_t)__builtin_popcount(map[i]);
    }
    return taken;
}
