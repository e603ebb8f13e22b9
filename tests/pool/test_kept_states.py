"""Owners that keep their optimiser states from round to round: the weights are the reference's, also after a stop."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from blows import disturbed
from helpers import differing, global_state, job
from reference import train

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.engine.compute import ComputeEngine
from zmpsl.errors import CheckpointError
from zmpsl.job import Job
from zmpsl.launch.local import run
from zmpsl.launch.memory import MemoryRun
from zmpsl.observe.events import RoundEvent, read_events
from zmpsl.observe.report import write_report
from zmpsl.packed_state import pack_state
from zmpsl.pool.account import part_memory
from zmpsl.pool.pool import State
from zmpsl.pool.spill import KeptStates, Tensors
from zmpsl.transport.task import Task

BASE = [
    "optimizer.state=keep", "train.rounds=3", "train.batch_size=16", "data.args.limit=160", "data.args.test_limit=40",
    "model.name=digits_cnn", "owners=4", "owners_in_flight=2", "data.partition.kind=sizes",
    "data.partition.sizes=[1, 2, 1, 2]", "evaluate.every=3",
]  # fmt: skip
OPTIMIZERS = {
    "momentum": ["optimizer.name=sgd", "optimizer.momentum=0.9"],
    "adam": ["optimizer.name=adam", "optimizer.lr.initial=0.01"],
}


def settings(name: str, *more: str) -> Job:
    return job(*BASE, *OPTIMIZERS[name], *more)


def first_rounds(wanted: Job, rounds: int) -> Job:
    return msgspec.structs.replace(wanted, train=msgspec.structs.replace(wanted.train, rounds=rounds))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("micro", [1, 4])
def test_equals_the_reference(tmp_path: Path, name: str, nodes: int, micro: int):
    wanted = settings(name, f"compute_nodes={nodes}", f"train.micro_batches={micro}")
    ours = MemoryRun(wanted, nodes + micro, tmp_path)
    ours.run()
    assert differing(global_state(ours.members), train(wanted).states[-1]) == []


def test_a_state_is_read_while_its_owner_s_first_task_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The node may have others to work for before it comes to that one."""
    asked: list[int] = []
    fetch, forward = KeptStates.fetch, ComputeEngine.forward

    def fetch_and_note(states: KeptStates, owner: int, part: int, *room: Tensors) -> Callable[[], Tensors] | None:
        asked.append(owner)
        return fetch(states, owner, part, *room)

    def forward_later(engine: ComputeEngine, task: Task) -> Task:
        assert engine.pool.state(task.owner) is State.TRAINING
        before = len(asked)
        output = forward(engine, task)
        assert len(asked) == before
        return output

    monkeypatch.setattr(KeptStates, "fetch", fetch_and_note)
    monkeypatch.setattr(ComputeEngine, "forward", forward_later)
    wanted = settings("momentum", "compute_nodes=2")
    ours = MemoryRun(wanted, 3, tmp_path)
    ours.run()
    assert differing(global_state(ours.members), train(wanted).states[-1]) == []
    assert sorted(asked) == sorted([*range(4)] * 3 * 4)  # three rounds, two nodes and an owner's two parts


def test_keeping_is_neither_resetting_nor_averaging():
    states = [train(settings("momentum", f"optimizer.state={state}")).states for state in ("keep", "reset", "average")]
    assert differing(states[0][-1], states[1][-1])
    assert differing(states[0][-1], states[2][-1])


def test_without_momentum_there_is_nothing_to_keep():
    wanted = settings("momentum", "optimizer.momentum=0")
    ours = MemoryRun(wanted)  # and no folder is needed
    ours.run()
    assert differing(global_state(ours.members), train(wanted).states[-1]) == []


def test_over_tcp_processes(tmp_path: Path):
    wanted = settings("adam", "network.jitter_s=0.002")
    result = run(wanted, tmp_path, "exact")
    assert differing(load_state_dict(result.folder), train(wanted).states[-1]) == []
    rounds = [event for event in read_events(result.folder / "metrics.jsonl") if isinstance(event, RoundEvent)]
    assert set(rounds[0].spill) == {"node-0", "node-1", *(f"owner-{index}" for index in range(4))}
    assert all(stats.read_bytes == 0 < stats.written_bytes for stats in rounds[0].spill.values())
    # What the last round left is what this one reads.
    for before, after in pairwise(rounds):
        assert {place: stats.written_bytes for place, stats in before.spill.items()} == {
            place: stats.read_bytes for place, stats in after.spill.items()
        }
    assert "Optimiser states that owners kept" in write_report(result.folder).read_text()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("more", [[], ["compute_nodes=1"], ["compute_nodes=3"], ["first_cut=2"]])
def test_resumed_run_equals_uninterrupted(tmp_path: Path, name: str, more: list[str]):
    """Also under other cuts: whoever holds a block finds its state by name."""
    MemoryRun(first_rounds(settings(name), 2), 1, tmp_path).run()
    wanted = settings(name, *more)
    MemoryRun(wanted, 2, tmp_path, resume=read_record(tmp_path / "memory")).run()
    assert differing(load_state_dict(tmp_path / "memory"), train(settings(name)).states[-1]) == []


@pytest.mark.parametrize("place", ["node-0", "owner-1"])
def test_a_killed_role_comes_back(tmp_path: Path, place: str):
    """Mid-round: what the round left that was begun again is not what the next attempt goes on from."""
    wanted = settings("momentum", "train.rounds=12", "network.lost_after_s=0.5")
    result = disturbed(wanted, tmp_path, [(place, signal.SIGKILL)])
    assert differing(load_state_dict(result.folder), train(wanted).states[-1]) == []


def stopped(folder: Path) -> Path:
    """A run of four owners that was stopped after two rounds; gives its folder."""
    MemoryRun(first_rounds(settings("momentum"), 2), 1, folder).run()
    return folder / "memory"


def kept(folder: Path, owner: int) -> dict[str, list[str]]:
    """Files by round."""
    rounds = sorted((folder / "kept" / f"owner-{owner}").iterdir())
    return {path.name: sorted(file.name for file in path.iterdir()) for path in rounds}


def test_an_owner_that_was_left_out_goes_on_from_its_newest(tmp_path: Path):
    """Round 1 was trained by all, round 2 without owner 3, which is back in round 3."""
    wanted = settings("momentum")
    MemoryRun(first_rounds(wanted, 1), 1, tmp_path).run()
    folder = tmp_path / "memory"
    attempt = folder / "kept" / "owner-3" / "round-00001"  # of a round 2 that was begun again, and without it
    attempt.mkdir()
    for path in (folder / "kept" / "owner-3" / "round-00000").iterdir():
        (attempt / path.name).write_bytes(b"of an attempt that did not count")
    absent = MemoryRun(first_rounds(wanted, 2), 2, tmp_path, resume=read_record(folder))
    absent.manager._absent = frozenset({"owner-3"})
    absent._places.popitem()
    absent.run()
    assert read_record(folder).kept == {0: 1, 1: 1, 2: 1, 3: 0}
    assert "round-00000" in kept(folder, 3)
    MemoryRun(wanted, 3, tmp_path, resume=read_record(folder)).run()
    expected = train(wanted, active=[(0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3)]).states[-1]
    assert differing(load_state_dict(folder), expected) == []
    assert read_record(folder).kept == dict.fromkeys(range(4), 2)
    assert list(kept(folder, 3)) == ["round-00002"]


def test_old_rounds_are_removed(tmp_path: Path):
    folder = stopped(tmp_path)
    for owner in range(4):
        assert list(kept(folder, owner)) == ["round-00001"]
        assert len(kept(folder, owner)["round-00001"]) == 4  # two parts of its own, one of each node


def test_a_damaged_file_is_named(tmp_path: Path):
    folder = stopped(tmp_path)
    path = next((folder / "kept" / "owner-2" / "round-00001").glob("blocks-1-*"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"state of owner 2 after round 2, part 1 .*blocks-1-.*checksum"):
        MemoryRun(settings("momentum"), 2, tmp_path, resume=read_record(folder)).run()


def test_a_missing_file_is_named(tmp_path: Path):
    folder = stopped(tmp_path)
    next((folder / "kept" / "owner-2" / "round-00001").glob("blocks-1-*")).unlink()
    with pytest.raises(CheckpointError, match="node-0 needs the optimiser state of owner 2 after round 2, part 1"):
        MemoryRun(settings("momentum"), 2, tmp_path, resume=read_record(folder)).run()


def test_anothers_file_is_refused(tmp_path: Path):
    folder = stopped(tmp_path)
    path = next((folder / "kept" / "owner-2" / "round-00001").glob("blocks-1-*"))
    with path.open("wb") as file:
        file.writelines(pack_state({"kept": np.array([1, 1])}))
    with pytest.raises(CheckpointError, match=r"owner 2 after round 2, part 1 .* holds another state"):
        MemoryRun(settings("momentum"), 2, tmp_path, resume=read_record(folder)).run()


def test_another_optimiser_is_refused(tmp_path: Path):
    folder = stopped(tmp_path)
    with pytest.raises(CheckpointError, match=r"which adam has no use for .* with the same optimiser"):
        MemoryRun(settings("adam"), 2, tmp_path, resume=read_record(folder)).run()


def test_a_folder_is_needed():
    with pytest.raises(CheckpointError, match=r"optimizer\.state: keep needs a run folder"):
        MemoryRun(settings("momentum")).run()


def test_a_full_disk_ends_the_run_with_one_error(tmp_path: Path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "kept").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"cannot write the optimiser state of owner . after round 1, part"):
        MemoryRun(settings("momentum"), 1, tmp_path).run()


def test_memory_counts_the_state_that_is_being_written(tmp_path: Path):
    plans = {}
    for state in ("keep", "reset"):
        ours = MemoryRun(first_rounds(settings("adam", f"optimizer.state={state}"), 1), 1, tmp_path / state)
        ours.run()
        plans[state] = ours.manager.plan
    memories = {s: part_memory(p.job, p.blocks, p.bounds, p.footprints, 1) for s, p in plans.items()}
    assert memories["keep"].slot == memories["reset"].slot
    more = memories["keep"].optimizer + (4 << 20)
    assert memories["keep"].fixed - memories["reset"].fixed == more
    assert memories["keep"].need_evaluating(3, 2) - memories["reset"].need_evaluating(3, 2) == more
