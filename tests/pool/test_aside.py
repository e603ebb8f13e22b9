"""Owners that stall: their places go to others, their replicas to disk and back; the weights are the reference's."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from exact import reference
from helpers import ThreadedRun, differing, global_state, notices, wait_for
from small_pools import Watched, rooms, small

from zmpsl.errors import CheckpointError, RemoteProtocolError
from zmpsl.observe.events import NoticeEvent, RoundEvent
from zmpsl.observe.report import write_report
from zmpsl.plan import owner_name
from zmpsl.pool.aside import AsideFiles
from zmpsl.pool.pool import State
from zmpsl.roles.actions import Tell
from zmpsl.roles.admission import Admission
from zmpsl.roles.asides import Asides, Stage, Stalls
from zmpsl.roles.manager import Manager
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.owner import DataOwner


class Disturbed(Watched):
    """A run in which owners in flight are asked to give way at any moment, whether they stall or not."""

    times = 12

    def _candidates(self) -> list[str]:
        manager = self.manager
        if manager.phase is not Phase.TRAINING or not manager._training.waiting or self.times <= 0:
            return []
        return manager._asides.may_leave(sorted(manager._training.flying))

    def _moves(self, place):
        yield from super()._moves(place)
        if place.station.member.role == "aggregator":
            yield from (("aside", place, owner) for owner in self._candidates())

    def _move(self, what, place, arg) -> None:
        if what == "aside":
            self.times -= 1
            for action in self.manager.set_aside(arg):
                assert isinstance(action, Tell)
                self._places[int.from_bytes(action.to, "big")].told.append(action.message)
        super()._move(what, place, arg)

    def sets_aside(self) -> int:
        """Bytes that were written on all nodes."""
        return sum(
            self.members[f"node-{hop}"].engine.aside_stats.written_bytes for hop in range(self.manager.job.nodes)
        )


class Stalling(Disturbed):
    """Owner 1 stops once the last node has its replica, and does next to nothing while anything else can happen."""

    times = 1000

    def _candidates(self) -> list[str]:
        return [owner for owner in super()._candidates() if owner == "owner-1" and self.began()]

    def began(self) -> bool:
        last = self._by_name.get(f"node-{self.manager.job.nodes - 1}")
        engine = getattr(last.station.member, "engine", None) if last else None
        return engine is not None and engine.pool.state(1) in (State.TRAINING, State.ASIDE)

    def run(self) -> None:
        self.random = Lazy(self)
        super().run()


class Lazy(random.Random):
    """Draws moves, those of owner 1 only where there are no others."""

    def __init__(self, run: Stalling) -> None:
        super().__init__(1)
        self.run = run

    def choice(self, moves):
        others = [move for move in moves if move[1].station.member.place != "owner-1" or move[0] in ("hear", "tell")]
        return super().choice((others if self.run.began() and self.random() < 0.9 else moves) or moves)


def left(folder: Path) -> list[Path]:
    return [path for path in (folder / "memory" / "aside").rglob("*") if path.is_file()]


CASES = [
    ("mlp", 1, 4, 1, [1], [], Stalling),
    ("mlp", 3, 5, 1, [2, 4, 3], ["optimizer.name=adam"], Disturbed),
    ("dropout", 2, 4, 4, [1, 3], [], Disturbed),
    ("dropout", 2, 4, 4, [1, 3], [], Stalling),
    ("dropout", 2, 5, 3, [2, 2], ["train.schedule=gpipe", "optimizer.state=average"], Disturbed),
    ("batch-norm", 2, 4, 1, [1, 2], [], Disturbed),
    ("batch-norm", 2, 4, 1, [1, 2], [], Stalling),
    ("batch-norm", 2, 4, 1, [2, 2], ["recompute=always"], Disturbed),
    ("transformer", 2, 3, 2, [1, 1], ["optimizer.name=adam"], Stalling),
]


@pytest.mark.parametrize(("model", "hops", "owners", "micro", "fit", "more", "kind"), CASES)
def test_any_owner_at_any_moment(tmp_path: Path, model, hops, owners, micro, fit, more, kind: type[Disturbed]):
    wanted = small(model, hops, owners, micro, *[each for each in more if not each.startswith("recompute")])
    chosen = msgspec.structs.replace(wanted, recompute="always" if "recompute=always" in more else "never")
    seed = hops * 100 + owners * 10 + micro
    ours = kind(chosen, seed, tmp_path, rooms=rooms(wanted, fit, seed))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert ours.most <= ours.manager.plan.in_flight
    assert ours.sets_aside() > 0
    assert left(tmp_path) == []
    assert {None, Stage.BACK} >= {ours.manager._asides.stage(owner_name(index)) for index in range(owners)}


@pytest.mark.parametrize("seed", range(3))
def test_all_orders(tmp_path: Path, seed: int):
    """With one place on each node, every order that could have two owners wait for each other."""
    wanted = small("mlp", 3, 4, 1)
    ours = Disturbed(wanted, seed, tmp_path, rooms=rooms(wanted, [1, 1, 1], seed))
    ours.times = 40
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


@pytest.mark.parametrize("state", ["keep", "reset"])
def test_with_kept_states_and_masked_gradients(tmp_path: Path, state: str):
    """A gradient that comes for an absent replica is unpacked by the mask of its activation."""
    wanted = small("mlp", 2, 4, 2, f"optimizer.state={state}", "train.rounds=2", "codec=lossless")
    ours = Disturbed(wanted, 5, tmp_path, rooms=rooms(wanted, [2, 2], 5))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert ours.sets_aside() > 0


def test_with_a_lossy_codec_the_run_is_the_undisturbed_one(tmp_path: Path):
    wanted = small("mlp", 2, 4, 2, "codec=bf16")
    plain = Watched(wanted, 1, tmp_path / "plain")
    plain.run()
    ours = Disturbed(wanted, 5, tmp_path, rooms=rooms(wanted, [1, 2], 5))
    ours.run()
    assert differing(global_state(ours.members), global_state(plain.members)) == []


@pytest.mark.parametrize("runs", [True, False])
def test_a_node_that_cannot_write_keeps_the_owner(tmp_path: Path, runs: bool):
    """Then it has its place again on all nodes, and nobody is asked any more."""
    (tmp_path / "memory" / "aside").mkdir(parents=True)
    (tmp_path / "memory" / "aside" / "node-1").write_text("no folder")
    wanted = small("mlp", 2, 4, 1)
    ours = Disturbed(wanted, 1, tmp_path if runs else None, rooms=rooms(wanted, [1, 2], 1))
    told: list[object] = []
    ours.manager.board.listeners.append(told.append)
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert not ours.manager._asides.able
    text = "cannot write the replica" if runs else "has no run folder"
    assert any("keeps its place: node-" in e.text and text in e.text for e in told if isinstance(e, NoticeEvent))


@pytest.mark.parametrize("where", ["_feed", "_turn"])
def test_a_stalled_owner_over_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    """It stands still between batches, or with a batch under way, until all others have trained."""
    wanted = small("dropout", 2, 3, 2, "recover.stalled_s=0.2", "owners_in_flight=1")
    go_on, original = threading.Event(), getattr(DataOwner, where)

    def slowly(self: DataOwner, what):
        if self.index == 0 and self.round == 0 and self._tally.batches == 1:
            assert go_on.wait(60)
        yield from original(self, what)

    monkeypatch.setattr(DataOwner, where, slowly)
    with ThreadedRun(wanted, tmp_path) as ours:
        manager = ours.manager.manager
        others = {"owner-1", "owner-2"}
        wait_for(lambda: manager._asides.stage("owner-0") is Stage.AWAY and not others & manager._waiting)
        go_on.set()
        ours.finish()
        state = global_state(ours.members)
        folder = manager.folder
    assert differing(state, reference(wanted).states[-1]) == []
    texts = [event.text for event in ours.events if isinstance(event, NoticeEvent)]
    assert any("owner-0 has trained no batch for 0 s (recover.stalled_s)" in text for text in texts)
    first = next(event for event in ours.events if isinstance(event, RoundEvent))
    assert set(first.aside) == {"node-0", "node-1"}
    assert all(stats.read_bytes == stats.written_bytes > 0 for stats in first.aside.values())
    assert "Replicas of owners that stalled" in write_report(folder).read_text()


class TestStalls:
    def test_ten_times_as_long_as_batches_take(self) -> None:
        stalls = Stalls("auto")
        assert stalls.look(0.0, {"a": 0, "b": 0}) == []
        assert stalls.look(119.0, {"a": 0, "b": 0}) == []
        assert stalls.look(121.0, {"a": 0, "b": 0}) == ["a", "b"]  # nobody knows yet how long a batch takes
        stalls = Stalls("auto")
        for second in range(0, 30, 3):
            stalls.look(float(second), {"a": second // 3, "b": min(1, second // 3)})
        assert stalls.limit_s == 30.0
        assert stalls.look(33.0, {"a": 11, "b": 1}) == []
        assert stalls.look(33.5, {"a": 11, "b": 1}) == ["b"]
        assert stalls.look(34.0, {"a": 11}) == []
        assert stalls.look(35.0, {"a": 11, "b": 1}) == []  # its time begins when it has its place again

    @pytest.mark.parametrize(("setting", "found"), [(5.0, ["a"]), ("never", [])])
    def test_as_the_job_says(self, setting: float | str, found: list[str]) -> None:
        stalls = Stalls(setting)
        stalls.look(0.0, {"a": 3})
        assert stalls.look(4.9, {"a": 3}) == []
        assert stalls.look(1000.0, {"a": 3}) == found

    def test_at_least_ten_seconds(self) -> None:
        stalls = Stalls("auto")
        stalls.look(0.0, {"a": 0})
        stalls.look(0.1, {"a": 5})
        assert stalls.limit_s == 10.0
        assert Stalls("auto", 1000).limit_s == 120.0


class TestAsides:
    def test_only_when_all_nodes_have_it_aside_is_the_place_free(self) -> None:
        asides = Asides(["node-0", "node-1"])
        asides.leave("owner-3")
        assert asides.may_leave(["owner-3", "owner-4"]) == ["owner-4"]
        assert asides.hear("node-1", "owner-3", "kept") is None
        assert asides.hear("node-1", "owner-3", "came") is None
        assert asides.hear("node-0", "owner-3", "kept") is Stage.AWAY
        assert asides.wants_back("owner-3")
        assert asides.take_up("owner-3")
        assert not asides.take_up("owner-3")
        assert not asides.finished("owner-3")
        asides.trained("owner-3")
        assert [asides.hear(f"node-{hop}", "owner-3", "closed") for hop in range(2)] == [None, None]
        assert asides.finished("owner-3")

    def test_one_that_had_closed_everywhere_keeps_its_place_until_it_says_so(self) -> None:
        asides = Asides(["node-0"])
        asides.leave("owner-3")
        assert asides.hear("node-0", "owner-3", "closed") is Stage.BACK
        assert not asides.over("owner-3")
        assert asides.trained("owner-3") is None
        assert asides.over("owner-3")

    def test_one_that_has_trained_comes_back_to_close(self) -> None:
        asides = Asides(["node-0"])
        asides.leave("owner-3")
        assert asides.hear("node-0", "owner-3", "kept") is Stage.AWAY
        assert not asides.wants_back("owner-3")
        assert asides.trained("owner-3") is Stage.QUEUED

    def test_nobody_tells_of_an_owner_that_was_not_asked(self) -> None:
        with pytest.raises(RemoteProtocolError, match="node-0 tells of owner-3"):
            Asides(["node-0"]).hear("node-0", "owner-3", "came")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    files = AsideFiles(tmp_path, "node-1")
    files.write(7, {"weights a": np.arange(9, dtype=np.float32)})
    path = tmp_path / "aside" / "node-1" / "owner-7.packed"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    finish = files.read(7, {"weights a": np.zeros(9, np.float32)})
    with pytest.raises(CheckpointError, match=r"node-1: the replica of owner 7: .*owner-7\.packed: .*checksum"):
        finish()


def test_what_an_earlier_plan_left_is_removed(tmp_path: Path) -> None:
    AsideFiles(tmp_path, "node-1").write(7, {"a": np.zeros(3)})
    AsideFiles(tmp_path, "node-1")
    assert not (tmp_path / "aside" / "node-1").exists()


def test_time_away_counts_for_the_round_and_time_in_line_does_not() -> None:
    wanted = small("mlp", 1, 2, 1, "recover.round_s=100")
    manager = Manager(None, wanted)
    told = notices(manager.board)
    manager.phase = Phase.TRAINING
    manager._training, manager._asides = Admission(["owner-0", "owner-1"], 1), Asides(["node-0"])
    manager._training.start(0)

    def passes(now: float) -> list[str]:
        told.clear()
        assert list(manager._keep_time(wanted, now)) == []
        return told

    passes(1000.0)
    manager._asides.leave("owner-0")
    manager._asides.hear("node-0", "owner-0", "kept")
    manager._training.leave("owner-0")
    assert passes(1099.0) == []
    manager._asides.hear("node-0", "owner-0", "came")
    assert manager._training.queue("owner-0") == []
    for now in (1100.0, 1110.0, 1150.0):  # owner 1 has not been at it for that long
        assert passes(now) == []
    assert manager._training.done("owner-1") == ["owner-0"]
    manager._asides.take_up("owner-0")
    (text,) = passes(1152.0)
    assert text.startswith("owner-0 did not finish round 1 within 100 s (recover.round_s)")
