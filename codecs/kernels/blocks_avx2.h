/* int8 and int4, groups of 8 blocks at a time, by AVX2. Contracts: see wide_portable.h. */
#include "wide_avx2.h"

static inline void wide_widen(const f32u *x, __m256 *low, __m256 *high)
{
    for (size_t i = 0; i < 32; i += 8) {
        __m256 values = wide_floats(x + i);
        *low = _mm256_min_ps(values, *low); /* a NaN on the left changes nothing */
        *high = _mm256_max_ps(values, *high);
    }
}

/* 32 codes, as bytes in each half in turn: 4 of the first 8 values, 4 of the next; a NaN makes *strange negative. */
static inline __m256i wide_codes(const f32u *x, __m256 low, __m256 inverse, __m256i *strange)
{
    __m256i code[4];
    for (size_t i = 0; i < 4; i++) {
        code[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(wide_floats(x + 8 * i), low), inverse));
    }
    __m256i first = _mm256_or_si256(code[0], code[1]);
    *strange = _mm256_or_si256(*strange, _mm256_or_si256(first, _mm256_or_si256(code[2], code[3])));
    return _mm256_packus_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
}

static inline wide_ends wide_ends_of(const f32u *x, size_t block)
{
    wide_ends e;
    for (size_t i = 0; i < 8; i++) {
        e.low[i] = e.high[i] = wide_floats(x + i * block);
        for (size_t j = 0; j < block; j += 32) {
            wide_widen(x + i * block + j, &e.low[i], &e.high[i]);
        }
    }
    return e;
}

/* One group is coded while the next one's ends are sought: the two take different units of the processor. */
static size_t int8_wide(const f32u *x, size_t n, uint8_t *out)
{
    enum { BLOCK = 256, GROUP = 8 * BLOCK };
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    size_t done = 0;
    if (n < GROUP) {
        return 0;
    }
    wide_ends ends = wide_ends_of(x, BLOCK);
    for (; done + GROUP <= n; done += GROUP) {
        wide_scales s = wide_scales_of(&ends, 255.0f, 0);
        const f32u *here = x + done;
        const f32u *next = done + 2 * GROUP <= n ? here + GROUP : here;
        __m256i strange = _mm256_setzero_si256();
        for (size_t i = 0; i < 8; i++, out += 8 + BLOCK) {
            __m256 low = wide_floats(next + i * BLOCK);
            __m256 high = low;
            memcpy(out, &s.low[i], 4);
            memcpy(out + 4, &s.step[i], 4);
            for (size_t j = 0; j < BLOCK; j += 32) {
                size_t at = i * BLOCK + j;
                __m256 least = _mm256_set1_ps(s.low[i]);
                __m256i codes = wide_codes(here + at, least, _mm256_set1_ps(s.inverse[i]), &strange);
                wide_store(out + 8 + j, _mm256_permutevar8x32_epi32(codes, order));
                wide_widen(next + at, &low, &high);
            }
            ends.low[i] = low;
            ends.high[i] = high;
        }
        if (!s.sound || _mm256_movemask_ps(_mm256_castsi256_ps(strange))) {
            break;
        }
    }
    return done;
}

/* Blocks are short here, so the next group's scales are computed meanwhile, and the ends of the one after it sought. */
static size_t int4_wide(const f32u *x, size_t n, uint8_t *out)
{
    enum { BLOCK = 64, GROUP = 8 * BLOCK };
    const __m256i join = _mm256_set1_epi16(0x1001); /* a byte and 16 times the next */
    size_t done = 0;
    if (n < GROUP) {
        return 0;
    }
    wide_ends ends = wide_ends_of(x, BLOCK);
    wide_scales s = wide_scales_of(&ends, 15.0f, 1);
    ends = wide_ends_of(n < 2 * GROUP ? x : x + GROUP, BLOCK);
    for (; done + GROUP <= n; done += GROUP) {
        wide_scales following = wide_scales_of(&ends, 15.0f, 1);
        const f32u *here = x + done;
        const f32u *next = done + 3 * GROUP <= n ? here + 2 * GROUP : here;
        __m256i strange = _mm256_setzero_si256();
        for (size_t i = 0; i < 8; i++, out += 4 + BLOCK / 2) {
            __m256 least = _mm256_set1_ps(s.low[i]);
            __m256 inverse = _mm256_set1_ps(s.inverse[i]);
            __m256i a = wide_codes(here + i * BLOCK, least, inverse, &strange);
            __m256i b = wide_codes(here + i * BLOCK + 32, least, inverse, &strange);
            a = _mm256_packus_epi16(_mm256_maddubs_epi16(a, join), _mm256_maddubs_epi16(b, join));
            __m128i first = _mm256_castsi256_si128(a);
            __m128i second = _mm256_extracti128_si256(a, 1);
            memcpy(out, (const uint8_t *)&s.low[i] + 2, 2);
            memcpy(out + 2, (const uint8_t *)&s.step[i] + 2, 2);
            _mm_storeu_si128((__m128i *)(void *)(out + 4), _mm_unpacklo_epi16(first, second));
            _mm_storeu_si128((__m128i *)(void *)(out + 20), _mm_unpackhi_epi16(first, second));
            ends.low[i] = ends.high[i] = wide_floats(next + i * BLOCK);
            wide_widen(next + i * BLOCK, &ends.low[i], &ends.high[i]);
            wide_widen(next + i * BLOCK + 32, &ends.low[i], &ends.high[i]);
        }
        if (!s.sound || _mm256_movemask_ps(_mm256_castsi256_ps(strange))) {
            break;
        }
        s = following;
    }
    return done;
}
