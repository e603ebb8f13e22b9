/* Reads planes in Huffman's code, from bytes that anybody may have sent; huffman_code.h tells what they look like. */
#ifndef ZMPSL_HUFFMAN_READ_H
#define ZMPSL_HUFFMAN_READ_H

#include "huffman_code.h"

enum { LONG_PLANE = 16384 };

/* What is left to read of an encoding. */
typedef struct reader {
    const uint8_t *at;
    const uint8_t *end;
} reader;

static inline size_t left(const reader *r)
{
    return (size_t)(r->end - r->at);
}

static int read_lengths(reader *r, uint8_t *length)
{
    size_t nibbles = 2 * left(r);
    size_t at = 0;
    size_t symbol = 0;
    memset(length, 0, 256);
#define NIBBLE() ((size_t)(r->at[at / 2] >> (at % 2 * 4)) & 15)
    while (symbol < 256) {
        if (at + 3 > nibbles) { /* streams follow, so a sound encoding has three more */
            return ZC_TRUNCATED;
        }
        size_t token = NIBBLE();
        at++;
        if (token <= HUF_BITS) {
            length[symbol++] = (uint8_t)token;
        } else if (token == 13) {
            symbol += NIBBLE() + 2;
            at++;
        } else if (token == 14) {
            size_t run = NIBBLE();
            at++;
            symbol += run + (NIBBLE() << 4) + 18;
            at++;
        } else {
            return ZC_TABLE;
        }
    }
#undef NIBBLE
    r->at += (at + 1) / 2;
    return symbol == 256 ? ZC_OK : ZC_TABLE;
}

/* table[next 11 bits] = length | symbol << 8; only for complete codes, so every entry is filled. */
static int build_table(const uint8_t *length, uint16_t *table)
{
    uint32_t code[256];
    unsigned used = 0;
    for (size_t i = 0; i < 256; i++) {
        used += length[i] ? 1u << (HUF_BITS - length[i]) : 0;
    }
    if (used != HUF_SIZE) {
        return ZC_TABLE;
    }
    assign_codes(length, code);
    for (size_t i = 0; i < 256; i++) {
        size_t step = (size_t)1 << length[i];
        uint16_t entry = (uint16_t)(length[i] | i << 8);
        for (size_t at = code[i] >> 16; length[i] && at < HUF_SIZE; at += step) {
            table[at] = entry;
        }
    }
    return ZC_OK;
}

/* One stream being read: `at` counts bits. */
typedef struct bit_reader {
    const uint8_t *from;
    size_t size;
    size_t at;
} bit_reader;

static int finish_reading(bit_reader r, const uint16_t *table, uint8_t *out, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        size_t byte = zc_min(r.at >> 3, r.size);
        memcpy(&bits, r.from + byte, zc_min(r.size - byte, 8));
        uint16_t entry = table[bits >> (r.at & 7) & (HUF_SIZE - 1)];
        out[i] = (uint8_t)(entry >> 8);
        r.at += entry & 0xff;
    }
    return (r.at + 7) >> 3 == r.size ? ZC_OK : ZC_COUNT;
}

/* Rounds of 5 symbols that surely read inside one stream: each consumes 55 bits at most, and loads 8 bytes. */
static inline size_t rounds_in(const bit_reader *r)
{
    size_t bits = 8 * r->size;
    return bits < r->at + 64 ? 0 : (bits - r->at - 64) / 55 + 1;
}

/* A stream in the fast loop: a 1 stands above the bits loaded, so the number of zeros above it tells how many were
 * taken, and no count need be kept. At most 7 + 55 of 64 bits are. */
#define LOAD(bits, from, skip) bits = (zc_load64(from) | (uint64_t)1 << 63) >> (skip)
#define REFILL(bits, from)                                                                                             \
    do {                                                                                                               \
        size_t taken = (size_t)__builtin_clzll(bits);                                                                  \
        (from) += taken >> 3;                                                                                          \
        LOAD(bits, from, taken & 7);                                                                                   \
    } while (0)
#define TAKE(bits, out)                                                                                                \
    do {                                                                                                               \
        uint32_t entry = table[(bits) & (HUF_SIZE - 1)];                                                               \
        (out) = (uint8_t)(entry >> 8);                                                                                 \
        (bits) >>= entry & 63;                                                                                         \
    } while (0)

/* Takes rounds * 5 symbols of each stream, whose results stand `apart` bytes from each other. */
static void read_rounds(bit_reader *r, size_t rounds, const uint16_t *restrict table, uint8_t *restrict o, size_t apart)
{
    const uint8_t *a = r[0].from + (r[0].at >> 3), *b = r[1].from + (r[1].at >> 3);
    const uint8_t *c = r[2].from + (r[2].at >> 3), *d = r[3].from + (r[3].at >> 3);
    uint64_t ba, bb, bc, bd;
    const uint8_t *stop = o + 5 * rounds;
    LOAD(ba, a, r[0].at & 7);
    LOAD(bb, b, r[1].at & 7);
    LOAD(bc, c, r[2].at & 7);
    LOAD(bd, d, r[3].at & 7);
    for (;;) {
        for (size_t k = 0; k < 5; k++, o++) {
            TAKE(ba, o[0]);
            TAKE(bb, o[apart]);
            TAKE(bc, o[2 * apart]);
            TAKE(bd, o[3 * apart]);
        }
        if (o == stop) {
            break;
        }
        REFILL(ba, a);
        REFILL(bb, b);
        REFILL(bc, c);
        REFILL(bd, d);
    }
    r[0].at = 8 * (size_t)(a - r[0].from) + (size_t)__builtin_clzll(ba);
    r[1].at = 8 * (size_t)(b - r[1].from) + (size_t)__builtin_clzll(bb);
    r[2].at = 8 * (size_t)(c - r[2].from) + (size_t)__builtin_clzll(bc);
    r[3].at = 8 * (size_t)(d - r[3].from) + (size_t)__builtin_clzll(bd);
}

static int read_streams(bit_reader *r, const quarters *q, const uint16_t *table, uint8_t *out)
{
    int status = ZC_OK;
    size_t done = 0;
    size_t rounds;
    do {
        rounds = (q->count[3] - done) / 5;
        for (size_t j = 0; j < HUF_STREAMS; j++) {
            rounds = zc_min(rounds, rounds_in(&r[j]));
        }
        if (rounds > 0) {
            read_rounds(r, rounds, table, out + done, q->start[1]);
            done += 5 * rounds;
        }
    } while (rounds > 0);
    for (size_t j = 0; j < HUF_STREAMS && status == ZC_OK; j++) {
        status = finish_reading(r[j], table, out + q->start[j] + done, q->count[j] - done);
    }
    return status;
}

/* pairs[next 11 bits] = length | number of symbols << 8 | the symbols << 16: two of them where both codes fit. */
static void build_pairs(const uint16_t *table, uint32_t *pairs)
{
    for (size_t i = 0; i < HUF_SIZE; i++) {
        uint32_t first = table[i];
        uint32_t second = table[i >> (first & 0xff)];
        uint32_t bits = (first & 0xff) + (second & 0xff);
        uint32_t one = (first & 0xff) | 1u << 8 | (first >> 8) << 16;
        pairs[i] = bits <= HUF_BITS ? bits | 2u << 8 | (first >> 8) << 16 | (second >> 8) << 24 : one;
    }
}

#define TAKE_PAIR(bits, out)                                                                                           \
    do {                                                                                                               \
        uint32_t entry = pairs[(bits) & (HUF_SIZE - 1)];                                                               \
        *(u16u *)(void *)(out) = (uint16_t)(entry >> 16);                                                              \
        (out) += entry >> 8 & 3;                                                                                       \
        (bits) >>= entry & 63;                                                                                         \
    } while (0)

/* Takes 5 to 10 symbols of each stream per round; moves `out` on. */
static void read_pair_rounds(bit_reader *r, size_t rounds, const uint32_t *restrict pairs, uint8_t **out)
{
    const uint8_t *a = r[0].from + (r[0].at >> 3), *b = r[1].from + (r[1].at >> 3);
    const uint8_t *c = r[2].from + (r[2].at >> 3), *d = r[3].from + (r[3].at >> 3);
    uint8_t *oa = out[0], *ob = out[1], *oc = out[2], *od = out[3];
    uint64_t ba, bb, bc, bd;
    LOAD(ba, a, r[0].at & 7);
    LOAD(bb, b, r[1].at & 7);
    LOAD(bc, c, r[2].at & 7);
    LOAD(bd, d, r[3].at & 7);
    for (;;) {
        for (size_t k = 0; k < 5; k++) {
            TAKE_PAIR(ba, oa);
            TAKE_PAIR(bb, ob);
            TAKE_PAIR(bc, oc);
            TAKE_PAIR(bd, od);
        }
        if (--rounds == 0) {
            break;
        }
        REFILL(ba, a);
        REFILL(bb, b);
        REFILL(bc, c);
        REFILL(bd, d);
    }
    out[0] = oa;
    out[1] = ob;
    out[2] = oc;
    out[3] = od;
    r[0].at = 8 * (size_t)(a - r[0].from) + (size_t)__builtin_clzll(ba);
    r[1].at = 8 * (size_t)(b - r[1].from) + (size_t)__builtin_clzll(bb);
    r[2].at = 8 * (size_t)(c - r[2].from) + (size_t)__builtin_clzll(bc);
    r[3].at = 8 * (size_t)(d - r[3].from) + (size_t)__builtin_clzll(bd);
}

/* The same result as read_streams(); for long planes, as the table of pairs takes a while. */
static int read_pairs(bit_reader *r, const quarters *q, const uint16_t *table, uint8_t *out)
{
    uint32_t pairs[HUF_SIZE];
    uint8_t *at[HUF_STREAMS];
    uint8_t *end[HUF_STREAMS];
    size_t rounds;
    int status = ZC_OK;
    build_pairs(table, pairs);
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        at[j] = out + q->start[j];
        end[j] = at[j] + q->count[j];
    }
    do {
        rounds = SIZE_MAX;
        for (size_t j = 0; j < HUF_STREAMS; j++) {
            rounds = zc_min(rounds, zc_min((size_t)(end[j] - at[j]) / 10, rounds_in(&r[j])));
        }
        if (rounds > 0) {
            read_pair_rounds(r, rounds, pairs, at);
        }
    } while (rounds > 0);
    for (size_t j = 0; j < HUF_STREAMS && status == ZC_OK; j++) {
        status = finish_reading(r[j], table, at[j], (size_t)(end[j] - at[j]));
    }
    return status;
}

static int decode_huffman(reader *r, uint8_t *out, size_t n)
{
    uint8_t length[256];
    uint16_t table[HUF_SIZE];
    bit_reader streams[HUF_STREAMS];
    quarters q = quarters_of(n);
    int status = read_lengths(r, length);
    status = status == ZC_OK ? build_table(length, table) : status;
    if (status != ZC_OK) {
        return status;
    }
    if (left(r) < 2 * HUF_STREAMS) {
        return ZC_TRUNCATED;
    }
    const u16u *sizes = (const u16u *)(const void *)r->at;
    r->at += 2 * HUF_STREAMS;
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        if (left(r) < sizes[j]) {
            return ZC_TRUNCATED;
        }
        streams[j] = (bit_reader){r->at, sizes[j], 0};
        r->at += sizes[j];
    }
    return n < LONG_PLANE ? read_streams(streams, &q, table, out) : read_pairs(streams, &q, table, out);
}

static int plane_decode(reader *r, uint8_t *out, size_t n)
{
    if (n == 0) {
        return ZC_OK;
    }
    if (left(r) < 2) {
        return ZC_TRUNCATED;
    }
    uint8_t mode = *r->at++;
    switch (mode) {
    case PLANE_RAW:
        if (left(r) < n) {
            return ZC_TRUNCATED;
        }
        memcpy(out, r->at, n);
        r->at += n;
        return ZC_OK;
    case PLANE_CONSTANT:
        memset(out, *r->at++, n);
        return ZC_OK;
    case PLANE_HUFFMAN:
        return decode_huffman(r, out, n);
    default:
        return ZC_COUNT;
    }
}

#endif
