"""The station: what waits is asked about again before it is handled."""

from __future__ import annotations

from one_task import OneTask

from zmpsl.loops.station import Station
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import Header


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
