/* int8 and int4 blocks by AVX2 and FMA. Contracts: see groups.h and wide_portable.h. */
#include <immintrin.h>

typedef __m256i wide_seen;
#include "groups.h"

/* What a NaN does to the ends is no matter, as its code will tell. */
static inline void ymm_widen(const f32u *x, __m256 *low, __m256 *high)
{
    __m256 a = wide_floats(x), b = wide_floats(x + 8), c = wide_floats(x + 16), d = wide_floats(x + 24);
    *low = _mm256_min_ps(*low, _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d)));
    *high = _mm256_max_ps(*high, _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d)));
}

static inline void ymm_seek(wide_ends *e, size_t i, const f32u *x, size_t block)
{
    e->low[i] = e->high[i] = wide_floats(x);
    for (size_t j = 0; j < block; j += 32) {
        ymm_widen(x + j, &e->low[i], &e->high[i]);
    }
}

static inline void ymm_seek64(wide_ends *e, size_t i, const f32u *x)
{
    ymm_seek(e, i, x, 64);
}

static inline void ymm_seek256(wide_ends *e, size_t i, const f32u *x)
{
    ymm_seek(e, i, x, 256);
}

/* Codes in the lowest bits, as in quantise(). Only a NaN has bit 26 set, also moved up by 4, as results are quiet. */
static inline __m256i ymm_codes(const f32u *x, __m256 low, __m256 inverse)
{
    __m256 above = _mm256_sub_ps(wide_floats(x), low);
    return _mm256_castps_si256(_mm256_fmadd_ps(above, inverse, _mm256_set1_ps(0x1p23f)));
}

static inline int ymm_strange(wide_seen seen)
{
    return _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32(seen, 5))) != 0;
}

/* Writes the lowest bytes of 4 times 8 integers. */
static inline void ymm_put(const __m256i of[4], uint8_t *out, wide_seen *seen)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i byte[4];
    for (size_t i = 0; i < 4; i++) {
        *seen = _mm256_or_si256(*seen, of[i]);
        byte[i] = _mm256_and_si256(of[i], _mm256_set1_epi32(255));
    }
    __m256i all = _mm256_packus_epi16(_mm256_packs_epi32(byte[0], byte[1]), _mm256_packs_epi32(byte[2], byte[3]));
    wide_store(out, _mm256_permutevar8x32_epi32(all, order));
}

static inline void ymm_code8(const f32u *x, const wide_scales *s, size_t i, uint8_t *out, wide_seen *seen,
                             wide_ends *e, const f32u *later)
{
    __m256 least = wide_floats(later), most = least;
    __m256 low = _mm256_set1_ps(s->low[i]);
    __m256 inverse = _mm256_set1_ps(s->inverse[i]);
    memcpy(out, &s->low[i], 4);
    memcpy(out + 4, &s->step[i], 4);
    for (size_t j = 0; j < 256; j += 32) {
        __m256i code[4];
        for (size_t k = 0; k < 4; k++) {
            code[k] = ymm_codes(x + j + 8 * k, low, inverse);
        }
        ymm_put(code, out + 8 + j, seen);
        ymm_widen(later + j, &least, &most);
    }
    e->low[i] = least;
    e->high[i] = most;
}

static inline void ymm_code4(const f32u *x, const wide_scales *s, size_t i, uint8_t *out, wide_seen *seen,
                             wide_ends *e, const f32u *later)
{
    __m256 low = _mm256_set1_ps(s->low[i]);
    __m256 inverse = _mm256_set1_ps(s->inverse[i]);
    __m256i pair[4];
    for (size_t k = 0; k < 4; k++) {
        __m256i second = _mm256_slli_epi32(ymm_codes(x + 32 + 8 * k, low, inverse), 4);
        pair[k] = _mm256_or_si256(ymm_codes(x + 8 * k, low, inverse), second);
    }
    memcpy(out, &s->halves[i], 4);
    ymm_put(pair, out + 4, seen);
    ymm_seek64(e, i, later);
}

static size_t int8_wide(const f32u *x, size_t n, uint8_t *out)
{
    static const wide_kind kind = {256, 264, 1, 255.0f, 0, ymm_seek256, ymm_code8, ymm_strange};
    return groups_wide(x, n, out, &kind);
}

static size_t int4_wide(const f32u *x, size_t n, uint8_t *out)
{
    static const wide_kind kind = {64, 36, 2, 15.0f, 1, ymm_seek64, ymm_code4, ymm_strange};
    return groups_wide(x, n, out, &kind);
}
