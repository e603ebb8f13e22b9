/* Order-0 canonical Huffman code of byte planes: codes of at most 11 bits in four streams, decoded side by side.
 *
 * A plane of n bytes (at most ZC_BLOCK) is nothing at all when n is 0, else a mode and what belongs to it:
 *
 *     0 raw        n bytes
 *     1 constant   the one byte that fills the plane
 *     2 Huffman    code lengths, sizes of the first three streams (u16) and of the fourth (u16), the streams
 *
 * Lengths are nibbles, low half first, for the symbols 0 to 255 in order: 0 to 11 is a length (0: absent), 13 and a
 * nibble r are r + 2 absent symbols, 14 and two nibbles (low first) are r + 18 absent ones. Stream i holds the i-th
 * quarter, ceil(n / 4) symbols, the last ones what is left. Codes are canonical, by length and then by symbol, and stand
 * in the stream with their first bit lowest. */
#include "memory.h"

enum { HUF_BITS = 11, HUF_SIZE = 1 << HUF_BITS, HUF_STREAMS = 4, HUF_HEAD = 200 };
enum { PLANE_RAW, PLANE_CONSTANT, PLANE_HUFFMAN };

typedef struct quarters {
    size_t start[HUF_STREAMS];
    size_t count[HUF_STREAMS];
} quarters;

static quarters quarters_of(size_t n)
{
    quarters q;
    size_t each = (n + 3) / 4;
    for (size_t i = 0; i < HUF_STREAMS; i++) {
        q.start[i] = zc_min(i * each, n);
        q.count[i] = zc_min(n - q.start[i], each);
    }
    return q;
}

static void histogram(const uint8_t *s, const quarters *q, uint32_t count[HUF_STREAMS][256])
{
    const uint8_t *a = s + q->start[0], *b = s + q->start[1], *c = s + q->start[2], *d = s + q->start[3];
    size_t i = 0;
    memset(count, 0, HUF_STREAMS * 256 * sizeof(uint32_t));
    for (; i < q->count[3]; i++) { /* the last is the shortest */
        count[0][a[i]]++;
        count[1][b[i]]++;
        count[2][c[i]]++;
        count[3][d[i]]++;
    }
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        for (size_t k = i; k < q->count[j]; k++) {
            count[j][s[q->start[j] + k]]++;
        }
    }
}

/* Present symbols by rising count, equal counts by symbol; counts are below 2^18, so three radix passes of 6 bits. */
static size_t sort_symbols(const uint32_t *count, uint8_t *order)
{
    uint8_t other[256];
    uint8_t *from = order;
    uint8_t *to = other;
    size_t present = 0;
    for (unsigned symbol = 0; symbol < 256; symbol++) {
        if (count[symbol] != 0) {
            order[present++] = (uint8_t)symbol;
        }
    }
    for (unsigned shift = 0; shift < 18; shift += 6) {
        uint32_t start[65] = {0};
        for (size_t i = 0; i < present; i++) {
            start[(count[from[i]] >> shift & 63) + 1]++;
        }
        for (size_t i = 0; i < 64; i++) {
            start[i + 1] += start[i];
        }
        for (size_t i = 0; i < present; i++) {
            to[start[count[from[i]] >> shift & 63]++] = from[i];
        }
        uint8_t *swap = from;
        from = to;
        to = swap;
    }
    memcpy(order, other, present); /* after three passes the result stands in `other` */
    return present;
}

/* Depths of Huffman's tree by two queues, leaves first among equals; depth[i] belongs to order[i]. */
static void tree_depths(const uint32_t *count, const uint8_t *order, size_t present, unsigned *depth)
{
    uint32_t weight[512];
    uint16_t parent[512];
    unsigned node_depth[512];
    size_t leaf = 0;
    size_t node = present;
    size_t nodes = 2 * present - 1;
    for (size_t i = 0; i < present; i++) {
        weight[i] = count[order[i]];
    }
    for (size_t next = present; next < nodes; next++) {
        weight[next] = 0;
        for (int pick = 0; pick < 2; pick++) {
            int use_leaf = leaf < present && (node >= next || weight[leaf] <= weight[node]);
            size_t child = use_leaf ? leaf++ : node++;
            weight[next] += weight[child];
            parent[child] = (uint16_t)next;
        }
    }
    node_depth[nodes - 1] = 0;
    for (size_t i = nodes - 1; i-- > 0;) {
        node_depth[i] = node_depth[parent[i]] + 1;
    }
    memcpy(depth, node_depth, present * sizeof *depth);
}

/* Cuts depths at 11 bits: the rarest symbols grow until the code fits, then the most frequent shrink until it is
 * complete again. */
static void limit_depths(unsigned *depth, size_t present)
{
    unsigned used = 0; /* of HUF_SIZE */
    for (size_t i = 0; i < present; i++) {
        depth[i] = depth[i] > HUF_BITS ? HUF_BITS : depth[i];
        used += 1u << (HUF_BITS - depth[i]);
    }
    for (size_t i = 0; used > HUF_SIZE;) {
        if (depth[i] < HUF_BITS) {
            depth[i]++;
            used -= 1u << (HUF_BITS - depth[i]);
        } else {
            i++;
        }
    }
    for (size_t i = present; i-- > 0;) {
        while (depth[i] > 1 && used + (1u << (HUF_BITS - depth[i])) <= HUF_SIZE) {
            used += 1u << (HUF_BITS - depth[i]);
            depth[i]--;
        }
    }
}

/* Fills code[symbol] = length | bits reversed << 16 for the given lengths. */
static void assign_codes(const uint8_t *length, uint32_t *code)
{
    uint32_t of_length[HUF_BITS + 1] = {0};
    uint32_t next[HUF_BITS + 2] = {0};
    for (size_t i = 0; i < 256; i++) {
        of_length[length[i]]++;
    }
    of_length[0] = 0;
    for (size_t bits = 1; bits <= HUF_BITS; bits++) {
        next[bits] = (next[bits - 1] + of_length[bits - 1]) << 1;
    }
    for (size_t i = 0; i < 256; i++) {
        uint32_t bits = length[i];
        uint32_t reversed = 0;
        uint32_t value = bits ? next[bits]++ : 0;
        for (uint32_t j = 0; j < bits; j++) {
            reversed |= (value >> j & 1) << (bits - 1 - j);
        }
        code[i] = bits | reversed << 16;
    }
}

static size_t put_nibble(uint8_t *out, size_t at, size_t nibble)
{
    out[at / 2] = (uint8_t)(at % 2 ? out[at / 2] | nibble << 4 : nibble);
    return at + 1;
}

static size_t write_lengths(const uint8_t *length, uint8_t *out)
{
    size_t at = 0;
    for (size_t symbol = 0; symbol < 256;) {
        size_t run = 0;
        while (symbol + run < 256 && length[symbol + run] == 0) {
            run++;
        }
        if (run >= 18) {
            at = put_nibble(out, at, 14);
            at = put_nibble(out, at, (run - 18) & 15);
            at = put_nibble(out, at, (run - 18) >> 4);
            symbol += run;
        } else if (run >= 2) {
            at = put_nibble(out, at, 13);
            at = put_nibble(out, at, run - 2);
            symbol += run;
        } else {
            at = put_nibble(out, at, length[symbol++]);
        }
    }
    return (at + 1) / 2;
}

/* One stream being written. Codes are length | bits << 16; only the low 6 bits of `held` count, the rest is left over
 * from adding whole codes. */
typedef struct bit_writer {
    uint8_t *to;
    uint64_t bits;
    uint64_t held;
} bit_writer;

static inline void put_code(bit_writer *w, uint32_t code)
{
    w->bits |= (uint64_t)(code >> 16) << (w->held & 63);
    w->held += code;
}

static inline void flush_wide(bit_writer *w)
{
    zc_store64(w->to, w->bits);
    w->to += w->held >> 3 & 7;
    w->bits >>= w->held & 56;
    w->held &= 7;
}

static void finish_stream(bit_writer w, const uint8_t *s, size_t count, const uint32_t *code)
{
    for (size_t i = 0; i < count; i++) {
        put_code(&w, code[s[i]]);
        for (w.held &= 63; w.held >= 8; w.held -= 8, w.bits >>= 8) {
            *w.to++ = (uint8_t)w.bits;
        }
    }
    if (w.held > 0) {
        *w.to = (uint8_t)w.bits;
    }
}

/* Two streams at a time: more would not fit the registers. */
static void write_pair(const uint8_t *a, size_t na, uint8_t *to_a, const uint8_t *b, size_t nb, uint8_t *to_b,
                       const uint32_t *code)
{
    bit_writer wa = {to_a, 0, 0};
    bit_writer wb = {to_b, 0, 0};
    size_t i = 0;
    /* 5 codes of 11 bits and 7 bits held back fit 64; 64 symbols to come are 8 bytes at least, so wide stores fit */
    for (; i + 5 + 64 <= nb; i += 5) { /* the second is never longer */
        for (size_t k = i; k < i + 5; k++) {
            put_code(&wa, code[a[k]]);
            put_code(&wb, code[b[k]]);
        }
        flush_wide(&wa);
        flush_wide(&wb);
    }
    finish_stream(wa, a + i, na - i, code);
    finish_stream(wb, b + i, nb - i, code);
}

static void write_streams(const uint8_t *s, const quarters *q, const size_t *size, const uint32_t *code, uint8_t *dst)
{
    for (size_t j = 0; j < HUF_STREAMS; j += 2) {
        write_pair(s + q->start[j], q->count[j], dst, s + q->start[j + 1], q->count[j + 1], dst + size[j], code);
        dst += size[j] + size[j + 1];
    }
}

static size_t plane_raw(const uint8_t *s, size_t n, uint8_t *dst)
{
    dst[0] = PLANE_RAW;
    memcpy(dst + 1, s, n);
    return n + 1;
}

/* Writes at most n + 1 bytes. */
static size_t plane_encode(const uint8_t *s, size_t n, uint8_t *dst)
{
    uint32_t count[HUF_STREAMS][256];
    uint32_t total[256];
    uint8_t order[256];
    unsigned depth[256];
    uint8_t length[256] = {0};
    uint8_t head[HUF_HEAD];
    size_t size[HUF_STREAMS] = {0};
    if (n == 0) {
        return 0;
    }
    quarters q = quarters_of(n);
    histogram(s, &q, count);
    for (size_t i = 0; i < 256; i++) {
        total[i] = count[0][i] + count[1][i] + count[2][i] + count[3][i];
    }
    size_t present = sort_symbols(total, order);
    if (present == 1) {
        dst[0] = PLANE_CONSTANT;
        dst[1] = s[0];
        return 2;
    }
    tree_depths(total, order, present, depth);
    limit_depths(depth, present);
    for (size_t i = 0; i < present; i++) {
        length[order[i]] = (uint8_t)depth[i];
    }
    size_t need = write_lengths(length, head);
    size_t at = 1 + need;
    need += 1 + 2 * HUF_STREAMS;
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        for (size_t i = 0; i < 256; i++) {
            size[j] += count[j][i] * length[i];
        }
        size[j] = (size[j] + 7) / 8;
        need += size[j];
    }
    if (need > n) {
        return plane_raw(s, n, dst);
    }
    dst[0] = PLANE_HUFFMAN;
    memcpy(dst + 1, head, at - 1);
    for (size_t j = 0; j < HUF_STREAMS; j++, at += 2) {
        *(u16u *)(void *)(dst + at) = (uint16_t)size[j];
    }
    assign_codes(length, total); /* the counts are not needed any more */
    write_streams(s, &q, size, total, dst + at);
    return need;
}

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
    return read_streams(streams, &q, table, out);
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

/* The stage by itself: any bytes, a plane per ZC_BLOCK of them. */
static size_t bytes_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    uint8_t *out = dst;
    (void)step;
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        out += plane_encode(src + base, zc_min(n - base, ZC_BLOCK), out);
    }
    return (size_t)(out - dst);
}

static int bytes_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    reader r = {src, src + size};
    for (size_t base = 0; base < n; base += ZC_BLOCK) {
        int status = plane_decode(&r, dst + base, zc_min(n - base, ZC_BLOCK));
        if (status != ZC_OK) {
            return status;
        }
    }
    return left(&r) == 0 ? ZC_OK : ZC_TRAILING;
}
