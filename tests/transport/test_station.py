"""The station: what waits is asked about again before it is handled."""

from __future__ import annotations

from collections.abc import Iterator

from zmpsl.errors import RemoteProtocolError
from zmpsl.loops.station import Station
from zmpsl.roles.actions import Action
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import Header


class OneTask:
    """A member whose round ends with the first task it handles."""

    place = "aggregator"
    plan = None

    def __init__(self) -> None:
        self.handled: list[Task] = []

    def known_mask(self, *_: object) -> None: ...

    def admit(self, task: Task) -> None:
        if self.handled:
            raise RemoteProtocolError(f"round {task.round} has ended")

    def inspect(self, task: Task) -> None: ...

    def has_room(self, task: Task) -> bool:
        return True

    def wants_work(self) -> bool:
        return False

    def handle(self, task: Task) -> Iterator[Action]:
        self.handled.append(task)
        return iter(())


def test_a_task_that_came_twice_and_waited_does_not_count_in_the_next_round():
    """The second of an owner's two parts waited while the round ended, and was taken for the next round's."""
    member = OneTask()
    station = Station(member)  # type: ignore[arg-type]
    part = Task(op=Op.PART, plan=1, owner=0, round=0, epoch=0, batch=0, micro=0, micros=1, count=5, sender=65535)
    for _ in range(2):  # both arrive before either is handled: neither is turned away at the door
        station.take(Header(part, 0, None, (), 0, 0, 0, 0, 0, 0), part)
    while (work := station.next_work()) is not None:
        list(work)
    assert member.handled == [part]
    assert station.strays == 1
