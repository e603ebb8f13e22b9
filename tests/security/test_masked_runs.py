"""Runs with secure averaging: the reference in fixed point, nothing in plain, and owners lost at each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import reference
from faulty_run import FaultyRun
from helpers import differing, global_state, job
from masked import SECURE, fixed_mean
from packed_frames import tensors
from reference import Reference, State, train
from schedules import small

from zmpsl.checkpoint import load_state_dict
from zmpsl.errors import PeerLostError
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.masking import Masker, masked_bytes
from zmpsl.roles.manager import Manager
from zmpsl.roles.owner import DataOwner
from zmpsl.state import ends_layout
from zmpsl.transport.task import Op

pytest.importorskip("cryptography", reason="needs the package cryptography: zmpsl[secure]")


def expected(wanted: Job, bounds: tuple[int, ...], patch: pytest.MonkeyPatch, **who: Any) -> Reference:
    """The oracle, with the owners' own parts averaged in fixed point."""
    exact = reference.weighted_mean

    def mean(each: Any, weights: Any) -> State:
        found = exact(each, weights)
        for name in found:
            if "." in name and not bounds[1] <= int(name.split(".")[0]) < bounds[-2]:
                found[name] = fixed_mean([state[name] for state in each], list(weights))
        return found

    with patch.context() as patched:
        patched.setattr(reference, "weighted_mean", mean)
        return train(wanted, **who)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["codec=lossless", "owners=4", "data.partition.kind=sizes", "data.partition.sizes=[2, 2.5, 2, 3]"],
        ["model.name=small_nets:batch_norm_net", "cuts=[3, 4, 5]"],
    ],
    ids=["plain", "sizes-and-codecs", "batch-norm-in-the-first-part"],
)
def test_a_run_gives_the_reference_in_fixed_point(more: list[str], monkeypatch: pytest.MonkeyPatch):
    run = MemoryRun(job(*SECURE, *more), seed=2)
    run.run()
    assert run.manager.plan is not None
    wanted = expected(run.manager.plan.job, run.manager.plan.bounds, monkeypatch)
    assert differing(global_state(run.members), wanted.states[-1]) == []


@pytest.mark.parametrize("secure", [True, False])
def test_the_aggregator_never_sees_an_owners_part(secure: bool, monkeypatch: pytest.MonkeyPatch):
    """No piece of 16 bytes of it is in anything that travels to the aggregator; without masks all of them are."""
    seen: list[bytes] = []
    close = DataOwner._close_round

    def closing(self: DataOwner) -> Any:
        flat = self.engine.flat
        seen.append(flat.tobytes())
        return close(self)

    monkeypatch.setattr(DataOwner, "_close_round", closing)
    run = MemoryRun(job(*SECURE, f"privacy.secure_average={str(secure).lower()}"), seed=1, capture=True)
    run.run()
    parts = [(header, data) for header, data in tensors(run.frames).values() if header.task.op is Op.PART]
    assert len(parts) == 6
    layout = ends_layout(run.manager.plan.blocks, run.manager.plan.bounds, run.manager.job.optimizer)  # type: ignore[union-attr]
    assert {len(data) for _, data in parts} == {masked_bytes(layout) if secure else layout.nbytes}
    text = b"\0\0".join(data for _, data in parts)
    pieces = {flat[start : start + 16] for flat in seen for start in range(0, len(flat) - 15, 16)}
    pieces = {piece for piece in pieces if len(set(piece)) > 8}
    assert len(pieces) > 300
    found = sum(piece in text for piece in pieces)
    assert found == (0 if secure else len(pieces))


# -- lost owners -------------------------------------------------------------------------------------------------------


class HandedIn:
    """Who handed in what: owners by round and plan, and which owners that plan had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_round: dict[tuple[int, int], set[int]] = {}
        self.owners: dict[int, tuple[int, ...]] = {}
        mask = Masker.mask

        def masking(masker: Masker, flat: Any, weight: int, round_: int) -> Any:
            version = int(masker._named[1])
            self.by_round.setdefault((round_, version), set()).add(masker._owner)
            self.owners[version] = masker._owners
            return mask(masker, flat, weight, round_)

        monkeypatch.setattr(Masker, "mask", masking)

    def known_sums(self, round_: int) -> set[tuple[int, ...]]:
        """The sets of owners of which the aggregator may know the sum."""
        return {
            self.owners[version]
            for (of, version), owners in self.by_round.items()
            if of == round_ and owners == set(self.owners[version])
        }


def with_quorum(quorum: float, wait_s: float = 5, owners: int = 4) -> Job:
    base = small(owners, 1)
    return msgspec.structs.replace(
        base,
        recover=msgspec.structs.replace(base.recover, quorum=quorum, wait_s=wait_s),
        privacy=msgspec.structs.replace(base.privacy, secure_average=True),
    )


class LosesAfter(FaultyRun):
    """Loses an owner once so many others, and it, have handed in for the round."""

    handed: HandedIn
    others = 0

    def _victim(self) -> Any:
        found = super()._victim()
        if found is None:
            return None
        version = self.manager.plan.version if self.manager.plan is not None else 0
        there = self.handed.by_round.get((self._loses_in, version), set())
        return found if len(there) == 1 + self.others and int(self._loses[-1]) in there else None


def check(run: FaultyRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[int, ...], ...]:
    took_part = tuple(run.commits[round_][2] for round_ in range(run.job.train.rounds))
    bounds = run.commits[0][1]
    wanted = expected(run.job, bounds, monkeypatch, active=took_part)
    assert differing(load_state_dict(folder / "memory"), wanted.states[-1]) == [], run.fallen
    return took_part


@pytest.mark.parametrize("loses_in", [0, 1])
def test_an_owner_lost_before_it_hands_in(loses_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = FaultyRun(with_quorum(0.6), 1, tmp_path, faults=0, loses="owner-1", loses_in=loses_in)
    run.run()
    assert check(run, tmp_path, monkeypatch) == ((0, 1, 2, 3),) * loses_in + ((0, 2, 3),) * (2 - loses_in)


@pytest.mark.parametrize("others", [0, 2])
def test_an_owner_lost_after_it_has_handed_in(others: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While another has not: its masks stay on, so the round may be begun again without the lost one."""
    handed = HandedIn(monkeypatch)
    went_on = 0
    for seed in range(12):
        folder = tmp_path / str(seed)
        run = LosesAfter(with_quorum(0.6), seed, folder, faults=0, loses="owner-1", loses_in=1)
        run.handed, run.others = handed, others
        handed.by_round.clear()
        try:
            run.run()
        except PeerLostError:  # the last one handed in before it heard of the loss
            assert handed.known_sums(1) == {(0, 1, 2, 3)}
        else:
            took_part = check(run, folder, monkeypatch)
            assert handed.known_sums(1) == {took_part[1]}
            went_on += bool(run.fallen) and took_part == ((0, 1, 2, 3), (0, 2, 3))
    assert went_on


def lost_at_the_end(folder: Path, handed: HandedIn, back_after: int) -> LosesAfter:
    """A run in which the sum is known, an owner dies, and the round is not committed yet."""
    run = LosesAfter(with_quorum(0.6, 30), 3, folder, faults=0, loses="owner-1", loses_in=1, back_after=back_after)
    run.handed, run.others = handed, 3
    return run


def test_the_last_owner_lost_before_the_commit_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    handed = HandedIn(monkeypatch)
    run = lost_at_the_end(tmp_path, handed, 50)
    run.run()
    assert run.fallen
    assert check(run, tmp_path, monkeypatch) == ((0, 1, 2, 3), (0, 1, 2, 3))
    assert handed.known_sums(1) == {(0, 1, 2, 3)}


def test_the_last_owner_lost_for_good_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Begun again without it, the difference of the two sums would be its part."""
    handed = HandedIn(monkeypatch)
    run = lost_at_the_end(tmp_path, handed, 0)
    with pytest.raises(PeerLostError, match="owner-1 did not come back within 30 s"):
        run.run()
    assert handed.known_sums(1) == {(0, 1, 2, 3)}


@pytest.mark.parametrize("seed", range(12))
def test_no_round_has_two_sums(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever falls, and whoever is left out, comes back, or follows as manager."""
    handed = HandedIn(monkeypatch)
    run = FaultyRun(
        with_quorum(0.6, 20.0), seed, tmp_path, faults=seed % 5, every=90, loses=f"owner-{seed % 4}",
        loses_in=seed % 2, back_after=1 + seed * 997 % 6000,
    )  # fmt: skip
    run.run()
    check(run, tmp_path, monkeypatch)
    for round_ in range(run.job.train.rounds):
        assert handed.known_sums(round_) == {run.commits[round_][2]}, run.fallen


def test_a_resumed_run_begins_with_the_owners_it_had(tmp_path: Path):
    """Of a round that was under way when all ended, nobody knows who had handed in."""
    run = MemoryRun(job(*SECURE, "owners=4"), seed=2, runs=tmp_path)
    run.run()
    record = run.manager.record
    assert record is not None
    assert record.owners == (0, 1, 2, 3)
    record.owners = (0, 2, 3)
    manager = Manager(None, record.job, "again", record)
    assert manager.recovery.seal.keeps_out("owner-1")
    assert not manager.recovery.seal.keeps_out("owner-2")
    assert not manager.recovery.may_leave_out(record.job, {"owner-2"})


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = MemoryRun(job(*SECURE, "train.rounds=1"), seed=2, runs=tmp_path)
    first.run()
    record = first.manager.record
    assert record is not None
    wanted = job(*SECURE, "train.rounds=3")
    again = MemoryRun(wanted, seed=4, runs=tmp_path, resume=record)
    again.run()
    assert again.manager.plan is not None
    bounds = again.manager.plan.bounds
    assert differing(global_state(again.members), expected(wanted, bounds, monkeypatch).states[-1]) == []
