/* int8 and int4, groups of 8 blocks at a time, by AVX-512. Contracts: see wide_portable.h. */
#include "wide_avx2.h"

static inline void zmm_widen(const f32u *x, __m512 *low, __m512 *high)
{
    for (size_t i = 0; i < 64; i += 16) {
        __m512 values = _mm512_loadu_ps(x + i);
        *low = _mm512_min_ps(values, *low); /* a NaN on the left changes nothing */
        *high = _mm512_max_ps(values, *high);
    }
}

static inline void zmm_keep(wide_ends *e, size_t i, __m512 low, __m512 high)
{
    e->low[i] = _mm256_min_ps(_mm512_castps512_ps256(low), _mm512_extractf32x8_ps(low, 1));
    e->high[i] = _mm256_max_ps(_mm512_castps512_ps256(high), _mm512_extractf32x8_ps(high, 1));
}

static inline wide_ends zmm_ends_of(const f32u *x, size_t block)
{
    wide_ends e;
    for (size_t i = 0; i < 8; i++) {
        __m512 low = _mm512_loadu_ps(x + i * block);
        __m512 high = low;
        for (size_t j = 0; j < block; j += 64) {
            zmm_widen(x + i * block + j, &low, &high);
        }
        zmm_keep(&e, i, low, high);
    }
    return e;
}

/* The same of 64 values; what a NaN does to them is no matter, as its code will tell. */
static inline void zmm_block64(wide_ends *e, size_t i, const f32u *x)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    __m512 c = _mm512_loadu_ps(x + 32), d = _mm512_loadu_ps(x + 48);
    zmm_keep(e, i, _mm512_min_ps(_mm512_min_ps(a, b), _mm512_min_ps(c, d)),
             _mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
}

/* 64 codes as 16 bits each, 4 of the first 16 values and 4 of the next in each quarter; a NaN makes *strange
 * negative. */
static inline void zmm_codes(const f32u *x, __m512 low, __m512 inverse, __m512i pair[2], __m512i *strange)
{
    __m512i code[4];
    for (size_t i = 0; i < 4; i++) {
        code[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(x + 16 * i), low), inverse));
    }
    pair[0] = _mm512_packs_epi32(code[0], code[1]);
    pair[1] = _mm512_packs_epi32(code[2], code[3]);
    *strange = _mm512_ternarylogic_epi64(*strange, pair[0], pair[1], 0xfe);
}

/* Where the bytes of 64 values (or of 32 pairs of them) stand, in the order of the values. */
static inline __m512i zmm_order(size_t together)
{
    uint8_t place[64] = {0};
    for (size_t i = 0; i < 64 / together; i++) {
        size_t value = i * together;
        size_t quarter = value % 16 / 4;
        place[i] = (uint8_t)(value / 32 * 64 + quarter * 16 + value % 32 / 16 * 8 + value % 4 * 2);
    }
    return _mm512_loadu_si512(place);
}

/* One group is coded while the next one's ends are sought: the two take different units of the processor. */
static size_t int8_wide(const f32u *x, size_t n, uint8_t *out)
{
    enum { BLOCK = 256, GROUP = 8 * BLOCK };
    const __m512i order = zmm_order(1);
    size_t done = 0;
    if (n < GROUP) {
        return 0;
    }
    wide_ends ends = zmm_ends_of(x, BLOCK);
    for (; done + GROUP <= n; done += GROUP) {
        wide_scales s = wide_scales_of(&ends, 255.0f, 0);
        const f32u *here = x + done;
        const f32u *next = done + 2 * GROUP <= n ? here + GROUP : here;
        __m512i strange = _mm512_setzero_si512();
        for (size_t i = 0; i < 8; i++, out += 8 + BLOCK) {
            __m512 least = _mm512_set1_ps(s.low[i]);
            __m512 inverse = _mm512_set1_ps(s.inverse[i]);
            __m512 low = _mm512_loadu_ps(next + i * BLOCK);
            __m512 high = low;
            memcpy(out, &s.low[i], 4);
            memcpy(out + 4, &s.step[i], 4);
            for (size_t j = 0; j < BLOCK; j += 64) {
                __m512i pair[2];
                zmm_codes(here + i * BLOCK + j, least, inverse, pair, &strange);
                _mm512_storeu_si512(out + 8 + j, _mm512_permutex2var_epi8(pair[0], order, pair[1]));
                zmm_widen(next + i * BLOCK + j, &low, &high);
            }
            zmm_keep(&ends, i, low, high);
        }
        if (!s.sound || _mm512_movepi16_mask(strange)) {
            break;
        }
    }
    return done;
}

/* Blocks are short here, so the next group's scales are computed meanwhile, and the ends of the one after it sought. */
static size_t int4_wide(const f32u *x, size_t n, uint8_t *out)
{
    enum { BLOCK = 64, GROUP = 8 * BLOCK };
    const __m512i order = zmm_order(2);
    const __m512i join = _mm512_set1_epi32(0x100001); /* a value and 16 times the next */
    size_t done = 0;
    if (n < GROUP) {
        return 0;
    }
    wide_ends ends = zmm_ends_of(x, BLOCK);
    wide_scales s = wide_scales_of(&ends, 15.0f, 1);
    ends = zmm_ends_of(n < 2 * GROUP ? x : x + GROUP, BLOCK);
    for (; done + GROUP <= n; done += GROUP) {
        wide_scales following = wide_scales_of(&ends, 15.0f, 1);
        const f32u *here = x + done;
        uint32_t heads[8];
        for (size_t i = 0; i < 8; i++) {
            heads[i] = zc_bits_of(s.low[i]) >> 16 | zc_bits_of(s.step[i]);
        }
        const f32u *next = done + 3 * GROUP <= n ? here + 2 * GROUP : here;
        __m512i strange = _mm512_setzero_si512();
        for (size_t i = 0; i < 8; i++, out += 4 + BLOCK / 2) {
            __m512i pair[2];
            zmm_codes(here + i * BLOCK, _mm512_set1_ps(s.low[i]), _mm512_set1_ps(s.inverse[i]), pair, &strange);
            pair[0] = _mm512_madd_epi16(pair[0], join);
            pair[1] = _mm512_madd_epi16(pair[1], join);
            *(u32u *)(void *)out = heads[i];
            wide_store(out + 4, _mm512_castsi512_si256(_mm512_permutex2var_epi8(pair[0], order, pair[1])));
            zmm_block64(&ends, i, next + i * BLOCK);
        }
        if (!s.sound || _mm512_movepi16_mask(strange)) {
            break;
        }
        s = following;
    }
    return done;
}
