"""Who is to blame for messages that nobody may send: whose key they came with, whatever came from others in between."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zmpsl.errors import RemoteProtocolError
from zmpsl.plan import Peer
from zmpsl.security import MAX_REJECTED, Border
from zmpsl.transport.task import Op, Task

PEERS = (Peer("node-0", "tcp://a", "honest"), Peer("owner-0", "tcp://b", "evil"))


@pytest.fixture
def border() -> Border:
    made = Border(SimpleNamespace(allow=lambda *_args, **_more: None))  # type: ignore[arg-type]
    plan: Any = SimpleNamespace(peers=PEERS)
    made.admit(plan)
    return made


def test_good_messages_of_others_excuse_nobody(border: Border):
    """They did: each was taken for the one before the next bad message, which so passed for one that came too late."""
    good = Task(Op.FORWARD, 1, 0, 0, sender=1)
    accused = []
    for _ in range(MAX_REJECTED):
        border.begin()
        border.vouch(good, "honest")
        border.begin()
        accused.append(border.blame("evil"))
    assert accused == [None] * (MAX_REJECTED - 1) + ["owner-0"]


def test_what_comes_too_late_is_no_fault(border: Border):
    late = Task(Op.FORWARD, 1, 0, 0, sender=1)
    for _ in range(2 * MAX_REJECTED):
        border.begin()
        border.vouch(late, "honest")
        assert border.blame("honest") is None


def test_who_speaks_for_another_is_to_blame(border: Border):
    of_another = Task(Op.FORWARD, 1, 0, 0, sender=1)
    for count in range(1, MAX_REJECTED + 1):
        border.begin()
        with pytest.raises(RemoteProtocolError, match=r"in the name of node-0 with the key of owner-0"):
            border.vouch(of_another, "evil")
        assert border.blame("evil") == ("owner-0" if count == MAX_REJECTED else None)
