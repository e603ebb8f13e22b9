"""Who says nothing hangs, but only who has something to do: those that wait are waited for, however long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from faulty_run import FaultyRun
from helpers import differing, notices
from reference import train
from test_schedules import small

from zmpsl.checkpoint import load_state_dict
from zmpsl.job import Job
from zmpsl.messages import Described


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
