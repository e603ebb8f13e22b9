"""Messages held back at random: to one peer in order, none early, none for ever."""

from __future__ import annotations

from zmpsl.loops.held_back import HeldBack
from zmpsl.roles.actions import Send
from zmpsl.transport.task import Op, Task


def message(to: str, number: int) -> Send:
    return Send(to, Task(Op.FORWARD, 1, 0, 0, batch=number))


def test_to_one_peer_nothing_overtakes() -> None:
    held = HeldBack()
    for number in range(200):
        held.put(message(f"node-{number % 2}", number), number * 1e-4, 0.1)
    left = [(action.to, action.task.batch) for now in range(200) for action in held.due(now * 1e-3)]
    assert len(left) == 200
    for peer in (0, 1):
        assert [number for to, number in left if to == f"node-{peer}"] == list(range(peer, 200, 2))
    assert [number for _, number in left] != list(range(200))  # but those to others do


def test_each_waits_its_time_and_no_longer() -> None:
    held = HeldBack()
    assert held.next_at() is None
    held.put(message("node-0", 0), 10.0, 0.5)
    due = held.next_at()
    assert due is not None
    assert 10.0 <= due <= 10.5
    assert list(held.due(due - 1e-6)) == []
    assert [action.task.batch for action in held.due(due)] == [0]
    assert held.next_at() is None


def test_what_is_forgotten_holds_up_nothing_later() -> None:
    held = HeldBack()
    held.put(message("node-0", 0), 50.0, 0.5)
    held.clear()
    held.put(message("node-0", 1), 1.0, 0.5)
    assert [action.task.batch for action in held.due(2.0)] == [1]
