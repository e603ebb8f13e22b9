/* Moves the non-zero values of a run together, and apart again: plain C, without branches on the data. */
#include "memory.h"

/* Packs the values that are not 0 into out, one bit each into map; gives their number. May write beyond them, yet never
 * beyond out[n - 1]. */
static size_t compact32(const u32u *restrict src, size_t n, uint8_t *restrict map, u32u *restrict out)
{
    size_t count = 0;
    for (size_t base = 0; base < n; base += 8) {
        unsigned bits = 0;
        size_t stop = zc_min(n - base, 8);
        for (size_t j = 0; j < stop; j++) {
            uint32_t value = src[base + j];
            unsigned set = value != 0;
            out[count] = value;
            count += set;
            bits |= set << j;
        }
        map[base / 8] = (uint8_t)bits;
    }
    return count;
}

/* The same for bytes, yet up to out[n + 7]. */
static size_t compact8(const uint8_t *restrict src, size_t n, uint8_t *restrict map, uint8_t *restrict out)
{
    size_t count = 0;
    for (size_t base = 0; base < n; base += 8) {
        unsigned bits = 0;
        size_t stop = zc_min(n - base, 8);
        for (size_t j = 0; j < stop; j++) {
            uint8_t value = src[base + j];
            unsigned set = value != 0;
            out[count] = value;
            count += set;
            bits |= set << j;
        }
        map[base / 8] = (uint8_t)bits;
    }
    return count;
}

/* Packs the values whose bit is set in groups of 8; out has room for ZC_BEYOND values more than those. */
static size_t gather32(const u32u *restrict src, const uint8_t *restrict map, size_t groups, u32u *restrict out)
{
    size_t count = 0;
    for (size_t i = 0; i < groups; i++) {
        unsigned bits = map[i];
        for (size_t j = 0; j < 8; j++) {
            out[count] = src[8 * i + j];
            count += (bits >> j) & 1;
        }
    }
    return count;
}

/* Writes groups of 8 values, taking the next of `packed` where a bit is set and 0 elsewhere; gives the number taken.
 * `packed` can be read ZC_BEYOND values beyond them. */
static size_t expand32(const u32u *restrict packed, const uint8_t *restrict map, size_t groups, u32u *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        unsigned bits = map[i];
        for (size_t j = 0; j < 8; j++) {
            uint32_t set = (bits >> j) & 1;
            dst[8 * i + j] = packed[taken] & (0u - set);
            taken += set;
        }
    }
    return taken;
}

/* The same for bytes; `packed` can be read ZC_BYTES_BEYOND bytes beyond them. */
static size_t expand8(const uint8_t *restrict packed, const uint8_t *restrict map, size_t groups, uint8_t *restrict dst)
{
    size_t taken = 0;
    for (size_t i = 0; i < groups; i++) {
        unsigned bits = map[i];
        for (size_t j = 0; j < 8; j++) {
            unsigned set = (bits >> j) & 1;
            dst[8 * i + j] = (uint8_t)(packed[taken] & (0u - set));
            taken += set;
        }
    }
    return taken;
}
