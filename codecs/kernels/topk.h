/* topk: the largest values as bf16_huff, zeros for the others. The least magnitude to keep comes from a sample: groups
 * of 8 values at even distances, about ZC_SAMPLE in all; every value where there are fewer than twice as many. The
 * distance is an odd number of groups, or the sample would see the same pixels of every image. The magnitude is the
 * largest multiple of 2^12, as bits of a float32, that keeps the wanted share of the sample. */
#include "memory.h"

enum { ZC_SAMPLE = 8192, COARSE = 2048 };

/* Counts the sample by its upper 11 bits, or by the 8 bits below them where these are `upper`; signs do not count. */
static size_t count_sample(const u32u *x, size_t n, uint32_t upper, uint32_t *bins)
{
    size_t apart = n < 2 * ZC_SAMPLE ? 1 : n / ZC_SAMPLE | 1;
    size_t end = apart == 1 ? n : n / 8 * 8;
    size_t sampled = 0;
    for (size_t base = 0; base < end; base += 8 * apart) {
        size_t stop = base + zc_min(end - base, 8);
        sampled += stop - base;
        for (size_t i = base; i < stop; i++) {
            uint32_t size = x[i] & 0x7fffffffu;
            if (upper == COARSE) {
                bins[size >> 20]++;
            } else {
                bins[size >> 12 & 255] += size >> 20 == upper;
            }
        }
    }
    return sampled;
}

/* Takes bins from the last one on until `wanted` are taken or one is left; gives that bin, and lessens `wanted`. */
static uint32_t bin_of(const uint32_t *bins, uint32_t last, size_t *wanted)
{
    while (last > 0 && bins[last] < *wanted) {
        *wanted -= bins[last--];
    }
    return last;
}

static uint32_t least_to_keep(const uint8_t *src, size_t n, double share)
{
    const u32u *x = (const u32u *)(const void *)src;
    uint32_t coarse[COARSE] = {0};
    uint32_t fine[256] = {0};
    size_t wanted = (size_t)(share * (double)count_sample(x, n, COARSE, coarse) + 0.5);
    wanted = wanted > 0 ? wanted : 1;
    uint32_t upper = bin_of(coarse, COARSE - 1, &wanted);
    count_sample(x, n, upper, fine);
    return upper << 20 | bin_of(fine, 255, &wanted) << 12;
}

static size_t topk_encode(const uint8_t *src, size_t n, double share, uint8_t *dst)
{
    return encode_blocks(src, n, 1, least_to_keep(src, n, share), dst);
}
