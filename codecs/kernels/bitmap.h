/* Non-zero bitmap followed by the packed float32 values; and the same with a mask that both ends know already. */
#include "memory.h"

static size_t bitmap_encode(const uint8_t *src, size_t n, float step, uint8_t *dst)
{
    size_t map = (n + 7) / 8;
    (void)step;
    return map + 4 * compact32((const u32u *)(const void *)src, n, dst, (u32u *)(void *)(dst + map));
}

static void unpack_masked(const uint8_t *src, size_t count, const uint8_t *mask, size_t n, uint8_t *dst)
{
    uint32_t tile[ZC_TILE + ZC_BEYOND];
    size_t taken = 0;
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t stop = zc_min(n - base, ZC_TILE);
        size_t here = zc_popcount(mask + base / 8, (stop + 7) / 8);
        const uint8_t *from = src + 4 * taken;
        if (count - taken < here + ZC_BEYOND) { /* wide loads would pass the end */
            memcpy(tile, from, 4 * here);
            memset(tile + here, 0, 4 * ZC_BEYOND);
            from = (const uint8_t *)tile;
        }
        expand32((const u32u *)(const void *)from, mask + base / 8, stop / 8, (u32u *)(void *)(dst + 4 * base));
        if (stop % 8 != 0) {
            uint32_t last[8];
            size_t whole = stop / 8;
            size_t before = zc_popcount(mask + base / 8, whole);
            expand32((const u32u *)(const void *)from + before, mask + base / 8 + whole, 1, last);
            memcpy(dst + 4 * (base + 8 * whole), last, 4 * (stop % 8));
        }
        taken += here;
    }
}

static int bitmap_decode(const uint8_t *src, size_t size, uint8_t *dst, size_t n)
{
    size_t map = (n + 7) / 8;
    if (size < map) {
        return ZC_TRUNCATED;
    }
    ptrdiff_t count = zc_count_mask(src, n);
    if (count < 0) {
        return ZC_COUNT;
    }
    if (size - map != 4 * (size_t)count) {
        return size - map < 4 * (size_t)count ? ZC_TRUNCATED : ZC_TRAILING;
    }
    unpack_masked(src + map, (size_t)count, src, n, dst);
    return ZC_OK;
}

static void mask_of(const uint8_t *src, size_t n, uint8_t *dst)
{
    uint32_t tile[ZC_TILE + ZC_BEYOND];
    for (size_t base = mask_wide(src, n, dst); base < n; base += ZC_TILE) {
        compact32((const u32u *)(const void *)(src + 4 * base), zc_min(n - base, ZC_TILE), dst + base / 8, tile);
    }
}

static void pack_masked(const uint8_t *src, const uint8_t *mask, size_t n, uint8_t *dst, size_t count)
{
    uint32_t tile[ZC_TILE + ZC_BEYOND];
    uint8_t *end = dst + 4 * count;
    for (size_t base = 0; base < n; base += ZC_TILE) {
        size_t groups = zc_min(n - base, ZC_TILE) / 8;
        size_t rest = base + ZC_TILE > n ? n % 8 : 0;
        const u32u *values = (const u32u *)(const void *)(src + 4 * base);
        size_t here = gather32(values, mask + base / 8, groups, tile);
        for (size_t j = 0; j < rest; j++) {
            if (mask[base / 8 + groups] >> j & 1) {
                tile[here++] = values[8 * groups + j];
            }
        }
        /* The glue counted the bits, so this never happens unless another thread changes the mask meanwhile. */
        here = zc_min(here, (size_t)(end - dst) / 4);
        memcpy(dst, tile, 4 * here);
        dst += 4 * here;
    }
}
