"""What a link hears of its connection: a handshake is no loss, the end of one is, and the kernel tells its rate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq
from helpers import wait_for

from zmpsl.codecs import NONE
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context: zmq.Context = zmq.Context()
    yield context
    context.term()


def test_a_new_connection_is_no_loss_and_a_lost_one_has_no_descriptor(context: zmq.Context) -> None:
    inbox = Inbox(context, "tcp://127.0.0.1:*", 1 << 20)
    link = Link(context, "node-0", inbox.endpoint, Outbox(1, lambda _task: NONE, 1 << 20))
    heard: list[bool] = []

    def up() -> bool:
        heard.append(link.broken())
        return link._up

    try:
        assert link.delivered() is None
        wait_for(up)
        assert not any(heard)
        assert link._descriptor >= 0
        inbox.close()
        wait_for(link.broken)
        assert link.delivered() is None
        assert not link.broken()
    finally:
        link.close()
        inbox.close()
