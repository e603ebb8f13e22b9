"""What travels, as who receives it sees it: tensors unpacked from the frames of a run."""

from __future__ import annotations

import numpy as np

from zmpsl.transport.mask import KnownMask
from zmpsl.transport.packing import Unpacker
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER, Header, parse

__all__ = ["tensors"]


def tensors(frames: list[bytes]) -> dict[tuple[int, ...], tuple[Header, bytes]]:
    """The tensors that travelled: chunks unpacked and joined, by everything a header says of them."""
    joined: dict[tuple[int, ...], tuple[Header, bytearray]] = {}
    parsed = [(parse(first, 1 << 40), body) for first, body in zip(frames[::2], frames[1::2], strict=True)]
    hops = max((header.task.sender for header, _ in parsed if header.task.sender != OWNER_SENDER), default=0)

    def answered(task: Task) -> KnownMask:
        """The activation that a masked gradient answers; it went the other way before."""
        sender = hops if task.sender == OWNER_SENDER else task.sender - 1 or OWNER_SENDER
        return KnownMask(np.frombuffer(joined[_key(Op.FORWARD, sender, task)][1], np.float32))

    unpack = Unpacker(answered)
    for header, body in parsed:
        if header.dtype is None:
            assert not body
            continue
        raw = np.empty(header.raw, np.uint8)
        unpack(header, memoryview(body), raw)
        held = joined.setdefault(_key(header.task.op, header.task.sender, header.task), (header, bytearray()))[1]
        assert len(held) == header.offset
        held += raw.tobytes()
    assert all(len(data) == header.total for header, data in joined.values())
    return {key: (header, bytes(data)) for key, (header, data) in joined.items()}


def _key(op: Op, sender: int, task: Task) -> tuple[int, ...]:
    return sender, int(op), task.owner, task.round, task.epoch, task.batch, task.micro
