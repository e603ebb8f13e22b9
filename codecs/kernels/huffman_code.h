/* Order-0 canonical Huffman code of byte planes: codes of at most 11 bits in four streams, decoded side by side.
 *
 * A plane of n bytes (at most ZC_BLOCK) is nothing at all when n is 0, else a mode and what belongs to it:
 *
 *     0 raw        n bytes
 *     1 constant   the one byte that fills the plane
 *     2 Huffman    code lengths, sizes of the four streams (u16 each), the streams; at most n bytes in all
 *
 * Lengths are nibbles, low half first, for the symbols 0 to 255 in order: 0 to 11 is a length (0: absent), 13 and a
 * nibble r are r + 2 absent symbols, 14 and two nibbles (low first) are r + 18 absent ones. Stream i holds the i-th
 * quarter, ceil(n / 4) symbols, the last ones what is left. Codes are canonical, by length and then by symbol, and
 * stand in the stream with their first bit lowest. */
#ifndef ZMPSL_HUFFMAN_CODE_H
#define ZMPSL_HUFFMAN_CODE_H

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

#endif
