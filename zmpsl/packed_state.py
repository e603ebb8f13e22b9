"""A state (named tensors) as packed bytes and back, bit for bit: for spill files and checkpoints.

    head      magic (8), bytes of the description (4), its CRC-32 (4), the description: names, dtypes, shapes, as JSON
    chunks    for each tensor in order, for each MiB of it: codec number (4), bytes (4), their CRC-32 (4), bytes

All numbers are little-endian. Only float32 goes through the codec; integers and other floats lie there as they are.
Reading never takes more memory than the tensors the reader asked for, and one chunk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from zmpsl.codecs import NONE, Codec, by_name, by_number
from zmpsl.errors import CheckpointError, RemoteProtocolError

__all__ = ["pack_state", "unpack_state", "unpack_state_into"]

Array = NDArray[np.generic]
Bytes = NDArray[np.uint8]

MAGIC = b"zmpslst1"
CHUNK = 1 << 20
MOST_DESCRIPTION = 64 << 20
MOST_BYTES = 1 << 40
DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_HEAD = struct.Struct("<8sII")
_CHUNK_HEAD = struct.Struct("<III")


class _Tensor(Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        count = 1
        for size in self.shape:  # not np.prod, which wraps
            count *= size
        return count * np.dtype(self.dtype).itemsize


_DESCRIPTION = msgspec.json.Decoder(list[_Tensor])


def pack_state(state: Mapping[str, Array], codec: Codec | None = None) -> Iterator[memoryview | bytes]:
    """Packs a state piece by piece, so that no more than a chunk of it is in memory twice.

    Args:
        state: Tensors of any shape, by name; one that is not in C order is copied. Not to be written to while pieces
            are taken: those that do not get smaller are views of it.
        codec: An exact one for float32; `huff` if not given.

    Yields:
        Pieces to be written one after the other, such as by `file.writelines`.

    Raises:
        ValueError: A tensor has another dtype than those of `DTYPES`, or the codec is not exact.
    """
    codec = codec or by_name("huff")
    if not codec.exact:
        raise ValueError(f"{codec.name} changes values; a state is packed by an exact codec")
    for name, array in state.items():
        if array.dtype.name not in DTYPES or not array.dtype.isnative:
            raise ValueError(f"{name} has dtype {array.dtype}; states hold {', '.join(DTYPES)}")
    described = msgspec.json.encode([_Tensor(name, array.dtype.name, array.shape) for name, array in state.items()])
    if len(described) > MOST_DESCRIPTION:
        raise ValueError(f"names and shapes of {len(state)} tensors take {len(described)} bytes")
    yield _HEAD.pack(MAGIC, len(described), zlib.crc32(described)) + described
    for array in state.values():
        data = _flat(np.ascontiguousarray(array))
        for start in range(0, data.nbytes, CHUNK):
            chunk = data[start : start + CHUNK].data
            packed = (codec if array.dtype == np.float32 else NONE)(chunk)
            yield _CHUNK_HEAD.pack(packed.number, len(packed.body), zlib.crc32(packed.body))
            yield packed.body


def unpack_state(
    file: BinaryIO, most_bytes: int = MOST_BYTES, room: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Reads a packed state, whatever it holds, into new arrays, or into given ones where they fit.

    Args:
        file: Open for reading, at the first byte of the packed state; left behind its last one.
        most_bytes: Most bytes that the tensors may have together.
        room: By name, arrays in C order; a tensor of that name, dtype and shape is read into it. After an error their
            values are undefined.

    Raises:
        CheckpointError: The bytes are no packed state, damaged, or hold more than `most_bytes`.
    """
    described = _described(file)
    total = sum(tensor.nbytes for tensor in described)
    if total > most_bytes:
        raise _bad(file, f"holds {total} bytes of tensors, at most {most_bytes} are allowed")
    state: dict[str, Array] = {}
    for tensor in described:
        found = None if room is None else room.get(tensor.name)
        if found is None or (found.dtype.name, found.shape) != (tensor.dtype, tensor.shape):
            try:
                found = np.empty(tensor.shape, tensor.dtype)
            except (MemoryError, ValueError) as error:
                raise _bad(file, f"tensor {tensor.name} of {tensor.nbytes} bytes: {error}") from error
        state[tensor.name] = found
        _read_into(file, tensor.name, found)
    return state


def unpack_state_into(file: BinaryIO, state: Mapping[str, Array]) -> None:
    """Reads a packed state into arrays that are there already.

    Args:
        file: As for `unpack_state`.
        state: Exactly the tensors that were packed, in the same order, each in C order; overwritten. After an error
            their values are undefined.

    Raises:
        CheckpointError: The bytes are no packed state, damaged, or hold other tensors.
    """
    described = [(tensor.name, tensor.dtype, tensor.shape) for tensor in _described(file)]
    wanted = [(name, array.dtype.name, array.shape) for name, array in state.items()]
    if described != wanted:
        pairs = zip([*described, None], [*wanted, None], strict=False)
        found, ours = next((one, other) for one, other in pairs if one != other)
        raise _bad(file, f"holds {_worded(found)} where {_worded(ours)} is expected")
    for name, array in state.items():
        _read_into(file, name, array)


def _worded(tensor: tuple[str, str, tuple[int, ...]] | None) -> str:
    return "no further tensor" if tensor is None else f"{tensor[0]} {tensor[1]}{list(tensor[2])}"


def _flat(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8)


def _bad(file: BinaryIO, what: str) -> CheckpointError:
    return CheckpointError(f"{getattr(file, 'name', 'packed state')}: {what}")


def _read(file: BinaryIO, nbytes: int) -> bytes:
    data = file.read(nbytes)
    if len(data) != nbytes:
        raise _bad(file, f"ends {nbytes - len(data)} bytes too early")
    return data


def _described(file: BinaryIO) -> list[_Tensor]:
    magic, nbytes, crc = _HEAD.unpack(_read(file, _HEAD.size))
    if magic != MAGIC:
        raise _bad(file, f"begins with {magic!r}, a packed state with {MAGIC!r}")
    if nbytes > MOST_DESCRIPTION:
        raise _bad(file, f"its description claims {nbytes} bytes, at most {MOST_DESCRIPTION} are allowed")
    data = _read(file, nbytes)
    if zlib.crc32(data) != crc:
        raise _bad(file, "its description is damaged (checksum)")
    try:
        described = _DESCRIPTION.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(file, f"its description cannot be read: {error}") from error
    names = {tensor.name for tensor in described}
    if len(names) < len(described) or any(t.dtype not in DTYPES or min(t.shape, default=0) < 0 for t in described):
        raise _bad(file, "its description has a name twice, an unknown dtype or a negative size")
    return described


def _read_into(file: BinaryIO, name: str, array: Array) -> None:
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not in C order, so it cannot be read into")
    _fill(file, name, _flat(array))


def _fill(file: BinaryIO, name: str, data: Bytes) -> None:
    for start in range(0, data.nbytes, CHUNK):
        chunk = data[start : start + CHUNK]
        number, nbytes, crc = _CHUNK_HEAD.unpack(_read(file, _CHUNK_HEAD.size))
        if nbytes > chunk.nbytes:
            raise _bad(file, f"{name}: a chunk of {chunk.nbytes} bytes is said to take {nbytes}")
        body = _read(file, nbytes)
        if zlib.crc32(body) != crc:
            raise _bad(file, f"{name}: damaged from byte {start} on (checksum)")
        try:
            codec = by_number(number)
            if not codec.exact:
                raise RemoteProtocolError(f"{codec.name} is no exact codec")
            codec.unpack_into(memoryview(body), chunk)
        except RemoteProtocolError as error:
            raise _bad(file, f"{name}: {error}") from error
