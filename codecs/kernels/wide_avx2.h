/* Values, blocks and sums many at a time, by AVX2, where compilers find no such code. Contracts: see the portable twin.
 *
 * Nothing here looks for NaN or infinities value by value: what they leave in a group's result shows that one was there,
 * and the group is left to the caller. */
#include "memory.h"

#include <immintrin.h>

static inline __m256i wide_load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline __m256 wide_floats(const f32u *x)
{
    return _mm256_castsi256_ps(wide_load(x));
}

static inline void wide_store(void *p, __m256i values)
{
    _mm256_storeu_si256((__m256i *)p, values);
}

static inline __m256i bf16_upper(__m256i bits)
{
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
}

static size_t bf16_wide(const uint8_t *src, size_t n, uint8_t *dst)
{
    size_t done = 0;
    for (; done + 64 <= n; done += 64) {
        __m256 strange = _mm256_setzero_ps();
        for (size_t i = done; i < done + 64; i += 16) {
            __m256i a = wide_load(src + 4 * i);
            __m256i b = wide_load(src + 4 * i + 32);
            __m256 nan = _mm256_cmp_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), _CMP_UNORD_Q);
            strange = _mm256_or_ps(strange, nan);
            __m256i packed = _mm256_packus_epi32(bf16_upper(a), bf16_upper(b));
            wide_store(dst + 2 * i, _mm256_permute4x64_epi64(packed, 0xd8));
        }
        if (_mm256_movemask_ps(strange)) {
            break;
        }
    }
    return done;
}

/* Least and greatest of 8 blocks, spread over 8 lanes each; and what the blocks are coded with. */
typedef struct wide_ends {
    __m256 low[8];
    __m256 high[8];
} wide_ends;

typedef struct wide_scales {
    float low[8];
    float step[8];
    float inverse[8];
    int sound;
} wide_scales;

/* Rows to columns, joined by OP: lane i of the result is that of all lanes of m[i]. */
#define REDUCE(OP, m)                                                                                                  \
    do {                                                                                                               \
        __m256 pair[4];                                                                                                \
        for (size_t i = 0; i < 4; i++) {                                                                               \
            pair[i] = OP(_mm256_unpacklo_ps((m)[2 * i], (m)[2 * i + 1]),                                               \
                         _mm256_unpackhi_ps((m)[2 * i], (m)[2 * i + 1]));                                              \
        }                                                                                                              \
        for (size_t i = 0; i < 4; i += 2) {                                                                            \
            pair[i] = OP(_mm256_shuffle_ps(pair[i], pair[i + 1], 0x44), _mm256_shuffle_ps(pair[i], pair[i + 1], 0xee)); \
        }                                                                                                              \
        (m)[0] = OP(_mm256_permute2f128_ps(pair[0], pair[2], 0x20), _mm256_permute2f128_ps(pair[0], pair[2], 0x31));   \
        /* adding 0 turns -0 into 0 */                                                                                 \
        (m)[0] = _mm256_add_ps((m)[0], _mm256_setzero_ps());                                                           \
    } while (0)

/* The next bf16 away from 0, for values with the sign `away` (all ones: negative ones) or 0. */
static inline __m256 wide_bf16_away(__m256 values, __m256i away)
{
    __m256i bits = _mm256_castps_si256(values);
    bits = _mm256_add_epi32(bits, _mm256_and_si256(away, _mm256_set1_epi32(0xffff)));
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000u)));
}

static wide_scales wide_scales_of(wide_ends *e, float levels, int half)
{
    wide_scales s;
    REDUCE(_mm256_min_ps, e->low);
    REDUCE(_mm256_max_ps, e->high);
    __m256 low = e->low[0];
    if (half) {
        low = wide_bf16_away(low, _mm256_srai_epi32(_mm256_castps_si256(low), 31));
    }
    __m256 width = _mm256_sub_ps(e->high[0], low);
    __m256 step = _mm256_div_ps(width, _mm256_set1_ps(levels));
    if (half) {
        step = wide_bf16_away(step, _mm256_set1_epi32(-1));
    }
    __m256 normal = _mm256_cmp_ps(step, _mm256_set1_ps(0x1p-126f), _CMP_GE_OQ);
    _mm256_storeu_ps(s.low, low);
    _mm256_storeu_ps(s.step, _mm256_and_ps(step, normal));
    _mm256_storeu_ps(s.inverse, _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1), step), normal));
    __m256 fits = _mm256_cmp_ps(width, _mm256_set1_ps(0x1.fffffep127f), _CMP_LE_OQ);
    __m256 rises = _mm256_cmp_ps(width, _mm256_setzero_ps(), _CMP_GE_OQ);
    s.sound = _mm256_movemask_ps(_mm256_and_ps(fits, rises)) == 0xff;
    return s;
}

static size_t int4_wide_decode(const uint8_t *src, size_t n, f32u *out)
{
    const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    size_t done = 0;
    for (; done + 64 <= n; done += 64, src += 36) {
        const u16u *scales = (const u16u *)(const void *)src;
        const u32u *codes = (const u32u *)(const void *)(src + 4);
        __m256 low = _mm256_set1_ps(zc_float_of((uint32_t)scales[0] << 16));
        __m256 step = _mm256_set1_ps(zc_float_of((uint32_t)scales[1] << 16));
        for (size_t i = 0; i < 8; i++) {
            __m256i code = _mm256_srlv_epi32(_mm256_set1_epi32((int)codes[i]), places);
            __m256 value = _mm256_cvtepi32_ps(_mm256_and_si256(code, _mm256_set1_epi32(15)));
            value = _mm256_add_ps(low, _mm256_mul_ps(value, step));
            wide_store(out + done + 8 * i, _mm256_castps_si256(value));
        }
    }
    return done;
}

static size_t mask_wide(const uint8_t *src, size_t n, uint8_t *dst)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    size_t done = 0;
    for (; done + 32 <= n; done += 32) {
        __m256i zero[4];
        for (size_t i = 0; i < 4; i++) {
            zero[i] = _mm256_cmpeq_epi32(wide_load(src + 4 * done + 32 * i), _mm256_setzero_si256());
        }
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(zero[0], zero[1]), _mm256_packs_epi32(zero[2], zero[3]));
        uint32_t bits = ~(uint32_t)_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order));
        memcpy(dst + done / 8, &bits, sizeof bits);
    }
    return done;
}

static size_t mean_square_wide(const uint8_t *src, size_t n, double *lane)
{
    __m256d sum[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    size_t done = 0;
    for (; done + 16 <= n; done += 16) {
        for (size_t i = 0; i < 4; i++) {
            __m256d value = _mm256_cvtps_pd(_mm_loadu_ps((const float *)(const void *)(src + 4 * (done + 4 * i))));
            sum[i] = _mm256_add_pd(sum[i], _mm256_mul_pd(value, value));
        }
    }
    __m256d all = _mm256_add_pd(_mm256_add_pd(sum[0], sum[1]), _mm256_add_pd(sum[2], sum[3]));
    if (_mm256_movemask_pd(_mm256_cmp_pd(all, _mm256_set1_pd(0x1p1000), _CMP_LT_OQ)) != 15) {
        return 0; /* squares of float32 values are below 2^256: something is not finite */
    }
    for (size_t i = 0; i < 4; i++) {
        _mm256_storeu_pd(lane + 4 * i, sum[i]);
    }
    return done;
}
