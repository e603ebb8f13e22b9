/* huff (lossless) and bf16-huff: zeros leave by a bitmap, exponents through Huffman's code, the rest travels as it is.
 *
 * A block is up to ZC_BLOCK values; k is the number of those with any bit set (after rounding, for bf16):
 *
 *     flags u8     1: k = n, there is no bitmap; 2: no value is negative; 4: signs go with the exponents
 *     k u16        modulo 65536
 *     low          the lower 16 bits of each, 2k bytes; not for bf16
 *     middle       sign and upper 7 bits of the mantissa, k bytes; without signs (2, 4), 8 of them take 7 bytes
 *     exponents    plane of k symbols; with flag 4 as signs.h says
 *     bitmap       plane of ceil(n / 8) symbols, unless flag 1
 *
 * Exponents of real tensors have 2.6 to 3.3 bits of entropy; mantissas have none to spare. Flag 4 never goes with 2; it
 * is for what it makes smaller by a byte in 64 values at least. */
#include "signs.h"

enum { FLOATS_DENSE = 1, FLOATS_POSITIVE = 2, FLOATS_SIGNS = 4 };

typedef struct float_work {
    uint32_t tile[ZC_TILE + ZC_BEYOND];
    uint32_t rounded[ZC_TILE];
    uint8_t exponents[ZC_BLOCK];
    uint8_t middle[ZC_BLOCK];
    uint8_t map[ZC_BLOCK / 8];
} float_work;

/* Gives all middle bytes ORed: its sign bit tells whether any value is negative. */
static unsigned split(const uint32_t *restrict x, size_t n, uint8_t *restrict exponents, uint8_t *restrict middle)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t high = x[i] >> 16;
        uint8_t value = (uint8_t)((high >> 8 & 0x80) | (high & 0x7f));
        exponents[i] = (uint8_t)(high >> 7);
        middle[i] = value;
        any |= value;
    }
    return any;
}

static void put_low(const uint32_t *restrict x, size_t n, uint8_t *restrict dst)
{
    u16u *restrict low = (u16u *)(void *)dst;
    for (size_t i = 0; i < n; i++) {
        low[i] = (uint16_t)x[i];
    }
}

static inline uint64_t seven_from_eight(uint64_t v)
{
    v = (v & 0x007f007f007f007fu) | (v & 0x7f007f007f007f00u) >> 1;
    v = (v & 0x00003fff00003fffu) | (v & 0x3fff00003fff0000u) >> 2;
    return (v & 0x000000000fffffffu) | (v & 0x0fffffff00000000u) >> 4;
}

static inline uint64_t eight_from_seven(uint64_t v)
{
    v = (v & 0x000000000fffffffu) | (v & 0x00fffffff0000000u) << 4;
    v = (v & 0x00003fff00003fffu) | (v & 0x0fffc0000fffc000u) << 2;
    return (v & 0x007f007f007f007fu) | (v & 0x3f803f803f803f80u) << 1;
}

/* Squeezes the lower 7 bits of 8 bytes into 7 bytes; those of bytes beyond the last 8 stay where they are. Stores and loads are 8 bytes wide but
 * for the last group: the next one follows. */
static void squeeze(const uint8_t *restrict middle, size_t n, uint8_t *restrict dst)
{
    size_t groups = n / 8;
    for (size_t i = squeeze_wide(middle, n, dst) / 8; i + 1 < groups; i++) {
        zc_store64(dst + 7 * i, seven_from_eight(zc_load64(middle + 8 * i)));
    }
    if (groups > 0) {
        uint64_t last = seven_from_eight(zc_load64(middle + 8 * (groups - 1)));
        memcpy(dst + 7 * (groups - 1), &last, 7);
    }
    for (size_t i = 0; i < n % 8; i++) {
        dst[7 * groups + i] = middle[8 * groups + i] & 0x7f;
    }
}

static void unsqueeze(const uint8_t *restrict src, size_t n, uint8_t *restrict middle)
{
    size_t groups = n / 8;
    for (size_t i = unsqueeze_wide(src, n, middle) / 8; i + 1 < groups; i++) {
        zc_store64(middle + 8 * i, eight_from_seven(zc_load64(src + 7 * i)));
    }
    if (groups > 0) {
        uint64_t last = 0;
        memcpy(&last, src + 7 * (groups - 1), 7);
        zc_store64(middle + 8 * (groups - 1), eight_from_seven(last));
    }
    memcpy(middle + 8 * groups, src + 7 * groups, n % 8);
}

/* Writes the middle bytes and the exponents, of k values; gives the flag that tells how. */
static unsigned put_planes(float_work *work, size_t k, int negative, uint8_t **out)
{
    size_t squeezed = k - k / 8;
    size_t size = negative ? signs_encode(work->exponents, work->middle, k, *out + squeezed) : 0;
    if (negative && size == 0) {
        memcpy(*out, work->middle, k);
        *out += k + plane_encode(work->exponents, k, *out + k);
        return 0;
    }
    squeeze(work->middle, k, *out);
    *out += squeezed + (negative ? size : plane_encode(work->exponents, k, *out + squeezed));
    return negative ? FLOATS_SIGNS : FLOATS_POSITIVE;
}

static size_t encode_block(const uint8_t *src, size_t n, int half, uint32_t least, float_work *work, uint8_t *dst)
{
    uint8_t *out = dst + 3;
    size_t k = 0;
    unsigned any = 0;
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t stop = zc_min(n - base, ZC_TILE);
        const u32u *values = (const u32u *)(const void *)(src + 4 * base);
        if (half) {
            for (size_t i = 0; i < stop; i++) {
                uint32_t drop = ((values[i] & 0x7fffffffu) - least) >> 31;
                work->rounded[i] = bf16_round(values[i]) & (drop - 1);
            }
            values = work->rounded;
        }
        size_t here = compact32(values, stop, work->map + base / 8, work->tile);
        any |= split(work->tile, here, work->exponents + k, work->middle + k);
        if (!half) {
            put_low(work->tile, here, out);
            out += 2 * here;
        }
        k += here;
    }
    dst[0] = (uint8_t)((k == n ? FLOATS_DENSE : 0) | put_planes(work, k, (any & 0x80) != 0, &out));
    dst[1] = (uint8_t)k;
    dst[2] = (uint8_t)(k >> 8);
    if (k < n) {
        out += plane_encode(work->map, (n + 7) / 8, out);
    }
    return (size_t)(out - dst);
}

static void merge(const uint8_t *restrict exponents, const uint8_t *restrict middle, const u16u *restrict low, size_t n,
                  u32u *restrict x)
{
    size_t done = merge_wide(exponents, middle, low, n, x);
    if (low == NULL) {
        for (size_t i = done; i < n; i++) {
            uint32_t m = middle[i];
            x[i] = (m & 0x80) << 24 | (uint32_t)exponents[i] << 23 | (m & 0x7f) << 16;
        }
        return;
    }
    for (size_t i = done; i < n; i++) {
        uint32_t m = middle[i];
        x[i] = (m & 0x80) << 24 | (uint32_t)exponents[i] << 23 | (m & 0x7f) << 16 | low[i];
    }
}

/* Where the planes of a block are, and how many values are in them. */
typedef struct float_planes {
    size_t count;
    const uint8_t *low; /* NULL for bf16 */
    const uint8_t *middle;
} float_planes;

/* Reads the planes of a block, into `work` where they are coded. */
static int read_planes(reader *r, size_t n, int half, float_work *work, float_planes *planes)
{
    if (left(r) < 3) {
        return ZC_TRUNCATED;
    }
    unsigned flags = r->at[0];
    size_t k = (size_t)(r->at[1] | r->at[2] << 8);
    r->at += 3;
    int dense = (flags & FLOATS_DENSE) != 0;
    if (flags > (FLOATS_SIGNS | FLOATS_DENSE) || (dense ? k != (n & 0xffff) : k >= n)) {
        return ZC_COUNT;
    }
    k = dense ? n : k;
    int squeezed = (flags & (FLOATS_POSITIVE | FLOATS_SIGNS)) != 0;
    size_t middle = squeezed ? k - k / 8 : k;
    size_t lows = half ? 0 : 2 * k;
    if (left(r) < lows + middle) {
        return ZC_TRUNCATED;
    }
    planes->low = half ? NULL : r->at;
    r->at += lows;
    planes->middle = r->at;
    if (squeezed) {
        unsqueeze(r->at, k, work->middle);
        planes->middle = work->middle;
    }
    r->at += middle;
    planes->count = k;
    int status = flags & FLOATS_SIGNS ? signs_decode(r, work->exponents, work->middle, k)
                                      : plane_decode(r, work->exponents, k);
    if (status != ZC_OK || dense) {
        return status;
    }
    status = plane_decode(r, work->map, (n + 7) / 8);
    return status == ZC_OK && zc_count_mask(work->map, n) != (ptrdiff_t)k ? ZC_COUNT : status;
}

static int decode_block(reader *r, uint8_t *dst, size_t n, int half, float_work *work)
{
    float_planes planes = {0, NULL, NULL};
    size_t at = 0;
    int status = read_planes(r, n, half, work, &planes);
    if (status != ZC_OK) {
        return status;
    }
    const u16u *low = (const u16u *)(const void *)planes.low;
    if (planes.count == n) {
        merge(work->exponents, planes.middle, low, n, (u32u *)(void *)dst);
        return ZC_OK;
    }
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t stop = zc_min(n - base, ZC_TILE);
        const uint8_t *map = work->map + base / 8;
        size_t here = zc_popcount(map, (stop + 7) / 8);
        merge(work->exponents + at, planes.middle + at, low ? low + at : NULL, here, work->tile);
        at += here;
        /* the tile can be read ZC_BEYOND values further, so nothing need be copied first */
        unpack_masked((const uint8_t *)work->tile, here + ZC_BEYOND, map, stop, dst + 4 * base);
    }
    return ZC_OK;
}

/* With `half`, values whose magnitude is less than `least` (bits of a float32) count as 0. */
static size_t encode_blocks(const uint8_t *src, size_t n, int half, uint32_t least, uint8_t *dst)
{
    float_work work;
    uint8_t *out = dst;
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        out += encode_block(src + 4 * base, zc_min(n - base, ZC_BLOCK), half, least, &work, out);
    }
    return (size_t)(out - dst);
}

static int decode_blocks(const uint8_t *src, size_t size, uint8_t *dst, size_t n, int half)
{
    float_work work;
    reader r = {src, src + size};
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        int status = decode_block(&r, dst + 4 * base, zc_min(n - base, ZC_BLOCK), half, &work);
        if (status != ZC_OK) {
            return status;
        }
    }
    return left(&r) == 0 ? ZC_OK : ZC_TRAILING;
}

static size_t huff_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    (void)step;
    return encode_blocks(src, n, 0, 0, dst);
}

static int huff_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    return decode_blocks(src, size, dst, n, 0);
}

static size_t bf16_huff_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    (void)step;
    return encode_blocks(src, n, 1, 0, dst);
}

static int bf16_huff_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    return decode_blocks(src, size, dst, n, 1);
}
