"""A member whose connection broke at its end alone: the manager still holds the old one when the new one is there."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch
from uuid import uuid4

import pytest
import zmq
from helpers import wait_for

from zmpsl.messages import FromManager, Join, Leave, Ping, ToManager, Welcome, encode
from zmpsl.transport.control import ControlClient, ControlServer
from zmpsl.transport.envelope import wrap


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.term()


def heard_by(end: ControlServer | ControlClient) -> ToManager | FromManager:
    """The next message that comes to an end."""
    heard: list[ToManager | FromManager] = []

    def came() -> bool:
        received = end.receive()
        if received is not None:
            heard.append(received[1] if isinstance(received, tuple) else received)
        return bool(heard)

    wait_for(came, 10)
    return heard[0]


def test_the_new_connection_is_heard_and_answered(context: zmq.Context[zmq.Socket[bytes]]):
    """Where packets got through one way only, a member was not heard again until it was taken for lost and killed.

    It had given its connection up and made another, in the same name; the manager's socket had not noticed, and of two
    connections of one name ZeroMQ listens to the first.
    """
    server = ControlServer(context, "tcp://127.0.0.1:*")
    old, name = context.socket(zmq.DEALER), uuid4()
    old.setsockopt(zmq.IDENTITY, name.bytes)
    old.setsockopt(zmq.RECONNECT_IVL, -1)  # it stands for a connection, and that does not come back
    old.connect(server.endpoint)
    old.send(wrap(encode(Join(role="owner")), 0))
    assert heard_by(server) == Join(role="owner")
    with patch("zmpsl.transport.control.uuid4", lambda: name):
        new = ControlClient(context, server.endpoint)
    try:
        new.send(Join(role="owner", place="owner-1"))
        assert heard_by(server) == Join(role="owner", place="owner-1")
        assert server.send(server.who, Welcome(place="owner-1"))
        assert heard_by(new) == Welcome(place="owner-1")
        old.close(0)
        new.send(Leave())
        assert heard_by(server) == Leave()
        assert server.send(server.who, Ping())
        assert heard_by(new) == Ping()
    finally:
        old.close(0)
        new.close()
        server.close()
