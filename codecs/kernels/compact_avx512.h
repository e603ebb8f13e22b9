/* Moves the non-zero values of a run together, and apart again: AVX-512 has instructions for it. They stay in
 * registers, since some processors take very long where memory is their operand. Contracts: see the portable twin. */
#include "../codecs.h"
#include "memory.h"

#include <immintrin.h>

/* Keeps the compiler from making memory the operand. */
static inline __m512i in_register(__m512i values)
{
    __asm__("" : "+v"(values));
    return values;
}

static inline __m256i lanes_of(const uint8_t *shuffle)
{
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)shuffle));
}

/* 16 values together, or apart, by shuffles instead: the instructions made for it take a unit of the processor for
 * long, so one step in four leaves them out. Both give the number of values. */
static inline size_t shuffle_together(__m512i values, unsigned bits, u32u *out)
{
    __m256i low = _mm512_castsi512_si256(values);
    __m256i high = _mm512_extracti64x4_epi64(values, 1);
    size_t first = (size_t)_mm_popcnt_u32(bits & 0xff);
    low = _mm256_permutevar8x32_epi32(low, lanes_of(zc_shuffle.pack[bits & 0xff]));
    high = _mm256_permutevar8x32_epi32(high, lanes_of(zc_shuffle.pack[bits >> 8]));
    _mm256_storeu_si256((__m256i *)(void *)out, low);
    _mm256_storeu_si256((__m256i *)(void *)(out + first), high);
    return (size_t)_mm_popcnt_u32(bits);
}

static inline size_t shuffle_apart(const u32u *packed, unsigned bits, u32u *dst)
{
    size_t first = (size_t)_mm_popcnt_u32(bits & 0xff);
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)packed);
    __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(packed + first));
    low = _mm256_maskz_permutexvar_epi32((__mmask8)bits, lanes_of(zc_shuffle.unpack[bits & 0xff]), low);
    high = _mm256_maskz_permutexvar_epi32((__mmask8)(bits >> 8), lanes_of(zc_shuffle.unpack[bits >> 8]), high);
    _mm256_storeu_si256((__m256i *)(void *)dst, low);
    _mm256_storeu_si256((__m256i *)(void *)(dst + 8), high);
    return (size_t)_mm_popcnt_u32(bits);
}

static inline size_t put_together(__m512i values, __mmask16 set, u32u *out)
{
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(set, values));
    return (size_t)_mm_popcnt_u32(set);
}

static inline size_t put_apart(const u32u *packed, __mmask16 set, u32u *dst)
{
    _mm512_storeu_si512(dst, _mm512_maskz_expand_epi32(set, in_register(_mm512_loadu_si512(packed))));
    return (size_t)_mm_popcnt_u32(set);
}

static size_t compact32(const u32u *restrict src, size_t n, uint8_t *restrict map, u32u *restrict out)
{
    size_t count = 0;
    size_t base = 0;
    for (; base + 64 <= n; base += 64) {
        uint64_t bits = 0;
        for (size_t i = 0; i < 64; i += 16) {
            __m512i values = _mm512_loadu_si512(src + base + i);
            __mmask16 set = _mm512_test_epi32_mask(values, values);
            count += i == 48 ? shuffle_together(values, set, out + count) : put_together(values, set, out + count);
            bits |= (uint64_t)set << i;
        }
        memcpy(map + base / 8, &bits, sizeof bits);
    }
    for (; base + 16 <= n; base += 16) {
        __m512i values = _mm512_loadu_si512(src + base);
        __mmask16 set = _mm512_test_epi32_mask(values, values);
        uint16_t bits = (uint16_t)set;
        count += put_together(values, set, out + count);
        memcpy(map + base / 8, &bits, sizeof bits);
    }
    if (base < n) {
        __mmask16 here = (__mmask16)((1u << (n - base)) - 1);
        __m512i values = _mm512_maskz_loadu_epi32(here, src + base);
        __mmask16 set = _mm512_test_epi32_mask(values, values);
        uint16_t bits = (uint16_t)set;
        _mm512_mask_storeu_epi32(out + count, here, _mm512_maskz_compress_epi32(set, values));
        count += (size_t)_mm_popcnt_u32(bits);
        memcpy(map + base / 8, &bits, (n - base + 7) / 8);
    }
    return count;
}

static size_t compact8(const uint8_t *restrict src, size_t n, uint8_t *restrict map, uint8_t *restrict out)
{
    size_t count = 0;
    for (size_t base = 0; base < n; base += 64) {
        size_t here = zc_min(n - base, 64);
        __mmask64 inside = ~(uint64_t)0 >> (64 - here);
        __m512i values = _mm512_maskz_loadu_epi8(inside, src + base);
        uint64_t bits = _mm512_test_epi8_mask(values, values);
        _mm512_mask_storeu_epi8(out + count, inside, _mm512_maskz_compress_epi8(bits, values));
        memcpy(map + base / 8, &bits, (here + 7) / 8);
        count += (size_t)_mm_popcnt_u64(bits);
    }
    return count;
}

static size_t gather32(const u32u *restrict src, const uint8_t *restrict map, size_t groups, u32u *restrict out)
{
    size_t count = 0;
    for (size_t i = 0; i < groups; i += 2) {
        size_t here = zc_min(groups - i, 2);
        uint16_t bits = map[i];
        bits = (uint16_t)(here == 2 ? bits | map[i + 1] << 8 : bits);
        __m512i values = _mm512_maskz_loadu_epi32((__mmask16)(0xffffu >> (16 - 8 * here)), src + 8 * i);
        _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(bits, values));
        count += (size_t)_mm_popcnt_u32(bits);
    }
    return count;
}

static size_t expand32(const u32u *restrict packed, const uint8_t *restrict map, size_t groups, u32u *restrict dst)
{
    size_t taken = 0;
    size_t i = 0;
    for (; i + 8 <= groups; i += 8) {
        uint64_t bits = zc_load64(map + i);
        taken += put_apart(packed + taken, (__mmask16)bits, dst + 8 * i);
        taken += put_apart(packed + taken, (__mmask16)(bits >> 16), dst + 8 * i + 16);
        taken += put_apart(packed + taken, (__mmask16)(bits >> 32), dst + 8 * i + 32);
        taken += shuffle_apart(packed + taken, (unsigned)(bits >> 48), dst + 8 * i + 48);
    }
    for (; i + 2 <= groups; i += 2) {
        uint16_t bits;
        memcpy(&bits, map + i, sizeof bits);
        taken += put_apart(packed + taken, bits, dst + 8 * i);
    }
    if (i < groups) {
        __m512i values = _mm512_maskz_expand_epi32(map[i], in_register(_mm512_loadu_si512(packed + taken)));
        _mm512_mask_storeu_epi32(dst + 8 * i, 0xff, values);
        taken += (size_t)_mm_popcnt_u32(map[i]);
    }
    return taken;
}

static size_t expand8(const uint8_t *restrict packed, const uint8_t *restrict map, size_t groups, uint8_t *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i += 8) {
        size_t here = zc_min(groups - i, 8);
        uint64_t bits = 0;
        memcpy(&bits, map + i, here);
        __m512i values = _mm512_maskz_expand_epi8(bits, in_register(_mm512_loadu_si512(packed + taken)));
        _mm512_mask_storeu_epi8(dst + 8 * i, ~(uint64_t)0 >> (64 - 8 * here), values);
        taken += (size_t)_mm_popcnt_u64(bits);
    }
    return taken;
}
