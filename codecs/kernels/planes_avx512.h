/* Planes of floats taken apart and put together, by AVX-512. Contracts: see wide_portable.h. */
#include "memory.h"

#include <immintrin.h>

enum { SELECT = 0xca }; /* of _mm512_ternarylogic: the second where the first is set, else the third */

/* Each step joins two neighbours: 7 bits, 14, 28. */
static size_t squeeze_wide(const uint8_t *middle, size_t n, uint8_t *dst)
{
    uint8_t place[64] = {0};
    size_t done = 0;
    for (size_t i = 0; i < 56; i++) {
        place[i] = (uint8_t)(i / 7 * 8 + i % 7);
    }
    const __m512i order = _mm512_loadu_si512(place);
    for (; done + 128 <= n; done += 64, dst += 56) {
        __m512i v = _mm512_and_si512(_mm512_loadu_si512(middle + done), _mm512_set1_epi8(0x7f));
        v = _mm512_maddubs_epi16(_mm512_set1_epi16((short)0x8001), v);
        v = _mm512_madd_epi16(v, _mm512_set1_epi32(0x40000001));
        v = _mm512_ternarylogic_epi64(_mm512_set1_epi64(0x0fffffff), v, _mm512_srli_epi64(v, 4), SELECT);
        _mm512_storeu_si512(dst, _mm512_permutexvar_epi8(order, v));
    }
    return done;
}

static size_t unsqueeze_wide(const uint8_t *src, size_t n, uint8_t *middle)
{
    uint8_t place[64];
    size_t done = 0;
    for (size_t i = 0; i < 64; i++) {
        place[i] = (uint8_t)(i / 8 * 7 + i % 8);
    }
    const __m512i order = _mm512_loadu_si512(place);
    const __m512i from = _mm512_set1_epi64(0x312a231c150e0700); /* 49, 42 and so on: where each one's bits begin */
    for (; done + 128 <= n; done += 64, src += 56) {
        __m512i v = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(src));
        v = _mm512_and_si512(_mm512_multishift_epi64_epi8(from, v), _mm512_set1_epi8(0x7f));
        _mm512_storeu_si512(middle + done, v);
    }
    return done;
}

/* The order that interleaves two registers, in elements of one byte or two: the first half of both, or the second. */
static inline __m512i interleaved(size_t bytes, size_t half)
{
    uint8_t byte[64];
    uint16_t pair[32];
    size_t count = 64 / bytes;
    for (size_t i = 0; i < count; i++) {
        size_t from = half * count / 2 + i / 2 + i % 2 * count;
        byte[i] = (uint8_t)from;
        pair[i % 32] = (uint16_t)from;
    }
    return bytes == 1 ? _mm512_loadu_si512(byte) : _mm512_loadu_si512(pair);
}

static size_t merge_wide(const uint8_t *exponents, const uint8_t *middle, const u16u *low, size_t n, u32u *x)
{
    const __m512i top = _mm512_set1_epi8((char)0x80);
    const __m512i bytes[2] = {interleaved(1, 0), interleaved(1, 1)};
    const __m512i pairs[2] = {interleaved(2, 0), interleaved(2, 1)};
    size_t done = 0;
    for (; done + 64 <= n; done += 64) {
        __m512i e = _mm512_loadu_si512(exponents + done);
        __m512i m = _mm512_loadu_si512(middle + done);
        __m512i upper = _mm512_ternarylogic_epi64(top, m, _mm512_srli_epi16(e, 1), SELECT);
        __m512i lower = _mm512_ternarylogic_epi64(top, _mm512_slli_epi16(e, 7), m, SELECT);
        for (size_t i = 0; i < 2; i++) {
            __m512i high = _mm512_permutex2var_epi8(lower, bytes[i], upper);
            __m512i rest = low == NULL ? _mm512_setzero_si512() : _mm512_loadu_si512(low + done + 32 * i);
            _mm512_storeu_si512(x + done + 32 * i, _mm512_permutex2var_epi16(rest, pairs[0], high));
            _mm512_storeu_si512(x + done + 32 * i + 16, _mm512_permutex2var_epi16(rest, pairs[1], high));
        }
    }
    return done;
}

static size_t top_bits_wide(const uint8_t *bytes, size_t n, uint64_t *bits)
{
    size_t done = 0;
    for (; done + 64 <= n; done += 64) {
        bits[done / 64] = _mm512_movepi8_mask(_mm512_loadu_si512(bytes + done));
    }
    return done;
}

static size_t put_signs_wide(const uint64_t *bits, unsigned base, size_t n, uint8_t *exponents, uint8_t *middle)
{
    const __m512i seven = _mm512_set1_epi8(0x7f);
    size_t done = 0;
    for (; done + 64 <= n; done += 64) {
        __m512i signs = _mm512_movm_epi8(bits[done / 64]);
        __m512i m = _mm512_ternarylogic_epi64(seven, _mm512_loadu_si512(middle + done), signs, SELECT);
        __m512i e = _mm512_and_si512(_mm512_loadu_si512(exponents + done), seven);
        _mm512_storeu_si512(middle + done, m);
        _mm512_storeu_si512(exponents + done, _mm512_add_epi8(e, _mm512_set1_epi8((char)base)));
    }
    return done;
}
