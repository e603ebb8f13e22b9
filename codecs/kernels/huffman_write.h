/* Writes planes in Huffman's code; huffman_code.h tells what they look like. */
#include "huffman_code.h"

/* Counts each stream's symbols. Equal symbols often follow each other, and an addition must wait for the one before it
 * in memory: so even and odd places are counted apart. */
static void histogram(const uint8_t *s, const quarters *q, uint32_t count[HUF_STREAMS][256])
{
    uint32_t odd[HUF_STREAMS][256];
    const uint8_t *a = s + q->start[0], *b = s + q->start[1], *c = s + q->start[2], *d = s + q->start[3];
    size_t i = 0;
    memset(count, 0, HUF_STREAMS * 256 * sizeof(uint32_t));
    memset(odd, 0, sizeof odd);
    for (; i + 2 <= q->count[3]; i += 2) { /* the last is the shortest */
        count[0][a[i]]++;
        count[1][b[i]]++;
        count[2][c[i]]++;
        count[3][d[i]]++;
        odd[0][a[i + 1]]++;
        odd[1][b[i + 1]]++;
        odd[2][c[i + 1]]++;
        odd[3][d[i + 1]]++;
    }
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        for (size_t k = 0; k < 256; k++) {
            count[j][k] += odd[j][k];
        }
        for (size_t k = i; k < q->count[j]; k++) {
            count[j][s[q->start[j] + k]]++;
        }
    }
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

static void write_stream(const uint8_t *restrict s, size_t count, const uint32_t *restrict code, uint8_t *to)
{
    bit_writer w = {to, 0, 0};
    size_t i = 0;
    /* 5 codes of 11 bits and 7 bits held back fit 64; 64 symbols to come are 8 bytes at least, so wide stores fit */
    for (; i + 5 + 64 <= count; i += 5) {
        put_code(&w, code[s[i]]);
        put_code(&w, code[s[i + 1]]);
        put_code(&w, code[s[i + 2]]);
        put_code(&w, code[s[i + 3]]);
        put_code(&w, code[s[i + 4]]);
        flush_wide(&w);
    }
    finish_stream(w, s + i, count - i, code);
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
    for (size_t j = 0; j < HUF_STREAMS; at += size[j], j++) {
        write_stream(s + q.start[j], q.count[j], total, dst + at);
    }
    return need;
}
