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

static size_t int4_wide_decode(const uint8_t *src, size_t n, f32u *out)
{
    const __m256i nibble = _mm256_set1_epi32(15);
    size_t done = 0;
    for (; done + 64 <= n; done += 64, src += 36) {
        const u16u *scales = (const u16u *)(const void *)src;
        __m256 low = _mm256_set1_ps(zc_float_of((uint32_t)scales[0] << 16));
        __m256 step = _mm256_set1_ps(zc_float_of((uint32_t)scales[1] << 16));
        for (size_t i = 0; i < 32; i += 8) {
            __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(src + 4 + i)));
            __m256 first = _mm256_cvtepi32_ps(_mm256_and_si256(codes, nibble));
            __m256 second = _mm256_cvtepi32_ps(_mm256_srli_epi32(codes, 4));
            wide_store(out + done + i, _mm256_castps_si256(_mm256_add_ps(low, _mm256_mul_ps(first, step))));
            wide_store(out + done + 32 + i, _mm256_castps_si256(_mm256_add_ps(low, _mm256_mul_ps(second, step))));
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
