"""Jobs that go on without some of their owners, and owners that do not train."""

from __future__ import annotations

import msgspec
from faulty_run import FaultyRun
from schedules import small

from zmpsl.job import Job

__all__ = ["lazy", "with_deadline", "with_quorum"]


def with_quorum(quorum: float, wait_s: float = 5) -> Job:
    base = small(3, 1)
    return msgspec.structs.replace(base, recover=msgspec.structs.replace(base.recover, quorum=quorum, wait_s=wait_s))


def lazy(run: FaultyRun, place: str) -> None:
    """Makes an owner one that joins, beats and says how far it is, and never trains."""
    member = next(each.station.member for each in run._places.values() if each.station.member.place == place)
    member.wants_work = lambda: False  # type: ignore[method-assign]


def with_deadline(quorum: float, **more: float) -> Job:
    base = with_quorum(quorum)
    return msgspec.structs.replace(base, recover=msgspec.structs.replace(base.recover, round_s=20, **more))
