"""One hop in memory: outbox, link and inbox, joined by a wire that is full whenever a test wants it."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import zmq
from msgspec.structs import replace

from zmpsl.codecs import by_name
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, Header, messages

LIMIT = 1 << 24
NOISE = np.random.default_rng(20240401).integers(0, 4, 2 * CHUNK + 4096, np.uint8)  # lz4 makes it smaller


class Arrived(zmq.Frame):
    """A frame that came over a connection of that descriptor."""

    source = 3

    def get(self, option: Any) -> Any:
        return self.source if option == zmq.SRCFD else super().get(option)


class Wire:
    """In place of two sockets and what is between them: takes `room` messages, then none until there is room again."""

    def __init__(self) -> None:
        self.room = 1 << 30
        self.source = 3  # descriptor of the connection over which all comes
        self.messages: deque[list[bytes]] = deque()
        self.sent: list[list[int]] = []  # sizes of the frames of each message
        self._sending: list[bytes] = []
        self._receiving: list[bytes] = []

    @property
    def context(self) -> Any:
        return self

    def socket(self, _kind: int) -> Any:
        return self

    def send(self, data: Any, flags: int, copy: bool = True) -> None:
        if not self._sending and self.room == 0:
            raise zmq.Again
        self._sending.append(bytes(data))
        if not flags & zmq.SNDMORE:
            self.room -= 1
            self.sent.append([len(frame) for frame in self._sending])
            self.messages.append(self._sending)
            self._sending = []

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        if not self._receiving and not self.messages:
            assert flags & zmq.DONTWAIT, "this would wait for ever"
            raise zmq.Again
        self._receiving = self._receiving or self.messages.popleft()
        frame = Arrived(self._receiving.pop(0))
        frame.source, frame.more = self.source, bool(self._receiving)
        return frame

    def recv_into(self, place: memoryview) -> int:
        data = self._receiving.pop(0)
        place[: len(data)] = data[: len(place)]
        return len(data)

    def getsockopt(self, _option: int) -> int:
        return bool(self._receiving)

    def getsockopt_string(self, _option: int) -> str:
        return "tcp://127.0.0.1:1"

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_named: None  # options, bind, connect, monitor


class Hop:
    """Outbox, Link and Inbox of one hop, joined by a wire in memory."""

    def __init__(self, credit_bytes: int = 1 << 40, codec: str = "none") -> None:
        self.wire = Wire()
        self.outbox = Outbox(7, lambda _task: by_name(codec), credit_bytes)
        self.link = Link(self.wire, "peer", "tcp://127.0.0.1:1", self.outbox)  # type: ignore[arg-type]
        self.inbox = Inbox(self.wire, "tcp://127.0.0.1:*", LIMIT)  # type: ignore[arg-type]

    def received(self) -> list[tuple[Header, Task | None]]:
        """All that has come."""
        found = []
        while (each := self.inbox.receive()) is not None:
            found.append(each)
        return found

    def tasks(self) -> list[Task]:
        return [task for _, task in self.received() if task is not None]

    def say(self, *frames: bytes) -> None:
        """Puts a message of arbitrary frames on the wire."""
        self.wire.messages.append(list(frames))


def task_of(batch: int, nbytes: int | None = 1000, owner: int = 0) -> Task:
    """A task whose tensor nobody confuses with another's; None for one without."""
    if nbytes is None:
        return Task(Op.CLOSE, 1, owner, 0, batch=batch, count=3)
    return Task(Op.FORWARD, 1, owner, 0, batch=batch, tensor=NOISE[batch % 4096 : batch % 4096 + nbytes])


def frame_of(*tasks: Task, credit: int = 0, codec: str = "none") -> bytes:
    """The messages of some small tasks behind each other."""
    return b"".join(bytes(part or b"") for task in tasks for part in next(messages(task, by_name(codec), credit)))


def same(found: list[Task], sent: list[Task]) -> bool:
    """Whether the same tasks came in the same order, bit for bit."""
    return len(found) == len(sent) and all(
        replace(a, tensor=None, sender=0) == replace(b, tensor=None, sender=0)
        and ((a.tensor is None and b.tensor is None) or np.array_equal(a.tensor, b.tensor))
        for a, b in zip(found, sent, strict=True)
    )
