"""NumPy reference of every codec kernel: the specification of their bytes, and what runs where there is no compiler.

Every function has a twin in C (`codecs/`) that gives the same bytes for the same input. All numbers are little-endian.
Encoders take values as float32 (`bytes_*`: any bytes), write at most `*_bound(n)` bytes and give the number written;
decoders take exactly one encoding and fill the destination. How an entropy-coded plane looks is told in
`zmpsl.kernels.planes`; the layouts of the other formats stand at their encoders, here and in `zmpsl.kernels.plain`.
"""

from __future__ import annotations

import numpy as np

from zmpsl.kernels.plain import (
    F32,
    U8,
    U32,
    Buffer,
    bf16_bound,
    bf16_decode_into,
    bf16_encode_into,
    bf16_round,
    bitmap_bound,
    bitmap_decode_into,
    bitmap_encode_into,
    bits_of,
    blocks_of,
    destination,
    int4_bound,
    int4_decode_into,
    int4_encode_into,
    int8_bound,
    int8_decode_into,
    int8_encode_into,
    map_of,
    mask_into,
    number,
    pack_into,
    put,
    raw,
    source,
    unmap,
    unpack_into,
)
from zmpsl.kernels.planes import BLOCK, Reader, encode_plane
from zmpsl.kernels.signs import decode_signs, encode_signs
from zmpsl.kernels.sums import add_into

__all__ = [
    "ISA", "add_into", "bf16_bound", "bf16_decode_into", "bf16_encode_into", "bf16_huff_bound", "bf16_huff_decode_into",
    "bf16_huff_encode_into", "bitmap_bound", "bitmap_decode_into", "bitmap_encode_into", "bytes_bound",
    "bytes_decode_into", "bytes_encode_into", "huff_bound", "huff_decode_into", "huff_encode_into", "int4_bound",
    "int4_decode_into", "int4_encode_into", "int8_bound", "int8_decode_into", "int8_encode_into", "mask_into",
    "mean_square", "pack_into", "qz_bound", "qz_decode_into", "qz_encode_into", "topk_encode_into", "unpack_into",
]  # fmt: skip

ISA = "numpy"
STEP_MIN = 2.0**-100
STEP_MAX = 2.0**100
DENSE, POSITIVE, SIGNS = 1, 2, 4
ESCAPE = -128
SAMPLE = 8192


# Entropy-coded forms, in blocks of 65,536 values.


def bytes_bound(n: int) -> int:
    """Gives the most bytes that n bytes can need."""
    return number(n) + blocks_of(n, BLOCK)


def bytes_encode_into(src: Buffer, dst: Buffer) -> int:
    """Writes one plane per block of any bytes."""
    data = source(src, 1)
    out = destination(dst, bytes_bound(data.size), data)
    return put(out, [encode_plane(data[at : at + BLOCK]) for at in range(0, data.size, BLOCK)])


def bytes_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `bytes_encode_into`."""
    data = source(src, 1)
    out = destination(dst, 0, data)
    reader = Reader(data, out.size)
    parts = [reader.plane(min(BLOCK, out.size - at)) for at in range(0, out.size, BLOCK)]
    reader.finish()
    return put(out, parts)


def _squeeze(middle: U8) -> U8:
    """Puts 8 bytes of 7 bits into 7; bytes beyond the last 8 stay as they are."""
    whole = middle.size // 8 * 8
    bits = np.unpackbits(middle[:whole].reshape(-1, 1), axis=1, bitorder="little")[:, :7]
    return np.concatenate([np.packbits(bits.ravel(), bitorder="little"), middle[whole:]])


def _unsqueeze(data: U8, count: int) -> U8:
    packed = count // 8 * 7
    bits = np.unpackbits(data[:packed], bitorder="little").reshape(-1, 7)
    return np.concatenate([np.packbits(bits, axis=1, bitorder="little").ravel(), data[packed:]])


def _encode_floats(bits: U32, half: bool) -> list[U8]:
    """Gives a block of huff or bf16-huff; k is the number of values with any bit set (after rounding to bf16).

    In order: flags u8 (1: k = n, no bitmap; 2: no value is negative; 4: signs go with the exponents), k u16 modulo
    65536, the lower 16 bits of each value (not for bf16), sign and upper 7 bits of the mantissa as a byte each (8 of
    them in 7 bytes with flag 2 or 4, without signs), a plane of the exponents (with flag 4 as `zmpsl.kernels.signs`
    says), a plane of the bitmap (unless flag 1). Flag 4 is for what it makes smaller by a byte in 64 values at least,
    and never goes with flag 2.
    """
    bits = bf16_round(bits) if half else bits
    kept = bits[bits != 0]
    dense = kept.size == bits.size
    flag, middle, exponents = _middle_and_exponents(kept)
    return [
        np.array([(DENSE if dense else 0) | flag, kept.size & 255, kept.size >> 8 & 255], np.uint8),
        *([] if half else [raw(kept & 0xFFFF, "<u2")]),
        middle,
        exponents,
        *([] if dense else [encode_plane(map_of(bits))]),
    ]


def _middle_and_exponents(kept: U32) -> tuple[int, U8, U8]:
    middle = (kept >> 16 & 0x7F).astype(np.uint8)
    exponents = (kept >> 23).astype(np.uint8)
    negative = kept >> 31 != 0
    plane = encode_plane(exponents)
    if not negative.any():
        return POSITIVE, _squeeze(middle), plane
    together = encode_signs(exponents, negative)
    squeezed = middle.size - middle.size // 8
    if together is not None and squeezed + together.size + middle.size // 64 <= middle.size + plane.size:
        return SIGNS, _squeeze(middle), together
    return 0, middle | np.where(negative, np.uint8(0x80), np.uint8(0)), plane


def _least_to_keep(sizes: U32, share: float) -> int:
    """Gives the least magnitude of about the wanted share of all values, as bits of a float32.

    It comes from a sample: groups of 8 values at even distances, about `SAMPLE` in all; every value where there are
    fewer than twice as many. The distance is an odd number of groups, or the sample would see the same pixels of every
    image. It is the largest multiple of 2^12 that keeps the wanted share of the sample.
    """
    apart = 1 if sizes.size < 2 * SAMPLE else sizes.size // SAMPLE | 1
    sample = sizes
    if apart > 1:
        sample = sizes[: sizes.size // 8 * 8].reshape(-1, 8)[::apart].ravel()
    wanted = max(1, int(share * sample.size + 0.5))
    return int(np.sort(sample >> 12)[-wanted]) << 12 if sample.size else 0


def topk_encode_into(src: Buffer, dst: Buffer, share: float) -> int:
    """Writes the largest values, about this share of all, as `bf16_huff_encode_into` does; the others become 0."""
    if not 0 < share <= 1:
        raise ValueError("the share must lie above 0 and be 1 at most")
    data = source(src)
    destination(dst, bf16_huff_bound(data.size // 4), data)
    bits = bits_of(data)
    sizes = bits & np.uint32(0x7FFFFFFF)
    return bf16_huff_encode_into(np.where(sizes < _least_to_keep(sizes, share), np.uint32(0), bits), dst)


def _decode_floats(reader: Reader, n: int, half: bool) -> U32:
    head = reader.take(3)
    flags, count = int(head[0]), int(head[1]) | int(head[2]) << 8
    if flags > (SIGNS | DENSE) or (count != n & 0xFFFF if flags & DENSE else count >= n):
        raise reader.contradiction()
    count = n if flags & DENSE else count
    low = np.frombuffer(b"" if half else reader.take(2 * count).tobytes(), "<u2").astype(np.uint32)
    squeezed = flags & (POSITIVE | SIGNS)
    middle = _unsqueeze(reader.take(count - count // 8), count) if squeezed else reader.take(count)
    if flags & SIGNS:
        exponents, negative = decode_signs(reader, count)
    else:
        exponents, negative = reader.plane(count), middle >= 0x80
    high = (
        negative.astype(np.uint32) << 31 | exponents.astype(np.uint32) << 23 | (middle & 0x7F).astype(np.uint32) << 16
    )
    kept: U32 = (high if half else high | low).astype(np.uint32)
    if flags & DENSE:
        return kept
    places = unmap(reader.plane(blocks_of(n, 8)), n)
    if int(places.sum()) != count:
        raise reader.contradiction()
    bits = np.zeros(n, np.uint32)
    bits[places] = kept
    return bits


def _floats_into(src: Buffer, dst: Buffer, half: bool) -> int:
    data = source(src)
    bound = bf16_huff_bound if half else huff_bound
    out = destination(dst, bound(data.size // 4), data)
    bits = bits_of(data)
    return put(out, [part for at in range(0, bits.size, BLOCK) for part in _encode_floats(bits[at : at + BLOCK], half)])


def _floats_from(src: Buffer, dst: Buffer, half: bool) -> int:
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    n = out.size // 4
    reader = Reader(data, out.size)
    parts = [raw(_decode_floats(reader, min(BLOCK, n - at), half), "<u4") for at in range(0, n, BLOCK)]
    reader.finish()
    return put(out, parts)


def huff_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return 4 * number(n) + blocks_of(n, 8) + 4 * blocks_of(n, BLOCK)


def huff_encode_into(src: Buffer, dst: Buffer) -> int:
    """Packs without loss: bitmap of zeros and Huffman's code for exponents."""
    return _floats_into(src, dst, half=False)


def huff_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `huff_encode_into`, bit for bit."""
    return _floats_from(src, dst, half=False)


def bf16_huff_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return 2 * number(n) + blocks_of(n, 8) + 4 * blocks_of(n, BLOCK)


def bf16_huff_encode_into(src: Buffer, dst: Buffer) -> int:
    """Rounds to bf16 and packs that without further loss, as `huff_encode_into` does."""
    return _floats_into(src, dst, half=True)


def bf16_huff_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `bf16_huff_encode_into`: the values rounded to bf16."""
    return _floats_from(src, dst, half=True)


def mean_square(src: Buffer) -> float:
    """Gives the mean of the squares; values that are not finite count as 0.

    Sixteen interleaved lanes are summed one by one, then the lanes in order: the same result on every machine.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN
        values = bits_of(source(src)).view(np.float32).astype(np.float64)
    if values.size == 0:
        return 0.0
    padded = np.zeros(blocks_of(values.size, 16) * 16)
    padded[: values.size] = np.where(np.isfinite(values), values, 0.0)
    total = 0.0
    for lane in np.cumsum(np.square(padded).reshape(-1, 16), axis=0)[-1]:
        total += float(lane)
    return total / values.size


def _check_step(step: float) -> np.float32:
    single = np.float32(step)
    if not STEP_MIN <= single <= STEP_MAX:
        raise ValueError("the step must lie between 2**-100 and 2**100")
    return single


def qz_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return 4 + 5 * number(n) + blocks_of(n, 8) + 10 * blocks_of(n, BLOCK)


def _encode_codes(values: F32, inverse: np.float32) -> list[U8]:
    """Gives a block of qz: k u32 and e u32 (codes not 0; escapes), the e escaped values, planes of codes and bitmap.

    A code is round(x / step) as int8 within +-127; what has none (too large, NaN, infinite) is escaped: code -128.
    """
    with np.errstate(all="ignore"):
        scaled = values * inverse
        inside = np.abs(scaled) < 127.5
        codes = np.where(inside, np.rint(np.where(inside, scaled, 0)), ESCAPE).astype(np.int8)
    kept = codes[codes != 0]
    escaped = values[codes == ESCAPE]
    return [
        raw(np.array([kept.size, escaped.size]), "<u4"),
        raw(escaped.view(np.uint32), "<u4"),
        encode_plane(kept.view(np.uint8)),
        encode_plane(map_of(codes)),
    ]


def qz_encode_into(src: Buffer, dst: Buffer, step: float) -> int:
    """Writes the step (f32, within 2**-100 and 2**100) and the blocks."""
    data = source(src)
    single = _check_step(step)
    out = destination(dst, qz_bound(data.size // 4), data)
    values = bits_of(data).view(np.float32)
    inverse = np.float32(1) / single
    blocks = (_encode_codes(values[at : at + BLOCK], inverse) for at in range(0, values.size, BLOCK))
    return put(out, [raw(np.array([single]), "<f4"), *(part for block in blocks for part in block)])


def _decode_codes(reader: Reader, n: int, step: np.float32) -> U32:
    count, escapes = (int(number) for number in np.frombuffer(reader.take(8).tobytes(), "<u4"))
    if count > n or escapes > count:
        raise reader.contradiction()
    exact = bits_of(reader.take(4 * escapes))
    kept = reader.plane(count).view(np.int8)
    places = unmap(reader.plane(blocks_of(n, 8)), n)
    if int(places.sum()) != count or int((kept == ESCAPE).sum()) != escapes:
        raise reader.contradiction()
    codes = np.zeros(n, np.int8)
    codes[places] = kept
    bits = (codes.astype(np.float32) * step).view(np.uint32)
    bits[codes == ESCAPE] = exact
    return bits


def qz_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `qz_encode_into`: each value within half a step, escaped ones exactly."""
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    n = out.size // 4
    reader = Reader(data, out.size)
    step = _check_step(float(np.frombuffer(reader.take(4).tobytes(), "<f4")[0]))
    parts = [raw(_decode_codes(reader, min(BLOCK, n - at), step), "<u4") for at in range(0, n, BLOCK)]
    reader.finish()
    return put(out, parts)
