"""`train.micro_batches: auto`: decided once, written down, and the same run as with that number by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TINY, differing, global_state, job, notices
from made_up import profile

from zmpsl.checkpoint import read_record
from zmpsl.engine.build import summarise
from zmpsl.job.load import load_job
from zmpsl.job.schema import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import Profiled
from zmpsl.planner.from_job import measured_of
from zmpsl.planner.pieces import choose, in_pieces, mixes_samples
from zmpsl.profiles import cut_profile, write_profile

SLOW = [1.0] * 6


def settings(tmp_path: Path, *more: str, owners: int = 1) -> Job:
    """A job whose blocks take a second each way, planned from a file."""
    path = tmp_path / "p.json"
    base = [*TINY, f"owners={owners}", "compute_nodes=2", *more]
    plain = [one for one in base if not one.startswith("train.micro_batches")]
    write_profile(path, profile(job(*plain), SLOW))
    return job(*base, f"planning.profile={path}")


def ran(wanted: Job, runs: Path, name: str = "memory", **options: object) -> tuple[MemoryRun, list[str]]:
    run = MemoryRun(wanted, runs=runs, name=name, **options)
    texts = notices(run.manager.board)
    run.run()
    return run, texts


@pytest.mark.parametrize("cuts", ["auto", "even", "[1, 2, 5]"])
def test_the_number_is_written_down_and_the_run_is_that_with_it_by_hand(cuts: str, tmp_path: Path) -> None:
    run, texts = ran(settings(tmp_path, "train.micro_batches=auto", f"cuts={cuts}"), tmp_path, "open")
    plan, stored = run.manager.plan, load_job(tmp_path / "open" / "job.yaml")
    assert plan is not None
    number = plan.job.train.micro_batches
    assert isinstance(number, int)
    assert number > 1
    assert stored.train.micro_batches == number == read_record(tmp_path / "open").job.train.micro_batches
    assert any(f"train.micro_batches: auto takes {number}" in text for text in texts)
    by_hand, _ = ran(settings(tmp_path, f"train.micro_batches={number}", f"cuts={cuts}"), tmp_path, "by-hand")
    assert by_hand.manager.plan is not None
    assert by_hand.manager.plan.bounds == plan.bounds
    assert by_hand.manager.plan.footprints == plan.footprints or len(plan.footprints) == len(plan.blocks)
    assert differing(global_state(run.members), global_state(by_hand.members)) == []


def test_it_stays_when_the_run_goes_on(tmp_path: Path) -> None:
    first, _ = ran(settings(tmp_path, "train.micro_batches=auto", "train.rounds=1"), tmp_path, "half")
    assert first.manager.plan is not None
    number = first.manager.plan.job.train.micro_batches
    record = read_record(tmp_path / "half")
    # Even where the same open job is handed in again, and owners that came since would make it another number.
    again = settings(tmp_path, "train.micro_batches=auto")
    rest, _ = ran(again, tmp_path, "half", resume=record)
    assert rest.manager.plan is not None
    assert rest.manager.plan.job.train.micro_batches == number
    whole, _ = ran(settings(tmp_path, f"train.micro_batches={number}"), tmp_path, "whole")
    assert differing(global_state(rest.members), global_state(whole.members)) == []


def test_owners_enough_need_no_pieces(tmp_path: Path) -> None:
    run, _ = ran(settings(tmp_path, "train.micro_batches=auto", "data.args.limit=256", owners=12), tmp_path)
    assert run.manager.plan is not None
    assert run.manager.plan.job.train.micro_batches == 1


def test_batch_normalisation_keeps_batches_whole_and_says_so(tmp_path: Path) -> None:
    run, texts = ran(
        settings(tmp_path, "train.micro_batches=auto", "train.rounds=1", "model.name=small_nets:batch_norm_net"),
        tmp_path,
    )
    assert run.manager.plan is not None
    assert mixes_samples(run.manager.plan.blocks)
    assert run.manager.plan.job.train.micro_batches == 1
    assert any("auto takes 1 (with batch normalisation" in text for text in texts)


@pytest.mark.parametrize("cuts", ["auto", "[1, 2, 5]"])
def test_where_nothing_can_be_measured_batches_stay_whole(
    cuts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmpsl.roles.owner.profiled", lambda *_: Profiled(profile=None, text="no such input"))
    wanted = job(*TINY, "owners=1", "train.rounds=1", f"cuts={cuts}", "train.micro_batches=auto")
    run, texts = ran(wanted, tmp_path)
    assert run.manager.plan is not None
    assert run.manager.plan.job.train.micro_batches == 1
    assert any("batches stay whole" in text for text in texts)


def test_fixed_seconds_of_a_task_speak_against_pieces() -> None:
    wanted = job(*TINY, "owners=1", "train.micro_batches=auto")

    def best(task_s: float) -> int:
        one = profile(wanted, SLOW, task_s=task_s)
        measured = measured_of(wanted, one, {"node-0": one, "node-1": one})
        return choose(measured, lambda _: ((0, 1, 3, 5, 6), ["node-0", "node-1"]))

    assert best(0.0) > best(0.5) >= best(50.0) == 1


def test_what_is_measured_for_whole_batches_is_cut_like_them() -> None:
    wanted = job(*TINY, "owners=1", "train.micro_batches=auto")
    one = profile(wanted, SLOW)
    cut = in_pieces(measured_of(wanted, one, {"node-0": one}), 4)
    assert (cut.owner.batch_size, cut.job.train.micro_batches, cut.micro_batches) == (4, 4, 4)
    assert cut.owner.blocks[0].forward.median_s == pytest.approx(0.25)
    assert cut.owner.blocks[0].update == one.blocks[0].update
    assert cut.owner.blocks[0].saved_bytes == 1
    assert cut_profile(cut.owner, cut.job, 4) == cut.owner
    assert len(summarise(wanted.model)) == one.model_blocks
