/* What the kernels of one instruction set offer; pure C11, no Python.h.
 *
 * Every format is little-endian and is specified by its NumPy twin in zmpsl/kernels/twins.py; the bytes are the same for
 * every instruction set. `n` counts float32 values (bytes for ZC_BYTES). Sources may be unaligned and are never
 * written. Nothing is allocated: working memory is at most 0.2 MB of stack.
 */
#ifndef ZMPSL_CODECS_H
#define ZMPSL_CODECS_H

#include <stddef.h>
#include <stdint.h>

enum zc_codec_id { ZC_BF16, ZC_INT8, ZC_INT4, ZC_BITMAP, ZC_BYTES, ZC_HUFF, ZC_BF16_HUFF, ZC_QZ, ZC_CODECS };

/* What a decoder answers; everything but ZC_OK becomes a ValueError. */
enum zc_status {
    ZC_OK = 0,
    ZC_TRUNCATED = -1, /* the encoding ends before all values are there */
    ZC_TRAILING = -2,  /* bytes are left over after the last value */
    ZC_TABLE = -3,     /* the code lengths are no complete prefix code */
    ZC_COUNT = -4,     /* a count, flag or stream size contradicts the rest */
    ZC_STEP = -5       /* the step of qz is out of its range */
};

/* The range of steps whose reciprocal and whose 127-fold stay normal numbers. */
#define ZC_STEP_MIN 0x1p-100f
#define ZC_STEP_MAX 0x1p100f

/* Packs n values into dst, which has room for zc_bound() bytes; gives the bytes written. */
typedef size_t (*zc_encode_fn)(const uint8_t *src, size_t n, float step, uint8_t *dst);
/* Unpacks exactly n values out of exactly `size` bytes; gives a zc_status. */
typedef int (*zc_decode_fn)(const uint8_t *src, size_t size, uint8_t *dst, size_t n);

typedef struct zc_isa {
    const char *name;
    zc_encode_fn encode[ZC_CODECS];
    zc_decode_fn decode[ZC_CODECS];
    /* The largest values, about this share of all, as ZC_BF16_HUFF; the others become 0. */
    size_t (*topk)(const uint8_t *src, size_t n, double share, uint8_t *dst);
    /* Mean of the squares; values that are not finite count as 0. */
    double (*mean_square)(const uint8_t *src, size_t n);
    /* Adds weight * value to the float64 beside it and writes what rounding left out; whether any of that is not 0. */
    int (*add)(const uint8_t *src, size_t n, double weight, uint8_t *sums, uint8_t *rests);
    /* One bit per value, set where any of its 32 bits is: (n + 7) / 8 bytes, first value in the lowest bit. */
    void (*mask)(const uint8_t *src, size_t n, uint8_t *dst);
    /* Number of bits set among the first n; -1 where a bit beyond them is set. */
    ptrdiff_t (*count)(const uint8_t *mask, size_t n);
    /* Values under the mask, in order; count is the number of bits set. */
    void (*pack)(const uint8_t *src, const uint8_t *mask, size_t n, uint8_t *dst, size_t count);
    /* The reverse: zeros where the mask has none. */
    void (*unpack)(const uint8_t *src, size_t count, const uint8_t *mask, size_t n, uint8_t *dst);
} zc_isa;

extern const zc_isa zc_portable;
#if defined(__x86_64__)
extern const zc_isa zc_avx2;
extern const zc_isa zc_avx512;
#elif defined(__aarch64__)
extern const zc_isa zc_neon;
#endif

/* The named kernels (NULL or "": the best) where this processor can run them, else NULL. */
const zc_isa *zc_pick(const char *name);

/* Most bytes that n values can need. */
size_t zc_bound(enum zc_codec_id id, size_t n);

/* For each mask of 8: where the set bits are (pack), and which value each place takes, 0x80 for none (unpack). The same
 * for masks of 4 values of 32 bits, as places of bytes; those are 0x80 and above for none. */
typedef struct zc_shuffles {
    uint8_t pack[256][8];
    uint8_t unpack[256][8];
    uint8_t pack4[16][16];
    uint8_t unpack4[16][16];
} zc_shuffles;
extern zc_shuffles zc_shuffle;

#endif
