/* Planes of floats taken apart and put together, by AVX2. Contracts: see wide_portable.h. */
#include "memory.h"

#include <immintrin.h>

static inline __m256i plane_load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline __m256i plane_select(__m256i mask, __m256i set, __m256i unset)
{
    return _mm256_or_si256(_mm256_and_si256(mask, set), _mm256_andnot_si256(mask, unset));
}

/* Each step joins two neighbours: 7 bits, 14, 28. */
static size_t squeeze_wide(const uint8_t *middle, size_t n, uint8_t *dst)
{
    const __m256i seven = _mm256_set1_epi8(0x7f);
    const __m256i order = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, -1, -1, 0, 1, 2, 3, 4, 5, 6, 8,
                                           9, 10, 11, 12, 13, 14, -1, -1);
    size_t done = 0;
    for (; done + 64 <= n; done += 32, dst += 28) {
        __m256i v = _mm256_and_si256(plane_load(middle + done), seven);
        v = _mm256_maddubs_epi16(_mm256_set1_epi16((short)0x8001), v);
        v = _mm256_madd_epi16(v, _mm256_set1_epi32(0x40000001));
        v = plane_select(_mm256_set1_epi64x(0x0fffffff), v, _mm256_srli_epi64(v, 4));
        v = _mm256_shuffle_epi8(v, order);
        _mm_storeu_si128((__m128i *)(void *)dst, _mm256_castsi256_si128(v));
        _mm_storeu_si128((__m128i *)(void *)(dst + 14), _mm256_extracti128_si256(v, 1));
    }
    return done;
}

static size_t unsqueeze_wide(const uint8_t *src, size_t n, uint8_t *middle)
{
    const __m256i order = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, -1, 7, 8, 9, 10, 11, 12, 13, -1, 0, 1, 2, 3, 4, 5, 6, -1,
                                           7, 8, 9, 10, 11, 12, 13, -1);
    size_t done = 0;
    for (; done + 64 <= n; done += 32, src += 28) {
        __m128i first = _mm_loadu_si128((const __m128i *)(const void *)src);
        __m128i second = _mm_loadu_si128((const __m128i *)(const void *)(src + 14));
        __m256i v = _mm256_shuffle_epi8(_mm256_set_m128i(second, first), order);
        v = plane_select(_mm256_set1_epi64x(0x0fffffff), v, _mm256_slli_epi64(v, 4));
        v = plane_select(_mm256_set1_epi32(0x3fff), v, _mm256_slli_epi32(v, 2));
        v = plane_select(_mm256_set1_epi16(0x7f), v, _mm256_slli_epi16(v, 1));
        _mm256_storeu_si256((__m256i *)(void *)(middle + done), _mm256_and_si256(v, _mm256_set1_epi8(0x7f)));
    }
    return done;
}

/* 16 floats from their upper and lower halves. */
static inline void put_floats(__m256i high, __m256i low, u32u *x)
{
    __m256i a = _mm256_unpacklo_epi16(low, high);
    __m256i b = _mm256_unpackhi_epi16(low, high);
    _mm256_storeu_si256((__m256i *)(void *)x, _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256((__m256i *)(void *)(x + 8), _mm256_permute2x128_si256(a, b, 0x31));
}

static size_t merge_wide(const uint8_t *exponents, const uint8_t *middle, const u16u *low, size_t n, u32u *x)
{
    const __m256i top = _mm256_set1_epi8((char)0x80);
    size_t done = 0;
    for (; done + 32 <= n; done += 32) {
        __m256i e = _mm256_permute4x64_epi64(plane_load(exponents + done), 0xd8);
        __m256i m = _mm256_permute4x64_epi64(plane_load(middle + done), 0xd8);
        __m256i upper = plane_select(top, m, _mm256_srli_epi16(e, 1));
        __m256i lower = plane_select(top, _mm256_slli_epi16(e, 7), m);
        __m256i a = low == NULL ? _mm256_setzero_si256() : plane_load(low + done);
        __m256i b = low == NULL ? a : plane_load(low + done + 16);
        put_floats(_mm256_unpacklo_epi8(lower, upper), a, x + done);
        put_floats(_mm256_unpackhi_epi8(lower, upper), b, x + done + 16);
    }
    return done;
}

static size_t top_bits_wide(const uint8_t *bytes, size_t n, uint64_t *bits)
{
    size_t done = 0;
    for (; done + 64 <= n; done += 64) {
        uint32_t first = (uint32_t)_mm256_movemask_epi8(plane_load(bytes + done));
        uint32_t second = (uint32_t)_mm256_movemask_epi8(plane_load(bytes + done + 32));
        bits[done / 64] = (uint64_t)second << 32 | first;
    }
    return done;
}

static size_t put_signs_wide(const uint64_t *bits, unsigned base, size_t n, uint8_t *exponents, uint8_t *middle)
{
    const __m256i seven = _mm256_set1_epi8(0x7f);
    const __m256i spread = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201u);
    size_t done = 0;
    for (; done + 32 <= n; done += 32) {
        __m256i here = _mm256_set1_epi32((int)(bits[done / 64] >> (done % 64)));
        here = _mm256_and_si256(_mm256_shuffle_epi8(here, spread), each);
        __m256i m = plane_select(seven, plane_load(middle + done), _mm256_cmpeq_epi8(here, each));
        __m256i e = _mm256_and_si256(plane_load(exponents + done), seven);
        _mm256_storeu_si256((__m256i *)(void *)(middle + done), m);
        _mm256_storeu_si256((__m256i *)(void *)(exponents + done), _mm256_add_epi8(e, _mm256_set1_epi8((char)base)));
    }
    return done;
}
