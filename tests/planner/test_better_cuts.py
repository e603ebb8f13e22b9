"""A run that has found a link to be slow says which cuts are better, and takes them between rounds where it may."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import msgspec
import pytest
from helpers import TINY, differing, job, notices
from made_up import profile
from reference import train

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.station import Station
from zmpsl.observe.events import RoundEvent
from zmpsl.profiles import write_profile
from zmpsl.stats import LinkStats

replace = msgspec.structs.replace
BALANCED, NARROW = (0, 1, 3, 5, 6), (0, 1, 2, 5, 6)


class Run:
    """Two nodes on two hosts, 10 kB/s between them. Blocks cost the same, but block 2 gives 1 MB."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, *settings: str, resume: bool = False) -> None:
        plain = Station.traffic

        def slow(station: Station) -> dict[str, LinkStats]:
            return {name: replace(link, bytes_per_s=1e4) for name, link in plain(station).items()}

        hosts = (f"host-{number}" for number in count())
        with patch.context() as here:
            here.setattr(Station, "traffic", slow)
            here.setattr("zmpsl.roles.member.socket.gethostname", lambda: next(hosts))
            known = profile(job(*TINY), [0.01] * 6)
            wide = replace(known.blocks[2], output_bytes=1_000_000)
            write_profile(folder / "p.json", replace(known, blocks={**known.blocks, 2: wide}))
            wanted = job(
                *TINY, "owners=2", "compute_nodes=2", "train.rounds=3", f"planning.profile={folder / 'p.json'}",
                *settings,
            )  # fmt: skip
            runs = folder / "runs"
            record = read_record(next(runs.iterdir())) if resume else None
            self.job = wanted
            self.run = MemoryRun(wanted, runs=runs, resume=record)
            self.texts = notices(self.run.manager.board)
            self.predicted: list[float] = []
            self.run.manager.board.listeners.append(self.hear)
            self.run.run()
        (self.folder,) = runs.iterdir()

    def hear(self, event: object) -> None:
        if isinstance(event, RoundEvent):
            self.predicted.append(event.predicted_s or 0.0)

    @property
    def bounds(self) -> tuple[int, ...]:
        assert self.run.manager.plan is not None
        return self.run.manager.plan.bounds

    def told(self, text: str) -> int:
        return sum(text in each for each in self.texts)


def test_the_next_round_begins_with_better_cuts_and_no_weight_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Run(tmp_path, monkeypatch, "planning.cut_again=true")
    assert done.bounds == NARROW
    assert done.told("the next round begins with them") == 1
    _, second, third = done.predicted
    assert second == third < 1  # as predicted for the cuts that are taken: 1 MB would take 100 s a batch
    assert differing(load_state_dict(done.folder), train(done.job).states[-1]) == []


def test_without_leave_it_is_only_said_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Run(tmp_path, monkeypatch)
    assert done.bounds == BALANCED
    assert done.told("planning.cut_again takes them") == 1


@pytest.mark.parametrize("settings", [("cuts=[1, 3, 5]",), ("cuts=even",)])
def test_cuts_that_were_given_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]) -> None:
    done = Run(tmp_path, monkeypatch, "planning.cut_again=true", *settings)
    assert (done.bounds, done.told("with links as they are")) == (BALANCED, 0)


def test_optimiser_states_that_owners_keep_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Run(tmp_path, monkeypatch, "planning.cut_again=true", "optimizer.state=keep", "optimizer.momentum=0.9")
    assert (done.bounds, done.told("with links as they are")) == (BALANCED, 1)


def test_a_run_that_goes_on_keeps_the_better_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path, monkeypatch, "planning.cut_again=true")
    more = Run(tmp_path, monkeypatch, "planning.cut_again=true", "train.rounds=4", resume=True)
    assert more.bounds == NARROW
    assert differing(load_state_dict(more.folder), train(more.job).states[-1]) == []
