"""Two roles that send each other more than all queues hold: neither waits for the other for ever."""

from __future__ import annotations

import numpy as np
import pytest
import zmq
from helpers import wait_for

from zmpsl.codecs import NONE
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task

TENSORS, NBYTES = 30, 4 << 20


def test_both_directions_full_at_once(monkeypatch: pytest.MonkeyPatch):
    """30 x 4 MB each way, one message per queue, and each side sends all it can before it reads."""
    monkeypatch.setattr("zmpsl.transport.link.HIGH_WATER_MARKS", (1, 1))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inboxes = [Inbox(context, "tcp://127.0.0.1:*", NBYTES) for _ in range(2)]
    links = [
        Link(context, f"peer-{i}", inboxes[1 - i].endpoint, Outbox(1, lambda _: NONE, TENSORS * NBYTES))
        for i in range(2)
    ]
    got = [0, 0]
    tensor = np.arange(NBYTES // 4, dtype=np.float32)

    def turn() -> bool:
        for side in range(2):
            links[side].flush()
            while (received := inboxes[side].receive()) is not None:
                if received[1] is not None and received[1].tensor is not None:
                    assert received[1].tensor.tobytes() == tensor.tobytes()
                    got[side] += 1
        return got == [TENSORS, TENSORS]

    try:
        for link in links:
            for number in range(TENSORS):
                link.send(Task(Op.PART, 1, number, 0, tensor=tensor))
        assert all(link.blocked for link in links)
        wait_for(turn)
    finally:
        for end in (*links, *inboxes):
            end.close()
        context.term()
