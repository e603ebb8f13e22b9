/* Writes planes in Huffman's code; huffman_code.h tells what they look like. */
#ifndef ZMPSL_HUFFMAN_WRITE_H
#define ZMPSL_HUFFMAN_WRITE_H

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

/* How a plane is to be written: which mode, and the bytes in all and of each stream. */
typedef struct plane_plan {
    int mode;
    size_t need;
    size_t head_size;
    size_t size[HUF_STREAMS];
    uint8_t length[256];
    uint8_t head[HUF_HEAD];
} plane_plan;

/* For n symbols counted by streams. */
static void plan_plane(uint32_t count[HUF_STREAMS][256], size_t n, plane_plan *plan)
{
    uint32_t total[256];
    uint8_t order[256];
    unsigned depth[256];
    for (size_t i = 0; i < 256; i++) {
        total[i] = count[0][i] + count[1][i] + count[2][i] + count[3][i];
    }
    size_t present = sort_symbols(total, order);
    plan->mode = PLANE_CONSTANT;
    plan->need = 2;
    if (present == 1) {
        return;
    }
    tree_depths(total, order, present, depth);
    limit_depths(depth, present);
    memset(plan->length, 0, sizeof plan->length);
    for (size_t i = 0; i < present; i++) {
        plan->length[order[i]] = (uint8_t)depth[i];
    }
    plan->head_size = write_lengths(plan->length, plan->head);
    plan->mode = PLANE_HUFFMAN;
    plan->need = 1 + plan->head_size + 2 * HUF_STREAMS;
    for (size_t j = 0; j < HUF_STREAMS; j++) {
        size_t bits = 0;
        for (size_t i = 0; i < 256; i++) {
            bits += count[j][i] * plan->length[i];
        }
        plan->size[j] = (bits + 7) / 8;
        plan->need += plan->size[j];
    }
    if (plan->need > n) {
        plan->mode = PLANE_RAW;
        plan->need = n + 1;
    }
}

/* Writes what was planned; gives its size. */
static size_t write_plane(const plane_plan *plan, const uint8_t *s, const quarters *q, uint8_t *dst)
{
    uint32_t code[256];
    dst[0] = (uint8_t)plan->mode;
    if (plan->mode == PLANE_CONSTANT) {
        dst[1] = s[0];
        return plan->need;
    }
    if (plan->mode == PLANE_RAW) {
        memcpy(dst + 1, s, plan->need - 1);
        return plan->need;
    }
    size_t at = 1 + plan->head_size;
    memcpy(dst + 1, plan->head, plan->head_size);
    for (size_t j = 0; j < HUF_STREAMS; j++, at += 2) {
        *(u16u *)(void *)(dst + at) = (uint16_t)plan->size[j];
    }
    assign_codes(plan->length, code);
    for (size_t j = 0; j < HUF_STREAMS; at += plan->size[j], j++) {
        write_stream(s + q->start[j], q->count[j], code, dst + at);
    }
    return plan->need;
}

/* Writes at most n + 1 bytes. */
static size_t plane_encode(const uint8_t *s, size_t n, uint8_t *dst)
{
    uint32_t count[HUF_STREAMS][256];
    plane_plan plan;
    if (n == 0) {
        return 0;
    }
    quarters q = quarters_of(n);
    histogram(s, &q, count);
    plan_plane(count, n, &plan);
    return write_plane(&plan, s, &q, dst);
}

#endif
