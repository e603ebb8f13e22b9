/* Which kernels run on this processor, how much room an encoding can need, and the tables that all kernels share. */
#include "codecs.h"
#include "kernels/memory.h"

#include <string.h>

zc_shuffles zc_shuffle;

static uint8_t byte_place(unsigned value, unsigned byte)
{
    return (uint8_t)(value == 0x80 ? 0x80 : 4 * value + byte);
}

/* Idempotent: every call writes the same bytes, so two interpreters may load the module at once. */
static void fill_shuffles(void)
{
    for (unsigned mask = 0; mask < 256; mask++) {
        unsigned count = 0;
        for (unsigned bit = 0; bit < 8; bit++) {
            int set = (mask >> bit) & 1;
            zc_shuffle.unpack[mask][bit] = set ? (uint8_t)count : 0x80;
            if (set) {
                zc_shuffle.pack[mask][count++] = (uint8_t)bit;
            }
        }
        while (count < 8) {
            zc_shuffle.pack[mask][count++] = 0x80;
        }
    }
    for (unsigned mask = 0; mask < 16; mask++) {
        for (unsigned byte = 0; byte < 16; byte++) {
            zc_shuffle.pack4[mask][byte] = byte_place(zc_shuffle.pack[mask][byte / 4], byte % 4);
            zc_shuffle.unpack4[mask][byte] = byte_place(zc_shuffle.unpack[mask][byte / 4], byte % 4);
        }
    }
}

const zc_isa *zc_pick(const char *name)
{
    int any = name == NULL || name[0] == '\0';
    fill_shuffles();
#if defined(__x86_64__)
    __builtin_cpu_init(); /* asks the operating system, too, whether it keeps these registers */
    if ((any || strcmp(name, "avx512") == 0) && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
        __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt")) {
        return &zc_avx512;
    }
    if ((any || strcmp(name, "avx2") == 0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt")) {
        return &zc_avx2;
    }
#elif defined(__aarch64__)
    if (any || strcmp(name, "neon") == 0) { /* every aarch64 has it */
        return &zc_neon;
    }
#endif
    return any || strcmp(name, "portable") == 0 ? &zc_portable : NULL;
}

static size_t blocks_of(size_t n, size_t block)
{
    return n / block + (n % block != 0);
}

size_t zc_bound(enum zc_codec_id id, size_t n)
{
    size_t map = blocks_of(n, 8);
    size_t blocks = blocks_of(n, ZC_BLOCK);
    switch (id) {
    case ZC_BF16:
        return 2 * n;
    case ZC_INT8:
        return n + 8 * blocks_of(n, 256);
    case ZC_INT4:
        return blocks_of(n, 2) + 4 * blocks_of(n, 64);
    case ZC_BITMAP:
        return map + 4 * n;
    case ZC_BYTES:
        return n + blocks;
    case ZC_HUFF: /* counts, planes with their modes, map; a block without a map has at most one byte more */
        return 4 * n + map + 4 * blocks;
    case ZC_BF16_HUFF:
        return 2 * n + map + 4 * blocks;
    default: /* qz: every value escaped, symbols and map stored raw */
        return 4 + 5 * n + map + 10 * blocks;
    }
}
