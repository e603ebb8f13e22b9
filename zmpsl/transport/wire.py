"""Task <-> bytes: one fixed header per message, payloads in chunks of at most 1 MiB.

A task without a tensor is one message, its header. A task with a tensor is one message per chunk: header and chunk.
Every header carries the whole task, so each message can be checked on its own. How messages lie in ZeroMQ's frames:

    small   the chunk is sent in at most 64 KiB, or there is none: the chunk stands right behind its header. One frame
            holds one such message, or several behind each other, without gaps: what waited when the frame was made
    large   a ZeroMQ message of two frames, header and chunk

Copying a small chunk costs less than handing libzmq a frame more, and a frame costs much the same whatever its size.

    offset  size  field
         0     2  magic b"zP"
         2     1  version of this layout
         3     1  op
         4     1  codec of this chunk
         5     1  dtype (0: no tensor; else position in task.DTYPES plus 1)
         6     1  number of dimensions, at most 8
         7     1  flags: 1 FORWARD: a ReLU's output; BACKWARD: only the values under that output's mask
                         2 the chunk has a checksum
         8    20  plan, owner, round, epoch, batch         5 x uint32
        28     6  micro, micros, sender                    3 x uint16
        34     2  zero
        36    16  count, credit                            2 x uint64
        52    16  total bytes of the tensor, offset of this chunk in it, unpacked   2 x uint64
        68     8  bytes of this chunk unpacked, packed     2 x uint32
        76    64  dimensions                               8 x uint64
       140     8  XXH3-64 of the chunk as sent, zero without the flag     uint64
       148     4  CRC-32 of the 148 bytes before

Numbers are little-endian. Chunks are cut at multiples of 1 MiB and come in order on one connection.
Why chunks: the receiver's memory is bounded before it reads (MAXMSGSIZE), heartbeats pass between them on slow links,
and libzmq's allocator keeps its pages (docs/protocol.md tells the measurements).

What was changed on the way is told from what was never ours: DamagedError says whose message is lost by it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from zlib import crc32

import numpy as np
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from zmpsl.codecs import CODECS, NONE, Packed
from zmpsl.errors import LocalProtocolError, RemoteProtocolError
from zmpsl.transport.damage import DamagedError, mended
from zmpsl.transport.task import DTYPES, FLOAT32, LOSSY_OPS, Op, Task

__all__ = [
    "CHUNK",
    "HEADER_BYTES",
    "INLINE",
    "MAX_DIMS",
    "MAX_MESSAGE",
    "OWNER_SENDER",
    "Header",
    "Message",
    "Packing",
    "check_chunk",
    "messages",
    "only_message",
    "parse",
    "payload_bytes",
    "split",
]

CHUNK = 1 << 20
INLINE = 1 << 16
MAX_DIMS = 8
VERSION = 3
MAGIC = b"zP"
OWNER_SENDER = 0xFFFF

# The two strings are what one tensor after the other has in common; see `_layout`.
_HEADER = struct.Struct("<2sBB 4s IIIII HHHH QQ 88s Q I")
_KIND = struct.Struct("<BBBB")
_SIZES = struct.Struct(f"<QQ II {MAX_DIMS}Q")
HEADER_BYTES = _HEADER.size
_BODY_BYTES = HEADER_BYTES - 4  # what the CRC is of
_SEALED = 2  # the flag of a chunk with a checksum
# What libzmq may accept in one frame: a chunk and room for a header.
MAX_MESSAGE = CHUNK + 4096

_NOTHING = memoryview(b"")
_NO_DIMS = [0] * MAX_DIMS
_OPS = {int(op): op for op in Op}
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES, 1)}


# Header and chunk; no chunk for a task without a tensor.
Message = tuple[bytes, memoryview | bytes | None]
# Packs the chunks of one tensor, in order: a chunk and its offset go in. Every codec is one.
Packing = Callable[[memoryview, int], Packed]


class Header(Struct, frozen=True):
    """One parsed and checked header.

    Attributes:
        task: The task without its tensor.
        codec: Number of the chunk's codec.
        dtype: The tensor's dtype, None without a tensor.
        shape: The tensor's shape.
        credit: Bytes the sender gives back to us for this owner.
        total: Bytes of the whole tensor.
        offset: Where this chunk starts in it.
        raw: Bytes of this chunk, unpacked.
        size: Bytes of this chunk as sent.
        masked: BACKWARD: the chunk holds only the values under the mask that both ends know.
        seal: Checksum of the chunk as sent, None where it has none.
    """

    task: Task
    codec: int
    dtype: np.dtype[np.generic] | None
    shape: tuple[int, ...]
    credit: int
    total: int
    offset: int
    raw: int
    size: int
    masked: bool = False
    seal: int | None = None


def payload_bytes(task: Task) -> memoryview:
    """Gives the tensor's own bytes, without a copy.

    Raises:
        LocalProtocolError: The tensor is not C-contiguous, or its dtype cannot travel.
    """
    tensor = task.tensor
    if tensor is None:
        return _NOTHING
    if not tensor.flags.c_contiguous:
        raise LocalProtocolError(f"{task}: tensor with strides {tensor.strides} is not C-contiguous")
    if tensor.dtype not in _DTYPE_CODES or tensor.ndim > MAX_DIMS:
        raise LocalProtocolError(f"{task}: dtype {tensor.dtype} with {tensor.ndim} dimensions cannot travel")
    return tensor.data.cast("B") if tensor.nbytes else _NOTHING


def messages(
    task: Task, packing: Packing, credit: int, sender: int | None = None, *, sealed: bool = False
) -> Iterator[Message]:
    """Gives a task's messages one after the other, packed when they are asked for.

    Args:
        task: What to send; its tensor is read, never written.
        packing: How to pack; a chunk that would not get smaller travels as it is.
        credit: Bytes given back to the receiver for this owner, told once, in the first message.
        sender: Place code of who sends it; the task's if not given.
        sealed: Give each chunk a checksum.

    Yields:
        Header and chunk of each message; the chunk is None for a task without a tensor.

    Raises:
        LocalProtocolError: The tensor cannot travel.
    """
    sender = task.sender if sender is None else sender
    data = payload_bytes(task)
    total = len(data)
    for offset in range(0, max(total, 1), CHUNK):
        yield _message(task, packing, credit, sender, data[offset : offset + CHUNK], total, offset, sealed)
        credit = 0


def only_message(task: Task, packing: Packing, credit: int, sender: int, sealed: bool) -> Message:
    """Gives the message of a task whose tensor, if any, is one chunk: `messages` without the generator."""
    data = payload_bytes(task)
    return _message(task, packing, credit, sender, data, len(data), 0, sealed)


def _message(
    task: Task, packing: Packing, credit: int, sender: int, chunk: memoryview, total: int, offset: int, sealed: bool
) -> Message:
    tensor = task.tensor
    if tensor is None:
        return _header(task, sender, credit, *_NO_TENSOR), None
    raw = len(chunk)
    number, masked, body = (NONE.number, False, chunk) if packing is NONE else packing(chunk, offset)
    flags = (task.relu or masked) + _SEALED * sealed
    kind, sizes = _written(number, _DTYPE_CODES[tensor.dtype], flags, tensor.shape, total, offset, raw, len(body))
    return _header(task, sender, credit, kind, sizes, xxh3_64_intdigest(body) if sealed else 0), body


def _header(task: Task, sender: int, credit: int, kind: bytes, sizes: bytes, seal: int = 0) -> bytes:
    try:
        body = _HEADER.pack(
            MAGIC, VERSION, task.op, kind,
            task.plan, task.owner, task.round, task.epoch, task.batch, task.micro, task.micros, sender, 0,
            task.count, credit, sizes, seal, 0,
        )[:_BODY_BYTES]  # fmt: skip
    except struct.error as error:
        raise LocalProtocolError(f"{task}: a number has no room in the header: {error}") from error
    return body + crc32(body).to_bytes(4, "little")


@lru_cache(1024)
def _written(
    codec: int, dtype: int, flags: int, shape: tuple[int, ...], total: int, offset: int, raw: int, size: int
) -> tuple[bytes, bytes]:
    """Gives the two parts of a header that tell of the chunk alone; they repeat from task to task."""
    dims = (*shape, *_NO_DIMS[len(shape) :])
    return _KIND.pack(codec, dtype, len(shape), flags), _SIZES.pack(total, offset, raw, size, *dims)


_NO_TENSOR = _written(0, 0, 0, (), 0, 0, 0, 0)


def parse(data: bytes | memoryview, limit: int) -> Header:
    """Reads and checks a header. Nothing of it is believed before it has been checked.

    Args:
        data: The first HEADER_BYTES of a message.
        limit: The most bytes a tensor may have.

    Returns:
        The header.

    Raises:
        RemoteProtocolError: Anything in it is not as this module writes it.
        DamagedError: It was a header of ours, as far as can be told, and has been changed on the way.
    """
    if len(data) != HEADER_BYTES:
        raise RemoteProtocolError(f"a header has {HEADER_BYTES} bytes, this frame {len(data)}")
    (magic, version, op, kind, plan, owner, round_, epoch, batch, micro, micros, sender, zero, count, credit,
     sizes, seal, checksum) = _HEADER.unpack(data)  # fmt: skip
    intact = checksum == crc32(data[:_BODY_BYTES])
    if magic != MAGIC or version != VERSION:
        text = f"header with magic {magic!r} version {version}, expected {MAGIC!r} version {VERSION}"
        raise RemoteProtocolError(text) if intact else _damaged(text, data, limit)
    if not intact:
        raise _damaged("header checksum does not match", data, limit)
    if op not in _OPS or zero or micro >= micros:
        raise RemoteProtocolError(f"header with op {op} micro {micro} of {micros} and {zero} where zero must be")
    codec, dtype, shape, total, offset, raw, size, relu, masked, sealed = _layout(op, kind, sizes)
    if seal and not sealed:
        raise RemoteProtocolError(f"header with checksum {seal:016x} of a chunk that has none")
    if total > limit:
        raise RemoteProtocolError(f"tensor of {total} bytes is over the limit of {limit} (network.max_tensor_bytes)")
    task = Task(_OPS[op], plan, owner, round_, epoch, batch, micro, micros, count, sender, None, relu)
    return Header(task, codec, dtype, shape, credit, total, offset, raw, size, masked, seal if sealed else None)


def _damaged(text: str, data: bytes | memoryview, limit: int) -> RemoteProtocolError:
    """Gives the error for a header whose CRC does not match: a single bit that was flipped can be found."""
    whole = mended(bytes(data))
    if whole is None:
        return RemoteProtocolError(text)
    try:
        task = parse(whole, limit).task
    except RemoteProtocolError:
        return RemoteProtocolError(text)
    return DamagedError(f"{task}: {text}", task)


def check_chunk(header: Header, chunk: bytes | memoryview) -> None:
    """Holds a chunk, as it arrived, against the checksum in its header, where it has one.

    Raises:
        DamagedError: It has been changed on the way.
    """
    if header.seal is not None and header.seal != (found := xxh3_64_intdigest(chunk)):
        where = f"chunk of {header.size} bytes at {header.offset} of {header.total}"
        text = f"{where} was changed on the way: checksum {found:016x}, sent with {header.seal:016x}"
        raise DamagedError(f"{header.task}: {text}", header.task)


def split(frame: memoryview, limit: int) -> list[tuple[Header, memoryview]]:
    """Takes a frame of whole messages apart, each with its chunk behind its header.

    Args:
        frame: All of it.
        limit: The most bytes a tensor may have.

    Returns:
        Headers and the chunks as sent; views of the frame.

    Raises:
        RemoteProtocolError: One of the headers is wrong, or the messages do not fill the frame exactly.
    """
    found: list[tuple[Header, memoryview]] = []
    start = 0
    while start < len(frame) or not found:
        header = parse(frame[start : start + HEADER_BYTES], limit)
        start += HEADER_BYTES
        chunk = frame[start : start + header.size]
        if len(chunk) != header.size or header.size > INLINE:
            text = f"chunk of {header.size} bytes in a frame with {len(frame) - start} left"
            raise DamagedError(f"{header.task}: {text}", header.task)
        start += header.size
        found.append((header, chunk))
    return found


_Layout = tuple[int, np.dtype[np.generic] | None, tuple[int, ...], int, int, int, int, bool, bool, bool]


# Tensors of a layer follow each other with one shape. What was found wrong is not kept.
@lru_cache(1024)
def _layout(op: int, kind: bytes, sizes: bytes) -> _Layout:
    """Reads and checks what a header says of its chunk, from the codec on; last relu, masked, sealed."""
    codec, dtype, ndim, flags = _KIND.unpack(kind)
    if codec >= len(CODECS) or dtype > len(DTYPES) or ndim > MAX_DIMS or flags > (3 if dtype else 0):
        raise RemoteProtocolError(f"header with codec {codec} dtype {dtype} ndim {ndim} flags {flags}")
    total, offset, raw, size, *dims = _SIZES.unpack(sizes)
    found = DTYPES[dtype - 1] if dtype else None
    shape = tuple(dims[:ndim])
    relu, masked = _flags(_OPS[op], found, codec, bool(flags & 1))
    _check_sizes(found, shape, dims[ndim:] != _NO_DIMS[ndim:], total, offset, raw, size, codec, masked)
    return codec, found, shape, total, offset, raw, size, relu, masked, bool(flags & _SEALED)


def _flags(op: Op, kind: np.dtype[np.generic] | None, codec: int, flag: bool) -> tuple[bool, bool]:
    """Gives whether it is a ReLU's output, and whether it is masked."""
    if flag and (kind != FLOAT32 or op not in (Op.FORWARD, Op.BACKWARD)):
        raise RemoteProtocolError(f"{op.name} of {kind} with a mask: only float32 activations and gradients have one")
    if not CODECS[codec].exact and (kind != FLOAT32 or op not in LOSSY_OPS):
        raise RemoteProtocolError(f"{op.name} of {kind} packed by {CODECS[codec].name}, which changes values")
    return flag and op is Op.FORWARD, flag and op is Op.BACKWARD


def _check_sizes(
    kind: np.dtype[np.generic] | None, shape: tuple[int, ...], stray_dims: bool,
    total: int, offset: int, raw: int, size: int, codec: int, masked: bool,
) -> None:  # fmt: skip
    expected = kind.itemsize if kind is not None else 0
    for dim in shape:  # Python integers cannot overflow
        expected *= dim
    if stray_dims or (kind is None and shape) or total != expected:
        raise RemoteProtocolError(f"tensor of shape {shape} dtype {kind} has {expected} bytes, header says {total}")
    if not total and math.prod(dim or 1 for dim in shape) >> 59:
        raise RemoteProtocolError(f"an empty tensor of shape {shape}: no array has such dimensions")
    if offset % CHUNK or raw != min(CHUNK, total - offset) or (offset >= total and total):
        raise RemoteProtocolError(f"chunk of {raw} bytes at {offset} does not fit a tensor of {total}")
    # A packed chunk is always smaller than the chunk, and so is a masked one; any other has its size.
    if not (0 < size < raw if masked or codec != NONE.number else size == raw):
        raise RemoteProtocolError(f"chunk of {raw} bytes says it travels as {size} with codec {codec}")
