/* Mutates and truncates encodings and decodes them, for every codec and instruction set of this machine.
 *
 * Run under AddressSanitizer and UndefinedBehaviorSanitizer (see codecs/README.md): any read or write outside of
 * exactly sized heap buffers stops it. Prints a digest over all encodings and results, which must be the same on every
 * machine.
 *
 *     mutate [cases] [seed]
 */
#include "../codecs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 200000 };

static uint64_t state;

static uint32_t draw(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static uint64_t digest(uint64_t hash, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ bytes[i]) * 1099511628211u;
    }
    return hash;
}

/* Machines differ in the sign and payload of a NaN they compute, so all are taken as one. */
static void same_nan(uint8_t *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, values + 4 * i, 4);
        bits = (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : bits;
        memcpy(values + 4 * i, &bits, 4);
    }
}

/* Values of several kinds: like activations, like gradients, constant, sparse, any bits, signs in runs or in rows. */
static void fill(uint8_t *values, size_t n, unsigned kind)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t noise = draw() << 1;
        noise ^= draw();
        float value = (float)(int32_t)noise * 0x1p-31f;
        uint32_t bits;
        value = kind == 1 && value < 0 ? 0 : kind == 2 ? value * value * value * 1e-5f : kind == 3 ? 0.5f : value;
        value = kind == 4 && noise % 50 ? 0 : value;
        value = kind == 6 ? (value < 0 ? -value : value) * (i / 23 % 2 ? -1 : 1) : value;
        value = kind == 7 ? (value < 0 ? -value : value) * (i % 32 * 7 % 13 % 2 ? -1 : 1) : value;
        memcpy(&bits, &value, 4);
        bits = kind == 5 ? noise : bits;
        memcpy(values + 4 * i, &bits, 4);
    }
}

static size_t mutate(uint8_t *encoding, size_t size)
{
    unsigned changes = draw() % 4;
    if (draw() % 3 == 0) {
        size_t most = size < 40 ? size + 1 : draw() % 8 ? 40 : size;
        size -= draw() % most;
    }
    for (unsigned i = 0; i < changes && size > 0; i++) {
        size_t near = draw() % 2 && size > 64 ? 64 : size; /* heads matter most */
        size_t at = draw() % near;
        encoding[at] = (uint8_t)draw();
    }
    return size;
}

static void *room(size_t size)
{
    void *memory = malloc(size ? size : 1);
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

static uint64_t one_case(const zc_isa *isa, uint64_t hash, unsigned long counts[2])
{
    unsigned kind = draw() % (ZC_CODECS + 1); /* the last one is topk, which writes bf16_huff */
    enum zc_codec_id id = kind == ZC_CODECS ? ZC_BF16_HUFF : (enum zc_codec_id)kind;
    size_t n = draw() % 4 ? draw() % 600 : draw() % 50 ? draw() % 9000 : draw() % (MOST / 4);
    size_t unit = id == ZC_BYTES ? 1 : 4;
    uint8_t *values = room(4 * n);
    uint8_t *encoding = room(zc_bound(id, n));
    fill(values, n, draw() % 8);
    size_t size = kind == ZC_CODECS ? isa->topk(values, n, (1 + draw() % 1000) * 0.001, encoding)
                                    : isa->encode[id](values, n, 0x1p-4f, encoding);
    hash = digest(hash, encoding, size);
    size_t left = mutate(encoding, size);
    uint8_t *exact = room(left);
    uint8_t *result = room(unit * n);
    memcpy(exact, encoding, left);
    int status = isa->decode[id](exact, left, result, n);
    hash = digest(hash, (const uint8_t *)&status, sizeof status);
    if (status == ZC_OK) {
        if (id == ZC_INT8 || id == ZC_INT4) {
            same_nan(result, n);
        }
        hash = digest(hash, result, unit * n);
    }
    counts[status == ZC_OK]++;
    free(values);
    free(encoding);
    free(exact);
    free(result);
    return hash;
}

int main(int argc, char **argv)
{
    unsigned long cases = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    const char *names[] = {"portable", "avx2", "avx512", "neon"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const zc_isa *isa = zc_pick(names[i]);
        unsigned long counts[2] = {0, 0};
        uint64_t hash = 14695981039346656037u;
        if (isa == NULL) {
            continue;
        }
        state = seed;
        for (unsigned long j = 0; j < cases; j++) {
            hash = one_case(isa, hash, counts);
        }
        printf("%-8s %lu cases, seed %llu: %lu refused, %lu decoded, digest %016llx\n", isa->name, cases,
               (unsigned long long)seed, counts[0], counts[1], (unsigned long long)hash);
    }
    return 0;
}
