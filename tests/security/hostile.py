"""Messages that nobody honest sends: broken headers, wrong chunks, frames that should not be there."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import numpy as np

from zmpsl.codecs import NONE
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, INLINE, OWNER_SENDER, messages

__all__ = ["Frames", "SEED", "forged", "forward", "hostile_messages", "parts_of", "task_for", "wire"]

SEED = 20240301
Frames = list[bytes]


def forged(header: bytes, at: int, code: str, value: int) -> bytes:
    """A header with one field replaced and a checksum that fits; offsets as in zmpsl.transport.wire."""
    data = bytearray(header)
    struct.pack_into(f"<{code}", data, at, value)
    struct.pack_into("<I", data, 148, crc32(data[:148]))
    return bytes(data)


def task_for(**fields: Any) -> Task:
    """A task in the form that node-0 takes from owner-0, with some fields replaced."""
    form = {"op": Op.FORWARD, "plan": 1, "owner": 0, "round": 0, "sender": OWNER_SENDER}
    return Task(**(form | {"tensor": np.ones((2, 3), np.float32)} | fields))


def parts_of(task: Task, credit: int = 0) -> tuple[bytes, bytes]:
    """Header and chunk of the first message of a task."""
    header, chunk = next(messages(task, NONE, credit))
    return header, bytes(chunk or b"")


def wire(header: bytes, chunk: bytes) -> Frames:
    """A message as it travels: a small chunk behind its header, a large one in a frame of its own."""
    return [header + chunk] if len(chunk) <= INLINE else [header, chunk]


def forward(**fields: Any) -> Frames:
    """Such a task as it travels."""
    return wire(*parts_of(task_for(**fields)))


def hostile_messages() -> list[Frames]:
    """Messages no role may use, whatever its place: each must be counted once as rejected."""
    rng = random.Random(SEED)
    bare, _ = parts_of(task_for(tensor=None, plan=9))
    second = list(messages(task_for(tensor=np.zeros(2 * CHUNK, np.uint8)), NONE, 0))[1]
    foreign: list[dict[str, Any]] = [
        {"plan": 999}, {"plan": 0}, {"owner": 2}, {"owner": 2**32 - 1}, {"round": 7}, {"sender": 0x7777},
        {"op": Op.PART, "sender": 3}, {"op": Op.CLOSE, "sender": 9}, {"op": Op.GLOBAL, "sender": 5},
        {"op": Op.BACKWARD, "sender": 77}, {"op": Op.EVALUATE, "sender": 88},
    ]  # fmt: skip
    return [
        *([rng.randbytes(size)] for size in (0, 1, 151, 152, 153, 4096, 70_000, 100_000)),
        [rng.randbytes(152), rng.randbytes(70_000)],
        [b"zP" + rng.randbytes(150)],
        *_broken(np.ones((2, 3), np.float32), rng),
        *_broken(np.ones((25, 1024), np.float32), rng),
        *(forward(**fields) for fields in foreign),
        *(forward(tensor=np.ones(30_000), **fields) for fields in foreign),
        wire(*parts_of(task_for(tensor=None, plan=3), credit=1 << 40)),
        wire(*parts_of(task_for(tensor=None, sender=0x7777), credit=1 << 40)),
        [bytes(part or b"") for part in second],
        [rng.randbytes(10) for _ in range(2000)],
        [b""] * 500,
        [bare[:100], bare],
    ]


def _broken(tensor: np.ndarray[Any, Any], rng: random.Random) -> Iterator[Frames]:
    """One good message, broken in every way that its own bytes can tell."""
    header, chunk = parts_of(task_for(tensor=tensor))
    yield from (wire(header, wrong) for wrong in (b"", chunk[:-1], chunk + b"\0", chunk + chunk))
    yield [header, chunk] if len(chunk) <= INLINE else [header + chunk]
    yield wire(header[:-4] + bytes(4), chunk)
    yield wire(header[:-1], chunk)
    fields = [
        (2, "B", 1), (3, "B", 99), (4, "B", 1), (4, "B", 9), (5, "B", 0), (6, "B", 9), (7, "B", 4), (30, "H", 0),
        (52, "Q", 2**63), (60, "Q", CHUNK), (68, "I", 1), (72, "I", 1), (76, "Q", 2**62),
    ]  # fmt: skip
    yield from (wire(forged(header, *field), chunk) for field in fields)
    # A packed chunk that cannot be unpacked.
    yield wire(forged(forged(header, 4, "B", 1), 72, "I", len(chunk) - 1), rng.randbytes(len(chunk) - 1))
    for _ in range(20):
        data = bytearray(header)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield wire(bytes(data), chunk)
