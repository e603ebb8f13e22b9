/* All kernels of one instruction set, gathered into its table; everything in them is static, so no code of one set can
 * be linked into another. */
#include "../codecs.h"
#include "bf16.h"
#include "bitmap.h"
#include "blockwise.h"
#include "bytes.h"
#include "sums.h"
/* these stand on bf16, bitmap and bytes */
#include "floats.h"
#include "qz.h"
#include "topk.h"

const zc_isa ZC_ISA_SYMBOL = {
    .name = ZC_ISA_NAME,
    .encode = {bf16_encode, int8_encode, int4_encode, bitmap_encode, bytes_encode, huff_encode, bf16_huff_encode,
               qz_encode},
    .decode = {bf16_decode, int8_decode, int4_decode, bitmap_decode, bytes_decode, huff_decode, bf16_huff_decode,
               qz_decode},
    .topk = topk_encode,
    .mean_square = mean_square,
    .add = add_exactly,
    .mask = mask_of,
    .count = zc_count_mask,
    .pack = pack_masked,
    .unpack = unpack_masked,
};
