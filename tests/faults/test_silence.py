"""Who says nothing hangs, but only who has something to do; and while the manager hears nothing, work goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from faulty_run import FaultyRun
from helpers import differing, notices
from reference import train
from schedules import small

from zmpsl.checkpoint import load_state_dict
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun, _Place
from zmpsl.messages import Described, Prepared, Trained
from zmpsl.roles.manager_state import Phase


def short(**more: Any) -> Job:
    base = small(2, 1)
    return msgspec.structs.replace(base, recover=msgspec.structs.replace(base.recover, silent_s=5.0, **more))


def check(run: FaultyRun, texts: list[str], folder: Path) -> None:
    assert not [text for text in texts if "has said nothing" in text]
    assert run._now > 1.5 * run.job.recover.silent_s
    assert differing(load_state_dict(folder / "memory"), train(run.job).states[-1]) == []


def test_it_takes_long_until_there_is_a_plan(tmp_path: Path):
    """Nobody has submitted a job yet, or its cuts take long to solve."""
    run = FaultyRun(short(), 3, tmp_path, faults=0)
    texts, hear = notices(run.manager.board), run.manager.hear

    def late(who: bytes, message: Any) -> Any:
        if isinstance(message, Described):
            run._now += 100
        return hear(who, message)

    run.manager.hear = late  # type: ignore[method-assign]
    run.run()
    check(run, texts, tmp_path)


@pytest.mark.parametrize("place", ["owner-1", "node-0", "aggregator"])
def test_it_takes_long_until_a_lost_role_is_back(place: str, tmp_path: Path):
    """All others have dropped their work meanwhile."""
    run = FaultyRun(short(), 3, tmp_path, faults=0, loses=place, loses_in=1, back_after=6000)
    texts = notices(run.manager.board)
    run.run()
    assert run.fallen
    check(run, texts, tmp_path)


def test_a_standby_is_there_when_it_is_needed(tmp_path: Path):
    """It has nothing to do, and so nothing to say, for as long as all goes well."""
    run = FaultyRun(short(standby_after_s=2.0), 2, tmp_path, faults=0, loses="node-0", loses_in=1, standby=1)
    texts = notices(run.manager.board)
    run.run()
    assert sum("standby-0" in text and "takes the place of node-0" in text for text in texts) == 1
    check(run, texts, tmp_path)


class Away(MemoryRun):
    """A run whose manager hears nothing, from the beginning of a round until all others have done what they can."""

    back = False

    def _moves(self, place: _Place) -> Iterator[tuple[str, _Place, str]]:
        away = self.manager.phase is Phase.TRAINING and self.manager.round == 1 and not self.back
        self.back = self.back or (away and self.all_done())
        return (move for move in super()._moves(place) if self.back or not (away and move[0] == "hear"))

    def all_done(self) -> bool:
        """Whether owners have trained and handed in their parts, and all others have stored the sums."""
        said = [(each.station.member.role, {type(one) for one in each.said}) for each in self._places.values()]
        return all((Trained if role == "owner" else Prepared) in kinds for role, kinds in said)


def test_owners_and_nodes_go_on_while_the_manager_is_away(tmp_path: Path):
    """They train the round to its end and store it; only committed it is not. Else this run would stand still."""
    run, quiet = Away(small(2, 1), 5, tmp_path), MemoryRun(small(2, 1), 6)
    for each in (run, quiet):
        each.run()
    assert run.back
    assert run.manager.record is not None
    assert quiet.manager.record is not None
    assert run.manager.record.committed == quiet.manager.record.committed
