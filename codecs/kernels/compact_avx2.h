/* Moves the non-zero values of a run together, and apart again: AVX2 shuffles by table. Contracts: see the portable
 * twin. */
#include "../codecs.h"
#include "memory.h"

#include <immintrin.h>

static inline __m256i lanes_of(const uint8_t *shuffle)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)shuffle));
}

static inline unsigned nonzero_mask32(__m256i values)
{
    __m256i zero = _mm256_cmpeq_epi32(values, _mm256_setzero_si256());
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(zero)) ^ 0xffu;
}

static size_t compact32(const u32u *restrict src, size_t n, uint8_t *restrict map, u32u *restrict out)
{
    size_t count = 0;
    size_t base = 0;
    for (; base + 8 <= n; base += 8) {
        __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(src + base));
        unsigned bits = nonzero_mask32(values);
        __m256i packed = _mm256_permutevar8x32_epi32(values, lanes_of(zc_shuffle.pack[bits]));
        _mm256_storeu_si256((__m256i *)(void *)(out + count), packed);
        count += (size_t)_mm_popcnt_u32(bits);
        map[base / 8] = (uint8_t)bits;
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

static inline size_t pack_bytes(uint64_t values, unsigned bits, uint8_t *out)
{
    __m128i shuffle = _mm_loadl_epi64((const __m128i *)(const void *)zc_shuffle.pack[bits]);
    __m128i packed = _mm_shuffle_epi8(_mm_cvtsi64_si128((long long)values), shuffle);
    _mm_storel_epi64((__m128i *)(void *)out, packed);
    return (size_t)_mm_popcnt_u32(bits);
}

static size_t compact8(const uint8_t *restrict src, size_t n, uint8_t *restrict map, uint8_t *restrict out)
{
    size_t count = 0;
    size_t base = 0;
    for (; base + 32 <= n; base += 32) {
        __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(src + base));
        __m256i zero = _mm256_cmpeq_epi8(values, _mm256_setzero_si256());
        uint32_t bits = ~(uint32_t)_mm256_movemask_epi8(zero);
        memcpy(map + base / 8, &bits, sizeof bits);
        for (unsigned j = 0; bits != 0; j++, bits >>= 8) {
            count += pack_bytes(zc_load64(src + base + 8 * j), bits & 0xff, out + count);
        }
    }
    for (; base < n; base += 8) {
        uint64_t values = 0;
        unsigned bits = 0;
        memcpy(&values, src + base, zc_min(n - base, 8));
        for (unsigned j = 0; j < 8; j++) {
            bits |= (unsigned)((values >> (8 * j) & 0xff) != 0) << j;
        }
        map[base / 8] = (uint8_t)bits;
        count += pack_bytes(values, bits, out + count);
    }
    return count;
}

static size_t gather32(const u32u *restrict src, const uint8_t *restrict map, size_t groups, u32u *restrict out)
{
    size_t count = 0;
    for (size_t i = 0; i < groups; i++) {
        __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(src + 8 * i));
        __m256i packed = _mm256_permutevar8x32_epi32(values, lanes_of(zc_shuffle.pack[map[i]]));
        _mm256_storeu_si256((__m256i *)(void *)(out + count), packed);
        count += (size_t)_mm_popcnt_u32(map[i]);
    }
    return count;
}

static size_t expand32(const u32u *restrict packed, const uint8_t *restrict map, size_t groups, u32u *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        __m128i shuffle = _mm_loadl_epi64((const __m128i *)(const void *)zc_shuffle.unpack[map[i]]);
        __m256i lanes = _mm256_cvtepi8_epi32(shuffle); /* negative where no value belongs */
        __m256i values = _mm256_loadu_si256((const __m256i *)(const void *)(packed + taken));
        __m256 placed = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(values, lanes));
        placed = _mm256_blendv_ps(placed, _mm256_setzero_ps(), _mm256_castsi256_ps(lanes));
        _mm256_storeu_ps((float *)(void *)(dst + 8 * i), placed);
        taken += (size_t)_mm_popcnt_u32(map[i]);
    }
    return taken;
}

static size_t expand8(const uint8_t *restrict packed, const uint8_t *restrict map, size_t groups, uint8_t *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        __m128i shuffle = _mm_loadl_epi64((const __m128i *)(const void *)zc_shuffle.unpack[map[i]]);
        __m128i values = _mm_loadl_epi64((const __m128i *)(const void *)(packed + taken));
        _mm_storel_epi64((__m128i *)(void *)(dst + 8 * i), _mm_shuffle_epi8(values, shuffle));
        taken += (size_t)_mm_popcnt_u32(map[i]);
    }
    return taken;
}
