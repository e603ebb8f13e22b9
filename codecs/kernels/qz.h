/* qz: codes round(x / step), zeros by a bitmap, the others by Huffman's code; what has no code travels as it is.
 *
 *     step f32                                    once, in front
 *     k u32, e u32                                then per block of ZC_BLOCK values: codes that are not 0; escapes
 *     escapes                                     e values float32, as they were: |code| > 127, NaN, infinities
 *     codes                                       plane of k symbols: -127 to 127 as int8, -128 for an escape
 *     bitmap                                      plane of ceil(n / 8) symbols
 */
#include "memory.h"

enum { QZ_ESCAPE = 0x80 };

typedef struct qz_work {
    uint8_t tile[ZC_TILE + 8];
    uint8_t codes[ZC_BLOCK + ZC_BYTES_BEYOND];
    uint8_t map[ZC_BLOCK / 8];
} qz_work;

/* 0 instead of what is not finite; without a branch, so that it vectorises. */
static inline double finite_or_zero(uint32_t bits)
{
    uint32_t strange = (0x7f7fffffu - (bits & 0x7fffffffu)) >> 31;
    return (double)zc_float_of(bits & (strange - 1));
}

/* Sums of 16 interleaved lanes, then the lanes in order: the same result on every machine. */
static double mean_square(const uint8_t *src, size_t n)
{
    const u32u *restrict x = (const u32u *)(const void *)src;
    double lane[16] = {0};
    double sum = 0;
    size_t whole = n - n % 16;
    for (size_t i = mean_square_wide(src, whole, lane); i < whole; i += 16) {
        for (size_t j = 0; j < 16; j++) {
            double value = finite_or_zero(x[i + j]);
            lane[j] += value * value;
        }
    }
    for (size_t j = 0; whole + j < n; j++) {
        double value = finite_or_zero(x[whole + j]);
        lane[j] += value * value;
    }
    for (size_t j = 0; j < 16; j++) {
        sum += lane[j];
    }
    return n ? sum / (double)n : 0;
}

/* Adding 1.5 * 2^23 rounds to nearest, ties to even, and leaves the code in the low bits. Gives whether any escapes. */
static int to_codes(const f32u *restrict x, size_t n, float inverse, uint8_t *restrict codes)
{
    uint32_t escapes = 0;
    for (size_t i = 0; i < n; i++) {
        float scaled = x[i] * inverse;
        uint32_t magnitude = zc_bits_of(scaled) & 0x7fffffffu;
        uint32_t outside = 0u - ((0x42feffffu - magnitude) >> 31); /* from 127.5 on; NaN is larger still */
        uint32_t code = zc_bits_of(scaled + 0x1.8p23f);
        codes[i] = (uint8_t)((code & ~outside) | (QZ_ESCAPE & outside));
        escapes |= outside;
    }
    return escapes != 0;
}

static size_t qz_encode_block(const uint8_t *src, size_t n, float inverse, qz_work *work, uint8_t *dst)
{
    uint8_t *out = dst + 8;
    size_t k = 0;
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t stop = zc_min(n - base, ZC_TILE);
        if (to_codes((const f32u *)(const void *)(src + 4 * base), stop, inverse, work->tile)) {
            const uint8_t *end = work->tile + stop;
            for (const uint8_t *at = work->tile; (at = memchr(at, QZ_ESCAPE, (size_t)(end - at))) != NULL; at++) {
                memcpy(out, src + 4 * (base + (size_t)(at - work->tile)), 4);
                out += 4;
            }
        }
        k += compact8(work->tile, stop, work->map + base / 8, work->codes + k);
    }
    u32u *counts = (u32u *)(void *)dst;
    counts[0] = (uint32_t)k;
    counts[1] = (uint32_t)((size_t)(out - dst - 8) / 4);
    out += plane_encode(work->codes, k, out);
    out += plane_encode(work->map, (n + 7) / 8, out);
    return (size_t)(out - dst);
}

static size_t qz_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    qz_work work;
    uint8_t *out = dst + 4;
    memcpy(dst, &step, 4);
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        out += qz_encode_block(src + 4 * base, zc_min(n - base, ZC_BLOCK), 1.0f / step, &work, out);
    }
    return (size_t)(out - dst);
}

/* Reads a block's planes; *escapes points to its escaped values. */
static int qz_read(reader *r, size_t n, qz_work *work, const uint8_t **escapes, size_t *escaped)
{
    if (left(r) < 8) {
        return ZC_TRUNCATED;
    }
    const u32u *counts = (const u32u *)(const void *)r->at;
    size_t k = counts[0];
    size_t e = counts[1];
    size_t found = 0;
    r->at += 8;
    if (k > n || e > k) {
        return ZC_COUNT;
    }
    if (left(r) < 4 * e) {
        return ZC_TRUNCATED;
    }
    *escapes = r->at;
    *escaped = e;
    r->at += 4 * e;
    int status = plane_decode(r, work->codes, k);
    status = status == ZC_OK ? plane_decode(r, work->map, (n + 7) / 8) : status;
    if (status != ZC_OK) {
        return status;
    }
    for (size_t i = 0; i < k; i++) {
        found += work->codes[i] == QZ_ESCAPE;
    }
    return found == e && zc_count_mask(work->map, n) == (ptrdiff_t)k ? ZC_OK : ZC_COUNT;
}

static int qz_decode_block(reader *r, uint8_t *dst, size_t n, float step, qz_work *work)
{
    const uint8_t *escapes = NULL;
    size_t escaped = 0;
    const uint8_t *codes = work->codes;
    int status = qz_read(r, n, work, &escapes, &escaped);
    if (status != ZC_OK) {
        return status;
    }
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t stop = zc_min(n - base, ZC_TILE);
        f32u *restrict out = (f32u *)(void *)(dst + 4 * base);
        codes += expand8(codes, work->map + base / 8, (stop + 7) / 8, work->tile);
        for (size_t i = 0; i < stop; i++) {
            out[i] = (float)(int8_t)work->tile[i] * step;
        }
        const uint8_t *end = work->tile + stop;
        for (const uint8_t *at = work->tile; escaped && (at = memchr(at, QZ_ESCAPE, (size_t)(end - at))) != NULL;
             at++) {
            memcpy(out + (at - work->tile), escapes, 4);
            escapes += 4;
            escaped--;
        }
    }
    return ZC_OK;
}

static int qz_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    qz_work work;
    float step;
    reader r = {src + 4, src + size};
    if (size < 4) {
        return ZC_TRUNCATED;
    }
    memcpy(&step, src, 4);
    if (!(step >= ZC_STEP_MIN && step <= ZC_STEP_MAX)) {
        return ZC_STEP;
    }
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        int status = qz_decode_block(&r, dst + 4 * base, zc_min(n - base, ZC_BLOCK), step, &work);
        if (status != ZC_OK) {
            return status;
        }
    }
    return left(&r) == 0 ? ZC_OK : ZC_TRAILING;
}
