/* Signs that go with the exponents: neighbours in a feature map mostly have one sign, before a ReLU above all, and values
 * near 0 change it most easily. Behind flag 4 of a block of floats (see floats.h) stand
 *
 *     base u8, distance u16    the least exponent; how far back the sign is that a value's own is compared with, not 0
 *     symbols                  a plane: exponent - base, and 128 more where the two signs differ
 *
 * Exponents are modulo 256; a sign before the first value is positive. */
#include "huffman_read.h"
#include "huffman_write.h"

enum { SIGNS_HEAD = 3, SIGNS_APART = 512, SIGNS_FIRST = 128, SIGN_WORDS = ZC_BLOCK / 64 };

#define TOP_BITS 0x8080808080808080u

/* The next one, and the one above in maps of usual widths. */
static const uint8_t sign_distances[] = {1, 7, 8, 14, 16, 28, 32, 56, 64, 112};

/* The distance at which signs, the highest bits, change least in a sample; 0 where that is in 3 of 8 places or more. */
static size_t find_distance(const uint8_t *middle, size_t n)
{
    size_t changes[sizeof sign_distances] = {0};
    size_t best = 0;
    size_t least = 0;
    for (size_t i = SIGNS_FIRST; i + 8 <= n; i += SIGNS_APART, least += 3) {
        uint64_t here = zc_load64(middle + i);
        for (size_t j = 0; j < sizeof sign_distances; j++) {
            uint64_t both = here ^ zc_load64(middle + i - sign_distances[j]);
            changes[j] += (size_t)__builtin_popcountll(both & TOP_BITS);
        }
    }
    for (size_t j = 0; j < sizeof sign_distances; j++) {
        if (changes[j] < least) {
            least = changes[j];
            best = sign_distances[j];
        }
    }
    return best;
}

/* Gives whether all exponents are within 127 of the least. */
static int find_base(const uint8_t *exponents, size_t n, unsigned *base)
{
    uint8_t least = 255;
    uint8_t most = 0;
    for (size_t i = 0; i < n; i++) {
        least = exponents[i] < least ? exponents[i] : least;
        most = exponents[i] > most ? exponents[i] : most;
    }
    *base = least;
    return most - least < 128;
}

static void to_symbols(uint8_t *restrict exponents, const uint8_t *restrict middle, size_t n, unsigned base,
                       size_t distance)
{
    size_t first = zc_min(n, distance);
    for (size_t i = 0; i < first; i++) {
        exponents[i] = (uint8_t)((exponents[i] - base) | (middle[i] & 0x80));
    }
    for (size_t i = first; i < n; i++) {
        exponents[i] = (uint8_t)((exponents[i] - base) | ((middle[i] ^ middle[i - distance]) & 0x80));
    }
}

/* Plans for the exponents alone, by what was counted of the symbols. */
static void plan_alone(uint32_t count[HUF_STREAMS][256], size_t n, unsigned base, plane_plan *plan)
{
    uint32_t alone[HUF_STREAMS][256];
    memset(alone, 0, sizeof alone);
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        for (size_t i = 0; i < 128 && base + i < 256; i++) {
            alone[j][base + i] = count[j][i] + count[j][128 + i];
        }
    }
    plan_plane(alone, n, plan);
}

/* Gives the size of what it writes: 0 unless n values, the others' signs squeezed out of them, become smaller by a byte
 * in 64 of them. The exponents are not kept but come back then. */
static size_t signs_encode(uint8_t *exponents, const uint8_t *middle, size_t n, uint8_t *dst)
{
    uint32_t count[HUF_STREAMS][256];
    plane_plan together, alone;
    unsigned base;
    size_t distance = find_distance(middle, n);
    if (distance == 0 || !find_base(exponents, n, &base)) {
        return 0;
    }
    quarters q = quarters_of(n);
    to_symbols(exponents, middle, n, base, distance);
    histogram(exponents, &q, count);
    plan_plane(count, n, &together);
    plan_alone(count, n, base, &alone);
    if (SIGNS_HEAD + together.need + n / 64 > alone.need + n / 8) {
        for (size_t i = 0; i < n; i++) {
            exponents[i] = (uint8_t)((exponents[i] & 0x7f) + base);
        }
        return 0;
    }
    dst[0] = (uint8_t)base;
    dst[1] = (uint8_t)distance;
    dst[2] = (uint8_t)(distance >> 8);
    return SIGNS_HEAD + write_plane(&together, exponents, &q, dst + SIGNS_HEAD);
}

/* The 64 bits from there on; 0 before the first. */
static inline uint64_t bits_from(const uint64_t *bits, ptrdiff_t at)
{
    ptrdiff_t word = (at >= 0 ? at : at - 63) / 64;
    unsigned skip = (unsigned)(at - 64 * word);
    uint64_t low = word >= 0 ? bits[word] >> skip : 0;
    uint64_t high = skip > 0 && word >= -1 ? bits[word + 1] << (64 - skip) : 0;
    return low | high;
}

/* Makes changes signs: each bit is joined with the one `distance` before it, in turn. */
static void to_signs(uint64_t *bits, size_t words, size_t distance)
{
    for (size_t i = 0; i < words; i++) {
        if (distance >= 64) {
            bits[i] ^= bits_from(bits, 64 * (ptrdiff_t)i - (ptrdiff_t)distance);
            continue;
        }
        bits[i] ^= i > 0 ? bits[i - 1] >> (64 - distance) : 0;
        for (size_t shift = distance; shift < 64; shift *= 2) {
            bits[i] ^= bits[i] << shift;
        }
    }
}

/* Up to 8 bytes; most often it is 8, for which nothing need be called. */
static inline uint64_t load_upto(const uint8_t *from, size_t n)
{
    uint64_t eight = 0;
    if (n >= 8) {
        return zc_load64(from);
    }
    memcpy(&eight, from, n);
    return eight;
}

static inline void store_upto(uint8_t *to, uint64_t eight, size_t n)
{
    if (n >= 8) {
        zc_store64(to, eight);
    } else {
        memcpy(to, &eight, n);
    }
}

/* The highest bits of n bytes, as many bits in words of 64. */
static void top_bits(const uint8_t *bytes, size_t n, uint64_t *bits)
{
    for (size_t i = top_bits_wide(bytes, n, bits); i < n; i += 64) {
        uint64_t word = 0;
        for (size_t j = 0; j < 64 && i + j < n; j += 8) {
            uint64_t eight = load_upto(bytes + i + j, n - i - j);
            word |= ((eight & TOP_BITS) * 0x0002040810204081u >> 56) << j;
        }
        bits[i / 64] = word;
    }
}

/* Makes symbols exponents, and the bits signs of the middle bytes. */
static void put_signs(const uint64_t *bits, unsigned base, size_t n, uint8_t *restrict exponents,
                      uint8_t *restrict middle)
{
    size_t i = put_signs_wide(bits, base, n, exponents, middle);
    for (size_t j = i; j < n; j++) {
        exponents[j] = (uint8_t)((exponents[j] & 0x7f) + base);
    }
    for (; i < n; i += 8) {
        uint64_t eight = load_upto(middle + i, n - i);
        uint64_t here = (bits[i / 64] >> i % 64 & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
        store_upto(middle + i, (eight & ~TOP_BITS) | ((here + ~TOP_BITS) & TOP_BITS), n - i);
    }
}

/* Reads what signs_encode() writes: the exponents, and the signs into the middle bytes, whose own do not count. */
static int signs_decode(reader *r, uint8_t *exponents, uint8_t *middle, size_t n)
{
    uint64_t bits[SIGN_WORDS];
    if (left(r) < SIGNS_HEAD) {
        return ZC_TRUNCATED;
    }
    unsigned base = r->at[0];
    size_t distance = (size_t)(r->at[1] | r->at[2] << 8);
    r->at += SIGNS_HEAD;
    if (distance == 0) {
        return ZC_COUNT;
    }
    int status = plane_decode(r, exponents, n);
    if (status != ZC_OK) {
        return status;
    }
    top_bits(exponents, n, bits);
    to_signs(bits, (n + 63) / 64, distance);
    put_signs(bits, base, n, exponents, middle);
    return ZC_OK;
}
