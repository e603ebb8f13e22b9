/* bytes: the entropy stage by itself, a plane per ZC_BLOCK of any bytes. */
#include "huffman_read.h"
#include "huffman_write.h"

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
