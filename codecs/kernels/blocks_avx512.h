/* int8 and int4 blocks by AVX-512. Contracts: see groups.h and wide_portable.h. */
#include <immintrin.h>

typedef __m512i wide_seen;
#include "groups.h"

static inline void zmm_keep(wide_ends *e, size_t i, __m512 low, __m512 high)
{
    e->low[i] = _mm256_min_ps(_mm512_castps512_ps256(low), _mm512_extractf32x8_ps(low, 1));
    e->high[i] = _mm256_max_ps(_mm512_castps512_ps256(high), _mm512_extractf32x8_ps(high, 1));
}

/* What a NaN does to the ends is no matter, as its code will tell. */
static inline void zmm_seek64(wide_ends *e, size_t i, const f32u *x)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    __m512 c = _mm512_loadu_ps(x + 32), d = _mm512_loadu_ps(x + 48);
    zmm_keep(e, i, _mm512_min_ps(_mm512_min_ps(a, b), _mm512_min_ps(c, d)),
             _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
}

static inline void zmm_widen(const f32u *x, __m512 *low, __m512 *high)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    *low = _mm512_min_ps(*low, _mm512_min_ps(a, b));
    *high = _mm512_max_ps(*high, _mm512_max_ps(a, b));
}

static inline void zmm_seek256(wide_ends *e, size_t i, const f32u *x)
{
    __m512 low = _mm512_loadu_ps(x), high = low;
    for (size_t j = 0; j < 256; j += 32) {
        zmm_widen(x + j, &low, &high);
    }
    zmm_keep(e, i, low, high);
}

/* Codes in the lowest bits, as in quantise(). Only a NaN has bit 26 set, also moved up by 4, as results are quiet. */
static inline __m512i zmm_codes(const f32u *x, __m512 low, __m512 inverse)
{
    __m512 above = _mm512_sub_ps(_mm512_loadu_ps(x), low);
    return _mm512_castps_si512(_mm512_fmadd_ps(above, inverse, _mm512_set1_ps(0x1p23f)));
}

static inline int zmm_strange(wide_seen seen)
{
    return _mm512_test_epi32_mask(seen, _mm512_set1_epi32(1 << 26)) != 0;
}

/* The lowest bytes of 16 integers, and of 16 more. */
static inline __m512i zmm_lowest(void)
{
    uint8_t place[64] = {0};
    for (size_t i = 0; i < 32; i++) {
        place[i] = (uint8_t)(4 * i);
    }
    return _mm512_loadu_si512(place);
}

static inline void zmm_code8(const f32u *x, const wide_scales *s, size_t i, uint8_t *out, wide_seen *seen,
                             wide_ends *e, const f32u *later)
{
    __m512 least = _mm512_loadu_ps(later), most = least;
    const __m512i lowest = zmm_lowest();
    __m512 low = _mm512_set1_ps(s->low[i]);
    __m512 inverse = _mm512_set1_ps(s->inverse[i]);
    memcpy(out, &s->low[i], 4);
    memcpy(out + 4, &s->step[i], 4);
#pragma GCC unroll 2
    for (size_t j = 0; j < 256; j += 32) {
        __m512i a = zmm_codes(x + j, low, inverse), b = zmm_codes(x + j + 16, low, inverse);
        *seen = _mm512_ternarylogic_epi64(*seen, a, b, 0xfe);
        wide_store(out + 8 + j, _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, lowest, b)));
        zmm_widen(later + j, &least, &most);
    }
    zmm_keep(e, i, least, most);
}

static inline void zmm_code4(const f32u *x, const wide_scales *s, size_t i, uint8_t *out, wide_seen *seen,
                             wide_ends *e, const f32u *later)
{
    const __m512i lowest = zmm_lowest();
    __m512 low = _mm512_set1_ps(s->low[i]);
    __m512 inverse = _mm512_set1_ps(s->inverse[i]);
    __m512i a = zmm_codes(x, low, inverse), b = zmm_codes(x + 16, low, inverse);
    a = _mm512_or_si512(a, _mm512_slli_epi32(zmm_codes(x + 32, low, inverse), 4));
    b = _mm512_or_si512(b, _mm512_slli_epi32(zmm_codes(x + 48, low, inverse), 4));
    *seen = _mm512_ternarylogic_epi64(*seen, a, b, 0xfe);
    memcpy(out, &s->halves[i], 4);
    wide_store(out + 4, _mm512_castsi512_si256(_mm512_permutex2var_epi8(a, lowest, b)));
    zmm_seek64(e, i, later);
}

static size_t int8_wide(const f32u *x, size_t n, uint8_t *out)
{
    static const wide_kind kind = {256, 264, 1, 255.0f, 0, zmm_seek256, zmm_code8, zmm_strange};
    return groups_wide(x, n, out, &kind);
}

static size_t int4_wide(const f32u *x, size_t n, uint8_t *out)
{
    static const wide_kind kind = {64, 36, 2, 15.0f, 1, zmm_seek64, zmm_code4, zmm_strange};
    return groups_wide(x, n, out, &kind);
}
