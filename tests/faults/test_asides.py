"""Owners that are set aside while roles die and links lose messages: every commit is what the reference trains."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from faulty_run import FaultyRun
from helpers import differing, notices
from left_out import lazy, with_deadline
from reference import train
from schedules import check, rooms, small

from zmpsl.checkpoint import load_state_dict
from zmpsl.pool.aside import AsideFiles


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The owners whose replicas were written to disk, in this order."""
    owners: list[int] = []
    original = AsideFiles.write

    def write(self, owner, state) -> None:
        owners.append(owner)
        original(self, owner, state)

    monkeypatch.setattr(AsideFiles, "write", write)
    return owners


@pytest.mark.parametrize("state", ["reset", "keep"])
def test_in_any_schedule(tmp_path: Path, written: list[int], state: str):
    """So impatient is the manager that owners give way which have only not been heard of."""
    for seed in range(6):
        owners, micro = 3 + seed % 2, 1 + seed % 2
        base = small(owners, micro, state)
        wanted = msgspec.structs.replace(base, recover=msgspec.structs.replace(base.recover, stalled_s=0.3))
        runs = tmp_path / str(seed)
        run = FaultyRun(wanted, seed, runs, faults=1 + seed % 5, rooms=rooms(owners, micro, state))
        try:
            run.run()
        except BaseException as error:
            error.add_note(f"seed {seed}: {run.fallen}")
            raise
        check(run, runs, f"seed {seed}: {run.fallen}")
    assert len(written) > 6


def test_one_that_never_goes_on_is_left_out_at_the_deadline(tmp_path: Path):
    """Meanwhile the others have its place."""
    base = with_deadline(0.6, stalled_s=1.0)
    run = FaultyRun(msgspec.structs.replace(base, owners_in_flight=1), 1, tmp_path, faults=0)
    lazy(run, "owner-1")
    texts = notices(run.manager.board)
    with patch.object(run, "_come_back", lambda _name: None):
        run.run()
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job, absent=[1]).states[-1]) == []
    assert any("owner-1 has trained no batch for 1 s" in text and "gives way" in text for text in texts)
    assert sum("owner-1 did not finish round 1 within 20 s (recover.round_s) and is left out" in text for text in texts)
