"""Owners that stay away: left out where the job allows it, until they are back."""

from __future__ import annotations

import threading
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from faulty_run import FaultyRun
from helpers import TINY, ThreadedRun, differing, job, notices, wait_for
from left_out import lazy, with_deadline, with_quorum
from made_up import profile
from reference import train

from zmpsl.checkpoint import load_state_dict
from zmpsl.errors import JobError, PeerLostError
from zmpsl.job.emulation import Emulate, NodeClass
from zmpsl.job.fewer import with_nodes
from zmpsl.job.load import dump_job, parse_job
from zmpsl.loops.member import Node
from zmpsl.observe.events import NoticeEvent, PlanEvent
from zmpsl.profiles import write_profile
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.owner import DataOwner


@pytest.mark.parametrize("seed", range(3))
def test_a_run_goes_on_without_an_owner_as_if_it_had_never_been(tmp_path: Path, seed: int):
    run = FaultyRun(with_quorum(0.6), seed, tmp_path, faults=0, loses="owner-1")
    run.run()
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job, absent=[1]).states[-1]) == []


@pytest.mark.parametrize(("place", "quorum"), [("owner-1", 0.7), ("node-0", 0.1), ("aggregator", 0.1)])
def test_below_the_quorum_or_without_a_node_the_run_ends(tmp_path: Path, place: str, quorum: float):
    run = FaultyRun(with_quorum(quorum), 1, tmp_path, faults=0, loses=place)
    with pytest.raises(PeerLostError, match=f"{place} did not come back within 5 s"):
        run.run()


@pytest.mark.parametrize("place", ["node-0", "node-1"])
@pytest.mark.parametrize("loses_in", [0, 2])
def test_a_standby_node_takes_the_place_of_a_lost_one(tmp_path: Path, place: str, loses_in: int):
    run = FaultyRun(with_quorum(1.0, wait_s=50), 2, tmp_path, faults=0, loses=place, loses_in=loses_in, standby=1)
    run.run()
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job).states[-1]) == []


@pytest.mark.parametrize("place", ["node-0", "node-1"])
@pytest.mark.parametrize("loses_in", [0, 1])
@pytest.mark.parametrize("kept", ["reset", "average"])
def test_the_run_goes_on_with_fewer_nodes_under_other_cuts(tmp_path: Path, place: str, loses_in: int, kept: str):
    """Cuts change no result, and the parts come from the checkpoint whoever wrote them."""
    wanted = with_quorum(1.0)
    wanted = msgspec.structs.replace(
        wanted,
        recover=msgspec.structs.replace(wanted.recover, fewer_nodes=True),
        optimizer=msgspec.structs.replace(wanted.optimizer, state=kept),
    )
    run = FaultyRun(wanted, 2, tmp_path, faults=0, loses=place, loses_in=loses_in)
    run.run()
    assert run.manager.plan is not None
    assert len(run.manager.plan.nodes) == 1
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job).states[-1]) == []


@pytest.mark.parametrize("place", ["node-0", "node-2"])
def test_with_fewer_nodes_the_cuts_are_solved_anew_from_what_was_measured(tmp_path: Path, place: str):
    """Block 4 is dear: of two nodes one gets it alone, which even cuts would not do."""
    settings = [*TINY, "owners=2", "compute_nodes=3", "recover.fewer_nodes=true", "recover.wait_s=5"]
    write_profile(tmp_path / "p.json", profile(job(*settings), [1, 1, 1, 1, 9, 1]))
    wanted = job(*settings, f"planning.profile={tmp_path / 'p.json'}")
    run = FaultyRun(wanted, 2, tmp_path, faults=0, loses=place, loses_in=1)
    texts = notices(run.manager.board)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 1, 4, 5, 6)
    assert sum("cuts solved in" in text for text in texts) == 2
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job).states[-1]) == []


@pytest.mark.parametrize("place", ["node-0", "node-1", "node-2"])
def test_what_the_job_says_of_a_lost_node_goes_with_it_and_the_run_can_go_on(tmp_path: Path, place: str):
    """The run's job.yaml once named node-2 where only two nodes were left, and `--resume` refused it."""
    settings = [
        *TINY, "owners=2", "compute_nodes=3", "recover.fewer_nodes=true", "recover.wait_s=5", "threads=1",
        "planning.node_memory={node-0: 1000000000, node-1: 1000000001, node-2: 1000000002}",
        "emulate.slow_down={node-2: 1.5}", "codec.links={'node-0>node-1': lz4, 'node-2>owner': huff}",
    ]  # fmt: skip
    write_profile(tmp_path / "p.json", profile(job(*settings), [1, 1, 1, 1, 9, 1]))
    run = FaultyRun(job(*settings, f"planning.profile={tmp_path / 'p.json'}"), 2, tmp_path, 0, loses=place, loses_in=1)
    run.run()
    assert run.manager.plan is not None
    left = parse_job(dump_job(run.manager.plan.job), "job.yaml")
    lost = int(place[-1])
    budgets = [1000000000 + hop for hop in range(3) if hop != lost]
    assert left.planning.node_memory == {f"node-{hop}": size for hop, size in enumerate(budgets)}
    assert left.emulate.slow_down == ({} if lost == 2 else {"node-1": 1.5})
    links = ({"node-0>node-1": "lz4"} if lost == 2 else {}) | ({} if lost == 2 else {"node-1>owner": "huff"})
    assert left.codec.links == links
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job).states[-1]) == []


def test_the_nodes_left_hold_no_more_than_they_may(tmp_path: Path):
    """One of two nodes is lost, and the other may not hold the whole middle: the run ends and says so."""
    wanted = job(*TINY, "owners=2", "planning.max_blocks=2", "recover.fewer_nodes=true", "recover.wait_s=5")
    run = FaultyRun(wanted, 2, tmp_path, 0, loses="node-0", loses_in=1)
    with pytest.raises(JobError, match=r"node-0 would hold 4 blocks \(1 to 4\), more than planning.max_blocks 2"):
        run.run()


def test_owners_keep_their_blocks_when_listed_cuts_no_longer_fit(tmp_path: Path):
    wanted = job(*TINY, "owners=2", "cuts=[2, 3, 5]", "recover.fewer_nodes=true", "recover.wait_s=5")
    run = FaultyRun(wanted, 2, tmp_path, 0, loses="node-0", loses_in=1)
    run.run()
    assert run.manager.plan is not None
    assert run.manager.plan.bounds == (0, 2, 5, 6)


def test_imitated_devices_stay_with_their_nodes():
    classes = [NodeClass(name="slow", count=2, slow_down=3), NodeClass(name="fast", count=2)]
    four = msgspec.structs.replace(job("compute_nodes=4"), emulate=Emulate(nodes=classes))
    names = [(kind.name, kind.count) for kind in with_nodes(four, [0, 2, 3]).emulate.nodes]
    assert names == [("slow", 1), ("fast", 2)]
    assert with_nodes(four, [1]).emulate.nodes == [NodeClass(name="slow", slow_down=3)]


def test_a_role_that_hangs_counts_as_lost(tmp_path: Path):
    """Its connection is open and its heartbeats are answered, but its code does nothing: as a dead disk leaves it."""
    awake = threading.Event()
    settings = ["owners=2", "train.rounds=100000", "evaluate.every=0", "recover.silent_s=3", "recover.quorum=0.5"]
    with ThreadedRun(
        job("data.args.limit=96", "train.batch_size=16", *settings, "recover.wait_s=0.3"), tmp_path
    ) as run:
        manager = run.manager.manager
        wait_for(lambda: manager.phase is Phase.TRAINING and manager.round > 0)
        victim = next(node for node in run.nodes if node.member.place == "owner-1")
        victim.member.wants_work = awake.wait  # type: ignore[method-assign, assignment]
        wait_for(lambda: manager.plan is not None and manager.plan.active == (0,) and manager.phase is Phase.TRAINING)
        awake.set()
        assert victim.drain(10)
        assert "has said nothing for 3 s" in str(victim.error)
        assert run.manager.stop()


def test_a_node_that_hangs_is_followed_by_a_standby(tmp_path: Path):
    """The same of a compute node, in the middle of a round: nobody but the manager can tell."""
    awake = threading.Event()
    settings = [
        "owners=2",
        "train.rounds=100000",
        "evaluate.every=0",
        "recover.silent_s=3",
        "recover.standby_after_s=0.1",
    ]
    with ThreadedRun(job("data.args.limit=96", "train.batch_size=16", *settings), tmp_path) as run:
        manager = run.manager.manager
        with Node(ComputeNode(tmp_path, "standby"), run.manager.endpoint) as other:
            wait_for(lambda: manager.phase is Phase.TRAINING and manager.round > 0 and other.member.place)
            victim = next(node for node in run.nodes if node.member.place == "node-0")
            victim.member.has_room = lambda _task: awake.wait()  # type: ignore[method-assign]
            wait_for(lambda: other.member.place == "node-0" and manager.phase is Phase.TRAINING)
            seen = manager.round
            wait_for(lambda: manager.round > seen + 1)
            awake.set()
            assert victim.drain(10)
            assert "has said nothing for 3 s" in str(victim.error)
            assert run.manager.stop()


@pytest.mark.parametrize("seed", range(3))
def test_an_owner_that_never_trains_is_left_out_at_the_deadline(tmp_path: Path, seed: int):
    run = FaultyRun(with_deadline(0.6), seed, tmp_path, faults=0)
    lazy(run, "owner-1")
    texts = notices(run.manager.board)
    with patch.object(run, "_come_back", lambda _name: None):
        run.run()
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job, absent=[1]).states[-1]) == []
    assert sum("owner-1 did not finish round 1 within 20 s (recover.round_s) and is left out" in text for text in texts)


def test_below_the_quorum_an_owner_that_is_late_is_waited_for(tmp_path: Path):
    run = FaultyRun(with_deadline(1.0), 1, tmp_path, faults=0)
    lazy(run, "owner-1")
    told: list[str] = []

    def heard(event: object) -> None:
        if isinstance(event, NoticeEvent) and "is waited for" in event.text:
            told.append(event.text)
            member = next(
                each.station.member for each in run._places.values() if each.station.member.place == "owner-1"
            )
            vars(member).pop("wants_work", None)  # now it trains

    run.manager.board.listeners.append(heard)
    run.run()
    assert "recover.quorum 1 does not hold without" in told[0]
    assert differing(load_state_dict(tmp_path / "memory"), train(run.job).states[-1]) == []


def test_an_owner_that_was_left_out_takes_part_again(tmp_path: Path):
    settings = ["owners=3", "train.rounds=100000", "evaluate.every=0", "recover.wait_s=0.3", "recover.quorum=0.5"]
    with ThreadedRun(job("data.args.limit=96", "train.batch_size=16", *settings), tmp_path) as run:
        manager = run.manager.manager
        wait_for(lambda: manager.phase is Phase.TRAINING and manager.round > 0)
        victim = next(node for node in run.nodes if node.member.place == "owner-1")
        assert victim.stop()
        wait_for(lambda: manager.plan is not None and manager.plan.active == (0, 2) and manager.phase is Phase.TRAINING)
        left_out = manager.round
        wait_for(lambda: manager.round > left_out + 1)
        with Node(DataOwner(tmp_path, "owner-1"), run.manager.endpoint):
            wait_for(lambda: manager.plan is not None and manager.plan.active == (0, 1, 2))
            back = manager.round
            wait_for(lambda: manager.round > back + 1)
            texts = [event.text for event in run.events if isinstance(event, NoticeEvent)]
            assert any("goes on without owner-1" in text for text in texts)
            assert [event.owners for event in run.events if isinstance(event, PlanEvent)] == [3, 2, 3]
            assert run.manager.stop()
