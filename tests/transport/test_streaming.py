"""A tensor crosses a hop tile by tile: one is packed when the wire wants it, and unpacked before the next comes."""

from __future__ import annotations

import numpy as np
import pytest
from small_hop import LIMIT, Hop

from zmpsl.codecs import CODECS, Packed
from zmpsl.transport import outbox
from zmpsl.transport.link import Inbox
from zmpsl.transport.packing import Unpacker
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, Header

TILES = 5


class Diary:
    """Packs and unpacks as the codec does, and writes down which tile, in what order."""

    def __init__(self, name: str) -> None:
        self.lines: list[str] = []
        self._codec = next(codec for codec in CODECS if codec.name == name)
        self._unpack = Unpacker(lambda _task: None)

    def pack(self, chunk: memoryview, offset: int = 0) -> Packed:
        self.lines.append(f"pack {offset // CHUNK}")
        return self._codec(chunk, offset)

    def unpack(self, header: Header, data: memoryview, destination: np.ndarray) -> None:
        self.lines.append(f"unpack {header.offset // CHUNK}")
        self._unpack(header, data, destination)


@pytest.mark.parametrize("name", ["huff", "bf16", "qz"])
def test_the_wire_never_waits_for_a_whole_tensor(name: str) -> None:
    diary, hop = Diary(name), Hop()
    hop.outbox = outbox.Outbox(7, lambda _task: diary.pack, 1 << 40)
    hop.link.outbox = hop.outbox
    hop.inbox = Inbox(hop.wire, "tcp://127.0.0.1:*", LIMIT)  # type: ignore[arg-type]
    hop.inbox.unpack = diary.unpack  # type: ignore[assignment]
    values = np.maximum(np.random.default_rng(1).standard_normal(TILES * CHUNK // 4, np.float32), 0)
    hop.wire.room = 1
    hop.link.send(Task(Op.FORWARD, 1, 0, 0, tensor=values))
    arrived = []
    while len(diary.lines) < 2 * TILES:
        # The wire holds one tile: that one is unpacked while the next waits for room, and no further one is packed.
        before = len(diary.lines)
        arrived += hop.tasks()
        assert len(diary.lines) == before + 1
        hop.wire.room = 1
        hop.link.flush()
    packs = [f"pack {tile}" for tile in range(TILES)]
    unpacks = [f"unpack {tile}" for tile in range(TILES)]
    mixed = ["pack 0"]
    for tile in range(TILES):
        mixed += [*packs[tile + 1 : tile + 2], unpacks[tile]]
    assert diary.lines == mixed
    assert [task.tensor.shape for task in arrived if task.tensor is not None] == [values.shape]
