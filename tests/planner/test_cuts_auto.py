"""`cuts: auto`: members measure, the manager solves, and where the model is cut changes no weight."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import msgspec
import pytest
from helpers import TINY, differing, global_state, job
from made_up import profile

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.engine.build import summarise
from zmpsl.errors import JobError, RemoteProtocolError
from zmpsl.job.load import load_job
from zmpsl.job.schema import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import Join, Measure, Profiled, Welcome
from zmpsl.observe.events import NoticeEvent, PlanEvent, ProgressEvent, RoundEvent
from zmpsl.observe.progress import describe
from zmpsl.profiles import write_profile
from zmpsl.roles.planning import CutPlanning
from zmpsl.roles.roster import Roster

SMALL = [*TINY, "owners=2", "compute_nodes=2"]


def run_with(settings: Job, path: Path, seconds: list[float], **options: object) -> MemoryRun:
    write_profile(path, profile(settings, seconds))
    done = MemoryRun(msgspec.structs.replace(settings, planning=job(f"planning.profile={path}").planning), **options)
    done.run()
    return done


def test_the_slow_block_gets_a_node_of_its_own_and_no_weight_changes(tmp_path: Path) -> None:
    even = MemoryRun(job(*SMALL, "cuts=even"))
    even.run()
    cut = run_with(job(*SMALL), tmp_path / "p.json", [1, 1, 1, 1, 9, 1])
    assert even.manager.plan is not None
    assert cut.manager.plan is not None
    assert (even.manager.plan.bounds, cut.manager.plan.bounds) == ((0, 1, 3, 5, 6), (0, 1, 4, 5, 6))
    assert differing(global_state(cut.members), global_state(even.members)) == []


def test_members_measure_and_every_round_says_what_was_expected() -> None:
    run = MemoryRun(job(*SMALL), seed=3)
    events = []
    run.manager.board.listeners.append(events.append)
    run.run()
    assert run.manager.plan is not None
    assert (run.manager.plan.bounds[1], run.manager.plan.bounds[-2]) == (1, 5)
    rounds = [event for event in events if isinstance(event, RoundEvent)]
    assert len(rounds) == 2
    for event in rounds:
        assert event.predicted_s is not None
        assert event.predicted_s > 0
        assert set(event.predicted_busy_s) == {"node-0", "node-1"}
        assert "predicted " in (describe(event, 2) or "")
    (notice,) = [event for event in events if isinstance(event, NoticeEvent)]
    assert "cuts solved in" in notice.text
    assert not next(event for event in events if isinstance(event, PlanEvent)).emulated


def test_the_progress_line_has_the_expected_share_beside_the_measured() -> None:
    event = ProgressEvent(
        time=1.0, round=0, phase="train", batches=1, batches_total=2, batches_per_s=1.0, loss=None,
        busy={"node-0": 0.5, "node-1": 0.25}, bytes=0, predicted_busy={"node-0": 0.6, "node-1": 0.3},
    )  # fmt: skip
    line = describe(event, None) or ""
    assert "busy node-0 50 % (expected 60 %), node-1 25 % (expected 30 %)" in line


def test_a_run_that_goes_on_keeps_its_cuts(tmp_path: Path) -> None:
    path, settings = tmp_path / "p.json", job(*SMALL)
    whole = run_with(settings, path, [1, 1, 1, 1, 9, 1], runs=tmp_path, name="whole")
    half = job(*SMALL, "train.rounds=1")
    run_with(half, path, [1, 1, 1, 1, 9, 1], runs=tmp_path, name="half")
    record = read_record(tmp_path / "half")
    assert record.bounds == (0, 1, 4, 5, 6)
    rest = run_with(settings, path, [1, 9, 1, 1, 1, 1], runs=tmp_path, name="half", resume=record)
    assert rest.manager.plan is not None
    assert rest.manager.plan.bounds == (0, 1, 4, 5, 6)
    assert differing(global_state(rest.members), global_state(whole.members)) == []


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"fingerprint": "other"}, [], "the profile is of a model with fingerprint other, that of digits_cnn is"),
        ({"batch_size": 99}, [], "for 99 samples at a time, the job passes 16"),
        ({"step_s": -1.0}, [], "step_s is -1.0"),
        ({}, ["planning.node_memory={node-1: 10}"], r"node 'node-1' .* bytes short"),
    ],
)
def test_what_cannot_be_planned_ends_the_run_with_one_message(
    tmp_path: Path, changes: dict[str, object], overrides: list[str], message: str
) -> None:
    settings = job(*SMALL, *overrides, f"planning.profile={tmp_path / 'p.json'}")
    write_profile(tmp_path / "p.json", profile(settings, [1, 1, 1, 1, 1, 1], **changes))
    with pytest.raises(JobError, match=message):
        MemoryRun(settings).run()


def test_imitated_slow_nodes_get_less_and_are_named_as_imitated(tmp_path: Path) -> None:
    settings = job(*SMALL, "emulate.slow_down={node-1: 20}", "train.rounds=1", "evaluate.every=0")
    write_profile(tmp_path / "p.json", profile(settings, [1, 1, 1, 1, 1, 1]))
    run = MemoryRun(msgspec.structs.replace(settings, planning=job(f"planning.profile={tmp_path / 'p.json'}").planning))
    events = []
    run.manager.board.listeners.append(events.append)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 4, 5, 6)
    assert next(event for event in events if isinstance(event, PlanEvent)).emulated


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_in_the_solved_order_trains_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = (f"host-{number}" for number in count())
    monkeypatch.setattr("zmpsl.roles.member.socket.gethostname", lambda: next(hosts))
    settings = job(*SMALL, "train.rounds=1")
    even = MemoryRun(msgspec.structs.replace(settings, cuts="even"))
    even.run()
    late_and_early = iter([[1, 50, 1, 1, 1, 1], [1, 1, 50, 50, 50, 1]])
    monkeypatch.setattr(
        "zmpsl.roles.compute.profiled", lambda *_: Profiled(profile=profile(settings, next(late_and_early)))
    )
    monkeypatch.setattr("zmpsl.roles.owner.profiled", lambda *_: Profiled(profile=profile(settings, [1] * 6)))
    run = MemoryRun(settings, seed)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 2, 5, 6)
    assert differing(global_state(run.members), global_state(even.members)) == []


@pytest.mark.parametrize("who", ["owner", "compute"])
def test_a_model_that_cannot_be_profiled_is_cut_evenly_and_says_why(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"zmpsl.roles.{who}.profiled", lambda *_: Profiled(profile=None, text="no such input"))
    run = MemoryRun(job(*SMALL, "train.rounds=1"))
    events = []
    run.manager.board.listeners.append(events.append)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 3, 5, 6)
    (notice,) = [event for event in events if isinstance(event, NoticeEvent)]
    assert re.search(r"could not measure \(no such input\); the cuts are even", notice.text)
    assert next(event for event in events if isinstance(event, RoundEvent)).predicted_s is None


def test_a_node_holds_no_more_blocks_than_it_may(tmp_path: Path) -> None:
    settings = job(
        *SMALL, "train.rounds=1", "planning.max_blocks={node-0: 1}", f"planning.profile={tmp_path / 'p.json'}"
    )
    write_profile(tmp_path / "p.json", profile(settings, [1, 1, 1, 1, 9, 1]))
    run = MemoryRun(settings)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 2, 5, 6)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("planning.max_blocks=1", "node-0 would hold 2 blocks (1 to 2), more than planning.max_blocks 1"),
        ("privacy.max_share=0.05", "more than privacy.max_share 5.0%"),
    ],
)
def test_even_cuts_in_place_of_solved_ones_keep_the_limits_or_end_the_run(
    limit: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zmpsl.roles.compute.profiled", lambda *_: Profiled(profile=None, text="no such input"))
    with pytest.raises(JobError, match=re.escape(message) + ".*could not measure .no such input.; the cuts are even"):
        MemoryRun(job(*SMALL, limit)).run()


@pytest.mark.parametrize("slow", range(3))
@pytest.mark.parametrize("optional", ["true", "[node-0, node-1, node-2]"])
def test_a_node_that_would_slow_the_chain_stands_by(slow: int, optional: str, tmp_path: Path) -> None:
    settings = [*TINY, "owners=2", "compute_nodes=3", "train.rounds=1", f"emulate.slow_down={{node-{slow}: 900}}"]
    settings += [f"planning.optional_nodes={optional}", f"planning.profile={tmp_path / 'p.json'}"]
    write_profile(tmp_path / "p.json", profile(job(*settings), [1, 1, 1, 1, 1, 1]))
    run, events = MemoryRun(job(*settings), runs=tmp_path), []
    run.manager.board.listeners.append(events.append)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 3, 5, 6)
    assert {place for place in run.members if place.startswith(("node", "standby"))} == {
        "node-0",
        "node-1",
        "standby-0",
    }
    assert any(
        f"standing by (optional_nodes): node-{slow}" in event.text for event in events if isinstance(event, NoticeEvent)
    )
    left = load_job(tmp_path / "memory" / "job.yaml")
    assert (left.nodes, left.emulate.slow_down) == (2, {})
    even = MemoryRun(job(*SMALL, "train.rounds=1", "cuts=even"))
    even.run()
    assert differing(load_state_dict(tmp_path / "memory"), global_state(even.members)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["planning.max_blocks={node-7: 2}"], "planning.max_blocks or optional_nodes: 'node-7' is not there"),
        (["planning.max_blocks=0"], "planning.max_blocks"),
        (["planning.optional_nodes=[node-9]"], "planning.max_blocks or optional_nodes: 'node-9' is not there"),
        (["planning.optional_nodes=true", "cuts=even"], "goes with cuts: auto; here cuts are even"),
    ],
)
def test_limits_of_nodes_that_are_not_there_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(JobError, match=message):
        job(*settings)


@pytest.mark.parametrize("cuts", ["even", "[2, 3, 5]"])
def test_rounds_of_given_cuts_are_predicted_too(cuts: str) -> None:
    run, events = MemoryRun(job(*SMALL, "train.rounds=1", f"cuts={cuts}")), []
    run.manager.board.listeners.append(events.append)
    run.run()
    (round_,) = [event for event in events if isinstance(event, RoundEvent)]
    assert round_.predicted_s is not None
    assert set(round_.predicted_busy_s) == {"node-0", "node-1"}


@pytest.mark.parametrize("who", ["owner", "compute"])
def test_given_cuts_that_cannot_be_predicted_are_trained(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"zmpsl.roles.{who}.profiled", lambda *_: Profiled(profile=None, text="no such input"))
    run, events = MemoryRun(job(*SMALL, "train.rounds=1", "cuts=[2, 3, 5]")), []
    run.manager.board.listeners.append(events.append)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 2, 3, 5, 6)
    assert any("rounds are not predicted" in event.text for event in events if isinstance(event, NoticeEvent))


@pytest.mark.parametrize("damage", [None, b"", b"{}"])
def test_a_run_that_goes_on_is_predicted_by_the_profiles_it_began_with(
    damage: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = job(*SMALL, "train.rounds=1", "cuts=auto")
    MemoryRun(settings, runs=tmp_path).run()
    (folder,) = tmp_path.iterdir()
    if damage is not None:
        (folder / "profiles.json").write_bytes(damage)
    monkeypatch.setattr("zmpsl.roles.owner.profiled", lambda *_: pytest.fail("measured again"))
    longer = msgspec.structs.replace(settings, train=msgspec.structs.replace(settings.train, rounds=2))
    run, events = MemoryRun(longer, runs=tmp_path, resume=read_record(folder)), []
    run.manager.board.listeners.append(events.append)
    run.run()
    (round_,) = [event for event in events if isinstance(event, RoundEvent)]
    assert (round_.predicted_s is None) == (damage is not None)


class TestAsking:
    def planning(self, *hosts: str, place: str = "") -> tuple[CutPlanning, Roster]:
        settings, roster = job(*SMALL, f"compute_nodes={len(hosts)}"), Roster()
        roster.add(b"o0", Join(role="owner", host="pi"), settings)
        roster.add(b"o1", Join(role="owner", host="pi"), settings)
        for number, host in enumerate(hosts):
            roster.add(b"n%d" % number, Join(role="compute", host=host, place=place and f"node-{number}"), settings)
        return CutPlanning(settings, summarise(settings.model), roster), roster

    def test_one_owner_first_then_one_node_of_every_host(self) -> None:
        planning, roster = self.planning("a", "b", "a")
        one = profile(planning.job, [1, 1, 1, 1, 1, 1])
        asked = [(action.to, action.message) for action in planning.start()]  # type: ignore[union-attr]
        assert asked == [(b"o0", Measure(job=planning.job))]
        asked = list(planning.hear(roster.at("owner-0"), Profiled(profile=one)))  # type: ignore[assignment]
        assert [action.to for action in asked] == [b"n0", b"n1"]  # type: ignore[attr-defined]
        assert asked[0].message.input_shape == (1, 8, 8)  # type: ignore[attr-defined]
        list(planning.hear(roster.at("node-0"), Profiled(profile=one)))
        assert not planning.complete
        list(planning.hear(roster.at("node-1"), Profiled(profile=one)))
        assert planning.complete
        list(planning.solve())
        assert (planning.bounds[0], planning.bounds[1], planning.bounds[-1]) == (0, 1, 6)
        assert planning.expect() is None  # nobody has said how many batches there are
        planning.batches = {"owner-0": 3, "owner-1": 2}
        expected = planning.expect()
        assert expected is not None
        assert set(expected.busy) == {"node-0", "node-1", "node-2"}

    @pytest.mark.parametrize("place", ["node-0", "node-1", "owner-1"])
    def test_a_profile_nobody_asked_for_is_rejected(self, place: str) -> None:
        planning, roster = self.planning("a", "b")
        list(planning.start())
        with pytest.raises(RemoteProtocolError, match=f"{place} sends a profile nobody asked it for"):
            list(planning.hear(roster.at(place), Profiled(profile=profile(planning.job, [1] * 6))))

    def test_order_is_solved_and_nodes_learn_their_new_places(self) -> None:
        planning, roster = self.planning("late", "early")
        list(planning.start())
        list(planning.hear(roster.at("owner-0"), Profiled(profile=profile(planning.job, [1] * 6))))
        list(planning.hear(roster.at("node-0"), Profiled(profile=profile(planning.job, [1, 50, 1, 1, 1, 1]))))
        list(planning.hear(roster.at("node-1"), Profiled(profile=profile(planning.job, [1, 1, 50, 50, 50, 1]))))
        told = {action.to: action.message for action in planning.solve()}  # type: ignore[union-attr]
        assert planning.bounds == (0, 1, 2, 5, 6)
        places = {b"n0": "node-1", b"n1": "node-0"}
        assert told == {who: Welcome(place=place, job=planning.job) for who, place in places.items()}
        assert {seat.identity: seat.place for seat in roster if seat.join.role == "compute"} == places

    def test_places_asked_for_by_name_are_kept(self) -> None:
        planning, roster = self.planning("late", "early", place="yes")
        list(planning.start())
        list(planning.hear(roster.at("owner-0"), Profiled(profile=profile(planning.job, [1] * 6))))
        list(planning.hear(roster.at("node-0"), Profiled(profile=profile(planning.job, [1, 50, 1, 1, 1, 1]))))
        list(planning.hear(roster.at("node-1"), Profiled(profile=profile(planning.job, [1, 1, 50, 50, 50, 1]))))
        assert list(planning.solve()) == []
        assert planning.bounds == (0, 1, 4, 5, 6)  # 52 s in front, 50 s behind: the least this order can do


def test_profiles_travel() -> None:
    from zmpsl.messages import decode_to_manager, encode

    message = Profiled(profile=profile(job(*SMALL), [1.0] * 6))
    assert decode_to_manager(encode(message)) == message
