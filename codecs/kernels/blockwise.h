/* int8 and int4 with a minimum and a step per block: int8 256 values with float32 scales, int4 64 with bf16 ones.
 *
 *     int8 block   min f32, step f32, one byte per value          value = min + code * step
 *     int4 block   min bf16, step bf16, two values per byte: of the first half of the block in the low half of the
 *                  byte, of the second half in the high one
 *
 * A block that holds a NaN or an infinity, or whose range is no float32, has NaN for its scales and decodes to NaN
 * throughout, so it cannot pass unseen. */
#include "memory.h"

enum { INT8_BLOCK = 256, INT4_BLOCK = 64, TOGETHER = 8 };

typedef struct range {
    float low;
    float high;
    int finite;
} range;

/* Turns the bits of a float32 into an integer of the same order, and back. */
static inline int32_t ordered(uint32_t bits)
{
    return (int32_t)(bits ^ (uint32_t)((int32_t)bits >> 31 & 0x7fffffff));
}

/* As integers, because compilers vectorise their least and greatest, and infinities and NaN stand at the ends. */
static inline range range_of(const f32u *values, size_t n)
{
    const u32u *restrict x = (const u32u *)(const void *)values;
    int32_t low = INT32_MAX;
    int32_t high = INT32_MIN;
    for (size_t i = 0; i < n; i++) {
        int32_t value = ordered(x[i]);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    range r;
    r.finite = high < 0x7f800000 && low > ordered(0xff800000u);
    /* Adding 0 turns -0 into 0. */
    r.low = zc_float_of((uint32_t)ordered((uint32_t)low)) + 0.0f;
    r.high = zc_float_of((uint32_t)ordered((uint32_t)high)) + 0.0f;
    return r;
}

/* round((x - low) * inverse), the exact product rounded once, ties to even: 2^23 is added in the same step, and the code
 * stands in the lowest bits. Without an instruction for that a double holds the product. It passes the last level by far
 * less than a half, so nothing need be cut off. */
static inline void quantise(const f32u *restrict x, size_t n, float low, float inverse, uint8_t *restrict out)
{
    for (size_t i = 0; i < n; i++) {
#if defined(__FMA__) || defined(__aarch64__)
        out[i] = (uint8_t)zc_bits_of(__builtin_fmaf(x[i] - low, inverse, 0x1p23f));
#else
        double code = (double)(x[i] - low) * (double)inverse + 0x1p52;
        uint64_t bits;
        memcpy(&bits, &code, sizeof bits);
        out[i] = (uint8_t)bits;
#endif
    }
}

/* What a block is coded with; blocks are taken several at a time, so that one's division overlaps another's search. */
typedef struct scale {
    float low;
    float step;
    float inverse; /* negative: the block is not finite */
} scale;

static inline scale scale_of(int finite, float low, float width, float step)
{
    scale s = {low, step < 0x1p-126f ? 0.0f : step, 0.0f};
    s.inverse = s.step > 0.0f ? 1.0f / s.step : 0.0f;
    if (!finite || !(width <= 0x1.fffffep127f)) {
        s = (scale){zc_float_of(0x7fc00000u), zc_float_of(0x7fc00000u), -1.0f};
    }
    return s;
}

static inline scale int8_scale(range r)
{
    float width = r.high - r.low;
    return scale_of(r.finite, r.low, width, width / 255.0f);
}

static inline void codes_of(const f32u *x, size_t count, scale s, uint8_t *out)
{
    if (s.inverse < 0) {
        memset(out, 0, count);
    } else {
        quantise(x, count, s.low, s.inverse, out);
    }
}

static inline uint8_t *int8_put(const f32u *x, size_t count, scale s, uint8_t *out)
{
    f32u *scales = (f32u *)(void *)out;
    scales[0] = s.low;
    scales[1] = s.step;
    codes_of(x, count, s, out + 8);
    return out + 8 + count;
}

static size_t int8_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    uint8_t *out = dst;
    const f32u *x = (const f32u *)(const void *)src;
    range r[TOGETHER];
    scale s[TOGETHER];
    size_t done = 0;
    (void)step;
    while (n - done >= TOGETHER * INT8_BLOCK) {
        size_t wide = int8_wide(x + done, n - done, out);
        done += wide;
        out += zc_bound(ZC_INT8, wide);
        if (n - done < TOGETHER * INT8_BLOCK) {
            break;
        }
        for (size_t i = 0; i < TOGETHER; i++) {
            r[i] = range_of(x + done + i * INT8_BLOCK, INT8_BLOCK);
        }
        for (size_t i = 0; i < TOGETHER; i++) {
            s[i] = int8_scale(r[i]);
        }
        for (size_t i = 0; i < TOGETHER; i++, done += INT8_BLOCK) {
            out = int8_put(x + done, INT8_BLOCK, s[i], out);
        }
    }
    for (size_t count; done < n; done += count) {
        count = zc_min(n - done, INT8_BLOCK);
        out = int8_put(x + done, count, int8_scale(range_of(x + done, count)), out);
    }
    return (size_t)(out - dst);
}

static int int8_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    size_t need = zc_bound(ZC_INT8, n);
    if (size != need) {
        return size < need ? ZC_TRUNCATED : ZC_TRAILING;
    }
    for (size_t base = 0; base < n; base += INT8_BLOCK) {
        f32u *restrict out = (f32u *)(void *)(dst + 4 * base);
        const f32u *scales = (const f32u *)(const void *)src;
        const uint8_t *restrict codes = src + 8;
        size_t count = zc_min(n - base, INT8_BLOCK);
        float low = scales[0];
        float step = scales[1];
        for (size_t i = 0; i < count; i++) {
            out[i] = low + (float)codes[i] * step;
        }
        src += 8 + count;
    }
    return ZC_OK;
}

/* The next bf16 not above (low) or not below (step): every value stays inside the 15 steps. */
static uint32_t bf16_toward(float value, int down)
{
    uint32_t bits = zc_bits_of(value);
    int away = down ? (bits >> 31) != 0 : (bits >> 31) == 0;
    return (bits + (away ? 0xffffu : 0)) & 0xffff0000u;
}

static inline void int4_pack(const uint8_t *codes, size_t half, uint8_t *restrict out)
{
    for (size_t i = 0; i < half; i++) {
        out[i] = (uint8_t)(codes[i] | codes[half + i] << 4);
    }
}

static inline scale int4_scale(range r)
{
    float low = zc_float_of(bf16_toward(r.low, 1));
    float width = r.high - low;
    return scale_of(r.finite, low, width, zc_float_of(bf16_toward(width / 15.0f, 0)));
}

static inline uint8_t *int4_put(const f32u *x, size_t count, scale s, uint8_t *out)
{
    uint8_t codes[INT4_BLOCK + 1];
    u16u *scales = (u16u *)(void *)out;
    codes[count] = 0;
    codes_of(x, count, s, codes);
    scales[0] = (uint16_t)(zc_bits_of(s.low) >> 16);
    scales[1] = (uint16_t)(zc_bits_of(s.step) >> 16);
    int4_pack(codes, (count + 1) / 2, out + 4);
    return out + 4 + (count + 1) / 2;
}

static size_t int4_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    uint8_t *out = dst;
    const f32u *x = (const f32u *)(const void *)src;
    range r[TOGETHER];
    scale s[TOGETHER];
    size_t done = 0;
    (void)step;
    while (n - done >= TOGETHER * INT4_BLOCK) {
        size_t wide = int4_wide(x + done, n - done, out);
        done += wide;
        out += zc_bound(ZC_INT4, wide);
        if (n - done < TOGETHER * INT4_BLOCK) {
            break;
        }
        for (size_t i = 0; i < TOGETHER; i++) {
            r[i] = range_of(x + done + i * INT4_BLOCK, INT4_BLOCK);
        }
        for (size_t i = 0; i < TOGETHER; i++) {
            s[i] = int4_scale(r[i]);
        }
        for (size_t i = 0; i < TOGETHER; i++, done += INT4_BLOCK) {
            out = int4_put(x + done, INT4_BLOCK, s[i], out);
        }
    }
    for (size_t count; done < n; done += count) {
        count = zc_min(n - done, INT4_BLOCK);
        out = int4_put(x + done, count, int4_scale(range_of(x + done, count)), out);
    }
    return (size_t)(out - dst);
}

static void int4_unpack(const uint8_t *restrict packed, size_t half, uint8_t *restrict codes)
{
    for (size_t i = 0; i < half; i++) {
        codes[i] = packed[i] & 15;
        codes[half + i] = packed[i] >> 4;
    }
}

static int int4_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    uint8_t codes[INT4_BLOCK];
    size_t need = zc_bound(ZC_INT4, n);
    if (size != need) {
        return size < need ? ZC_TRUNCATED : ZC_TRAILING;
    }
    size_t done = int4_wide_decode(src, n, (f32u *)(void *)dst);
    src += zc_bound(ZC_INT4, done);
    for (size_t base = done; base < n; base += INT4_BLOCK) {
        f32u *restrict out = (f32u *)(void *)(dst + 4 * base);
        const u16u *scales = (const u16u *)(const void *)src;
        size_t count = zc_min(n - base, INT4_BLOCK);
        float low = zc_float_of((uint32_t)scales[0] << 16);
        float step = zc_float_of((uint32_t)scales[1] << 16);
        int4_unpack(src + 4, (count + 1) / 2, codes);
        for (size_t i = 0; i < count; i++) {
            out[i] = low + (float)codes[i] * step;
        }
        src += 4 + (count + 1) / 2;
    }
    return ZC_OK;
}
