/* Encodes and decodes tensors from stdin with every codec of one set of kernels, for comparison between machines.
 *
 *     golden SET STEP < tensors > results
 *
 * A tensor is its number of float32 values (uint32) and the values. For each tensor and codec come a status (int32), the
 * encoding's size (uint32), the encoding, and the decoded values; after the codecs, exact sums (float64) of 5 times the
 * values and 7 times those one place further on, and what rounding left out of the latter. All integers are
 * little-endian, like the machines.
 */
#include "../codecs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *room(size_t size)
{
    void *memory = malloc(size ? size : 1);
    if (memory == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return memory;
}

static void put(const void *bytes, size_t size)
{
    if (fwrite(bytes, 1, size, stdout) != size) {
        exit(2);
    }
}

static void one_codec(const zc_isa *isa, enum zc_codec_id id, const uint8_t *values, size_t nbytes, float step)
{
    size_t n = id == ZC_BYTES ? nbytes : nbytes / 4;
    uint8_t *encoding = room(zc_bound(id, n));
    uint8_t *decoded = room(nbytes);
    uint32_t size = (uint32_t)isa->encode[id](values, n, step, encoding);
    int32_t status = isa->decode[id](encoding, size, decoded, n);
    put(&status, sizeof status);
    put(&size, sizeof size);
    put(encoding, size);
    put(decoded, nbytes);
    free(encoding);
    free(decoded);
}

static void exact_sums(const zc_isa *isa, const uint8_t *values, size_t n)
{
    uint8_t *sums = room(8 * n);
    uint8_t *rests = room(8 * n);
    memset(sums, 0, 8 * n);
    isa->add(values, n, 5, sums, rests);
    memset(rests, 0, 8 * n);
    if (n > 0) {
        isa->add(values + 4, n - 1, 7, sums, rests);
    }
    put(sums, 8 * n);
    put(rests, 8 * n);
    free(sums);
    free(rests);
}

int main(int argc, char **argv)
{
    const zc_isa *isa = argc == 3 ? zc_pick(argv[1]) : NULL;
    uint32_t n;
    if (isa == NULL) {
        fprintf(stderr, "golden SET STEP, with a set of this machine\n");
        return 1;
    }
    while (fread(&n, sizeof n, 1, stdin) == 1) {
        size_t nbytes = 4 * (size_t)n;
        uint8_t *values = room(nbytes);
        if (fread(values, 1, nbytes, stdin) != nbytes) {
            return 2;
        }
        for (int id = 0; id < ZC_CODECS; id++) {
            one_codec(isa, (enum zc_codec_id)id, values, nbytes, strtof(argv[2], NULL));
        }
        exact_sums(isa, values, n);
        free(values);
    }
    return 0;
}
