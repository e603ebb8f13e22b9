"""What each codec does to one tensor on this machine: ratio, speed and error. For `zmpsl bench codec`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import DataError
from zmpsl.job.codec import parse_spec
from zmpsl.transport.mask import KnownMask
from zmpsl.transport.packing import Packer, Unpacker
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import Header, messages, parse
from zmpsl.trials.rivals import Rival

__all__ = ["TEXTS", "Trial", "read_npy", "try_codec", "try_rival"]

TEXTS = ("none", "lz4", "bitmap", "huff", "bf16", "bf16-huff", "int8", "int4", "qz(0.2)", "qz(0.5)", "topk(0.1)")
MOST_BYTES = 1 << 32
Values = NDArray[np.float32]
T = TypeVar("T")


class Trial(NamedTuple):
    """One codec on one tensor.

    Attributes:
        codec: As in a job, or what the rival calls itself.
        ratio: Bytes of the tensor over bytes sent, headers left out.
        encode_bytes_per_s: Bytes of the tensor packed in a second, by one thread.
        decode_bytes_per_s: The same for unpacking.
        error: Of what arrives, relative to the tensor (under its mask) in the 2-norm.
    """

    codec: str
    ratio: float
    encode_bytes_per_s: float
    decode_bytes_per_s: float
    error: float


def try_codec(text: str, values: Values, activation: Values | None = None, repeats: int = 5) -> Trial:
    """Sends a tensor through the wire format and takes the times.

    Args:
        text: The codec, as in a job.
        values: The tensor, not empty.
        activation: A ReLU's output whose gradient it is, if it is; then it travels under that mask.
        repeats: How often; the median counts.

    Raises:
        ValueError: There is no such codec.
    """
    spec = parse_spec(text)
    mask = None if activation is None else KnownMask(activation)
    task = Task(Op.FORWARD if activation is None else Op.BACKWARD, 0, 0, 0, tensor=values, mask=mask)
    unpack = Unpacker(lambda _task: mask)
    arrived = np.zeros(values.nbytes, np.uint8)
    packing, unpacking, size = list[float](), list[float](), 0
    for _ in range(repeats):
        packer = Packer("bench", lambda _op: spec)  # a new one, so that error feedback starts anew
        sent, seconds = _timed(lambda packer=packer: list(messages(task, packer(task), 0)))  # type: ignore[misc]
        packing.append(seconds)
        chunks = [(parse(first, MOST_BYTES), memoryview(body or b"")) for first, body in sent]
        size = sum(header.size for header, _ in chunks)
        seconds = _timed(lambda chunks=chunks: _arrive(unpack, chunks, arrived))[1]  # type: ignore[misc]
        unpacking.append(seconds)
    expected = values if activation is None or spec.name == "none" else np.where(activation != 0, values, np.float32(0))
    seen = arrived.view(np.float32).reshape(values.shape)
    length = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(seen - expected)) / length if length else 0.0
    speeds = [values.nbytes / max(statistics.median(times), 1e-9) for times in (packing, unpacking)]
    return Trial(text, values.nbytes / size, speeds[0], speeds[1], error)


def try_rival(rival: Rival, expected: Values, repeats: int = 3) -> Trial:
    """Takes the times of what one would use otherwise.

    Args:
        rival: Made for the tensor `expected`.
        expected: What should come out.
        repeats: How often; the median counts.
    """
    size, seen = rival.encode(), rival.decode().reshape(expected.shape)
    length = float(np.linalg.norm(expected))
    error = float(np.linalg.norm(seen - expected)) / length if length else 0.0
    packing, unpacking = (
        statistics.median(_timed(work)[1] for _ in range(repeats)) for work in (rival.encode, rival.decode)
    )
    speeds = [expected.nbytes / max(seconds, 1e-9) for seconds in (packing, unpacking)]
    return Trial(rival.name, expected.nbytes / size, speeds[0], speeds[1], error)


def _arrive(unpack: Unpacker, chunks: list[tuple[Header, memoryview]], arrived: NDArray[np.uint8]) -> bool:
    for header, body in chunks:
        unpack(header, body, arrived[header.offset : header.offset + header.raw])
    return True


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def read_npy(path: Path) -> Values:
    """Reads a float32 tensor of an .npy file, without pickle.

    Raises:
        DataError: The file cannot be read, or holds no float32 values in C order.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            data = file.read()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as .npy: {error}") from error
    count = 1
    for size in shape:
        count *= size
    if dtype != np.dtype("<f4") or fortran or len(data) != 4 * count or not count:
        order = "Fortran" if fortran else "C"
        raise DataError(
            f"{path}: {len(data)} bytes of dtype {dtype}, shape {shape} in {order} order; "
            "codecs are tried on float32 values in C order, at least one"
        )
    return np.frombuffer(data, "<f4").reshape(shape)
