"""NumPy twins of the codecs without entropy coding, and of the known-mask packing: the specification of their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    *(f"{name}_{end}" for name in ("bf16", "int8", "int4", "bitmap")
      for end in ("encode_into", "decode_into", "bound")),
    "bf16_round", "bits_of", "blocks_of", "destination", "map_of", "mask_into", "number", "pack_into", "put", "raw",
    "source", "unmap", "unpack_into",
]  # fmt: skip

INT8_BLOCK = 256
INT4_BLOCK = 64
_F32_TINY = np.float32(2.0**-126)

Buffer = Any  # whatever has the buffer protocol; typing has no name for it before Python 3.12
U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]


def source(src: Buffer, unit: int = 4) -> U8:
    """Gives the bytes of a source, which must be whole values."""
    data = np.frombuffer(src, np.uint8)
    if data.size % unit:
        raise ValueError(f"the source has {data.size} bytes, which is no whole number of values of {unit} bytes")
    return data


def destination(dst: Buffer, need: int, *sources: U8, unit: int = 1) -> U8:
    """Gives the bytes of a destination with room for `need`, apart from every source."""
    view = memoryview(dst)
    if view.readonly:
        raise TypeError("the destination is read-only")
    if not view.c_contiguous:
        raise BufferError("the destination is not contiguous")
    data = np.frombuffer(view, np.uint8)
    if data.size % unit:
        raise ValueError(f"the destination has {data.size} bytes, which is no whole number of values of {unit} bytes")
    if any(np.may_share_memory(data, source) for source in sources):
        raise ValueError("the destination overlaps an input; inputs are never written")
    if data.size < need:
        raise ValueError(f"the destination has {data.size} bytes, up to {need} are needed")
    return data


def bits_of(data: U8) -> U32:
    """The values as integers, in an array of its own, wherever the bytes started."""
    return np.frombuffer(data.tobytes(), "<u4").astype(np.uint32)


def put(dst: U8, parts: list[U8]) -> int:
    """Writes the parts one behind another and gives their size."""
    whole = np.concatenate([np.zeros(0, np.uint8), *parts])
    dst[: whole.size] = whole
    return int(whole.size)


def raw(values: NDArray[Any], kind: str) -> U8:
    """Gives the bytes of values of that dtype."""
    return np.frombuffer(np.ascontiguousarray(values).astype(kind).tobytes(), np.uint8)


def _exactly(data: U8, need: int, room: int) -> None:
    if data.size != need:
        problem = "it ends too early" if data.size < need else "bytes are left over"
        raise ValueError(f"an encoding of {data.size} bytes cannot be unpacked into {room}: {problem}")


def blocks_of(n: int, block: int) -> int:
    """Gives the number of blocks that n values fill, the last perhaps in part."""
    return -(-n // block)


def number(n: int) -> int:
    """Gives n itself, where it can be a number of values."""
    if n < 0:
        raise ValueError(f"{n} is no number of values")
    return n


# bf16: the upper half of a float32, rounded to nearest, ties to even; a NaN stays a (quiet) NaN.


def bf16_round(bits: U32) -> U32:
    """Rounds to bf16 and gives the float32 of that value, as bits."""
    rounded = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, bits | np.uint32(0x400000), rounded) & np.uint32(0xFFFF0000)


def bf16_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return 2 * number(n)


def bf16_encode_into(src: Buffer, dst: Buffer) -> int:
    """Writes two bytes per value."""
    data = source(src)
    out = destination(dst, bf16_bound(data.size // 4), data)
    return put(out, [raw(bf16_round(bits_of(data)) >> 16, "<u2")])


def bf16_decode_into(src: Buffer, dst: Buffer) -> int:
    """Widens to float32, exactly."""
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    _exactly(data, out.size // 2, out.size)
    values = np.frombuffer(data.tobytes(), "<u2").astype(np.uint32)
    return put(out, [raw(values << 16, "<u4")])


# int8, int4: a minimum and a step per block, value = minimum + code * step. A block that holds a NaN or an infinity, or
# whose range is no float32, has NaN for both and decodes to NaN throughout, so it cannot pass unseen.


def _rows(values: F32, block: int) -> F32:
    """Gives one row per block; the last one is filled up with its last value, which changes neither end."""
    missing = -values.size % block
    return np.concatenate([values, np.repeat(values[-1:], missing)]).reshape(-1, block)


def _ends(rows: F32) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Gives least and greatest values, and which rows are finite."""
    finite: NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(rows), axis=1)
    return rows.min(axis=1) + np.float32(0), rows.max(axis=1) + np.float32(0), finite  # + 0 turns -0 into 0


def _codes(rows: F32, low: F32, step: F32, sound: NDArray[np.bool_]) -> U8:
    inverse = np.where(step > 0, np.float32(1) / step, np.float32(0))
    # As float64 the product is exact, so it is rounded once.
    scaled = np.rint((rows - low[:, None]).astype(np.float64) * inverse[:, None])
    return np.where(sound[:, None], scaled, 0).astype(np.uint8)


def _settle(low: F32, step: F32, sound: NDArray[np.bool_]) -> tuple[F32, F32]:
    """Gives the scales as they are written: no subnormal step, NaN where a block is not sound."""
    nan = np.uint32(0x7FC00000).view(np.float32)
    step = np.where(step < _F32_TINY, np.float32(0), step)
    return np.where(sound, low, nan), np.where(sound, step, nan)


def _join(scales: U8, codes: U8, size: int) -> U8:
    """Puts each row's scales before its codes; `size` bytes are meant."""
    return np.concatenate([scales, codes], axis=1).ravel()[:size]


def int8_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return number(n) + 8 * blocks_of(n, INT8_BLOCK)


def int8_encode_into(src: Buffer, dst: Buffer) -> int:
    """Writes, per block of 256 values: minimum f32, step f32, one byte per value."""
    data = source(src)
    size = int8_bound(data.size // 4)
    out = destination(dst, size, data)
    if size == 0:
        return 0
    with np.errstate(all="ignore"):
        rows = _rows(bits_of(data).view(np.float32), INT8_BLOCK)
        low, high, finite = _ends(rows)
        sound = finite & np.isfinite(high - low)
        low, step = _settle(low, (high - low) / np.float32(255), sound)
        codes = _codes(rows, low, step, sound)
    scales = raw(np.stack([low, step], axis=1).view(np.uint32), "<u4").reshape(-1, 8)
    return put(out, [_join(scales, codes, size)])


def _split(data: U8, scale_bytes: int, code_bytes: int) -> tuple[U8, U8]:
    """Takes scales and codes of each block apart, the last block filled up with zeros."""
    row = scale_bytes + code_bytes
    rows = np.concatenate([data, np.zeros(-data.size % row, np.uint8)]).reshape(-1, row)
    return rows[:, :scale_bytes], rows[:, scale_bytes:]


def _decoded(scales: F32, codes: U8, n: int) -> U8:
    with np.errstate(all="ignore"):
        values = scales[:, :1] + codes.astype(np.float32) * scales[:, 1:]
    return raw(values.ravel()[:n].view(np.uint32), "<u4")


def int8_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `int8_encode_into`; any bytes of the right number are an encoding."""
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    _exactly(data, int8_bound(out.size // 4), out.size)
    scales, codes = _split(data, 8, INT8_BLOCK)
    return put(out, [_decoded(np.frombuffer(scales.tobytes(), "<f4").reshape(-1, 2), codes, out.size // 4)])


def _bf16_toward(values: F32, *, down: bool) -> F32:
    """Gives the next bf16 not above (down) or not below each value: all values stay inside the 15 steps."""
    bits = values.view(np.uint32)
    away = (bits >> 31 != 0) if down else (bits >> 31 == 0)
    nearby: U32 = (bits + np.where(away, np.uint32(0xFFFF), np.uint32(0))) & np.uint32(0xFFFF0000)
    return nearby.view(np.float32)


def int4_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return blocks_of(number(n), 2) + 4 * blocks_of(n, INT4_BLOCK)


def _paired(codes: U8) -> U8:
    """Puts two codes of a row into each byte: the low bits from its first half, the high ones from its second."""
    half = blocks_of(codes.shape[1], 2)
    second = np.zeros((len(codes), half), np.uint8)
    second[:, : codes.shape[1] - half] = codes[:, half:]
    return codes[:, :half] | (second << 4).astype(np.uint8)


def int4_encode_into(src: Buffer, dst: Buffer) -> int:
    """Writes, per block of 64 values: minimum bf16, step bf16, two values per byte, which stand half a block apart."""
    data = source(src)
    n = data.size // 4
    size = int4_bound(n)
    out = destination(dst, size, data)
    if size == 0:
        return 0
    with np.errstate(all="ignore"):
        rows = _rows(bits_of(data).view(np.float32), INT4_BLOCK)
        low, high, finite = _ends(rows)
        low = _bf16_toward(low, down=True)
        sound = finite & np.isfinite(high - low)
        step = _bf16_toward((high - low) / np.float32(15), down=False)
        low, step = _settle(low, step, sound)
        codes = _codes(rows, low, step, sound)
    scales = raw(np.stack([low, step], axis=1).view(np.uint32) >> 16, "<u2").reshape(-1, 4)
    whole, rest = divmod(n, INT4_BLOCK)
    packed = _paired(codes[:whole]), _paired(codes[whole:, :rest])
    rows_of = zip((scales[:whole], scales[whole:]), packed, strict=True)
    return put(out, [np.concatenate(one, axis=1).ravel() for one in rows_of])


def int4_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `int4_encode_into`; any bytes of the right number are an encoding."""
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    n = out.size // 4
    _exactly(data, int4_bound(n), out.size)
    whole = int4_bound(n // INT4_BLOCK * INT4_BLOCK)
    parts = []
    for packed, count in ((data[:whole], INT4_BLOCK), (data[whole:], n % INT4_BLOCK)):
        rows = packed.reshape(-1, int4_bound(count) or 1)
        scales = np.frombuffer(rows[:, :4].tobytes(), "<u2").astype(np.uint32) << 16
        codes = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)[:, :count]
        parts.append(_decoded(scales.astype(np.uint32).view(np.float32).reshape(-1, 2), codes, codes.size))
    return put(out, parts)


# Non-zero bitmap and packed values; a value counts as zero when all its bits are, so -0 travels.


def map_of(bits: NDArray[Any]) -> U8:
    """Gives one bit per value, set where it is not 0, the first in the lowest bit."""
    return np.packbits(bits != 0, bitorder="little")


def unmap(data: U8, n: int) -> NDArray[np.bool_]:
    """Undoes `map_of` for n values."""
    flags = np.unpackbits(data, bitorder="little").astype(bool)
    if flags[n:].any():
        raise ValueError(f"the mask has bits set beyond its {n} values")
    return flags[:n]


def bitmap_bound(n: int) -> int:
    """Gives the most bytes that n values can need."""
    return blocks_of(number(n), 8) + 4 * n


def bitmap_encode_into(src: Buffer, dst: Buffer) -> int:
    """Writes one bit per value, the first in the lowest bit, and the values that are not 0."""
    data = source(src)
    out = destination(dst, bitmap_bound(data.size // 4), data)
    bits = bits_of(data)
    return put(out, [map_of(bits), raw(bits[bits != 0], "<u4")])


def bitmap_decode_into(src: Buffer, dst: Buffer) -> int:
    """Undoes `bitmap_encode_into`."""
    data = source(src, 1)
    out = destination(dst, 0, data, unit=4)
    n = out.size // 4
    size = blocks_of(n, 8)
    if data.size < size:
        _exactly(data, size, out.size)
    flags = unmap(data[:size], n)
    _exactly(data, size + 4 * int(flags.sum()), out.size)
    bits = np.zeros(n, np.uint32)
    bits[flags] = bits_of(data[size:])
    return put(out, [raw(bits, "<u4")])


def mask_into(src: Buffer, dst: Buffer) -> int:
    """Writes the bitmap alone."""
    data = source(src)
    out = destination(dst, blocks_of(data.size // 4, 8), data)
    return put(out, [map_of(bits_of(data))])


def _known(mask: U8, n: int) -> NDArray[np.bool_]:
    if mask.size != blocks_of(n, 8):
        raise ValueError(f"the mask has {mask.size} bytes, {n} values need {blocks_of(n, 8)}")
    return unmap(mask, n)


def pack_into(src: Buffer, mask: Buffer, dst: Buffer) -> int:
    """Writes the values under a mask that the receiver knows, in order."""
    data, known = source(src), source(mask, 1)
    flags = _known(known, data.size // 4)
    out = destination(dst, 4 * int(flags.sum()), data, known)
    return put(out, [raw(bits_of(data)[flags], "<u4")])


def unpack_into(src: Buffer, mask: Buffer, dst: Buffer) -> int:
    """Undoes `pack_into`; values outside the mask become 0."""
    data, known = source(src, 1), source(mask, 1)
    out = destination(dst, 0, data, known, unit=4)
    flags = _known(known, out.size // 4)
    if data.size != 4 * int(flags.sum()):
        raise ValueError(f"the source has {data.size} bytes, the mask asks for {4 * int(flags.sum())}")
    bits = np.zeros(flags.size, np.uint32)
    bits[flags] = bits_of(data)
    return put(out, [raw(bits, "<u4")])
