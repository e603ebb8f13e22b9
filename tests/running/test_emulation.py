"""Imitated devices change when things happen, never what comes out; and their times and links are those asked for."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, cli, differing, global_state, job
from msgspec import structs
from reference import train

from zmpsl.engine.owner import OwnerEngine
from zmpsl.errors import JobError
from zmpsl.job import Job
from zmpsl.job.emulate import emulated, read_scenario, words
from zmpsl.job.emulation import NodeClass, OwnerClass, PartSeconds
from zmpsl.job.emulation_page import page
from zmpsl.launch.process import share_ends
from zmpsl.launch.processes import crowds
from zmpsl.loops.crowd import Crowd
from zmpsl.loops.manager import ManagerNode
from zmpsl.messages import Join
from zmpsl.observe.events import Event, NoticeEvent, PlanEvent, RoundEvent
from zmpsl.roles.admission import rooms_of
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.roles.thin import ThinNode, ThinOwner
from zmpsl.transport.shaping import Lane, lane_of

ROOT = Path(__file__).parents[2]
PLANNING = ROOT / "docs" / "planning"


# The seconds of the profiles do not matter here, so little time is spent on them.
QUICK = [*TINY, "planning.budget_s=0.05"]


def written(folder: Path, text: str) -> Path:
    path = folder / "e.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class CrowdRun:
    """A run whose owners are one crowd, whose nodes another, and whose aggregator a third."""

    def __init__(self, wanted: Job, owner: type[Member] = DataOwner, node: type[Member] = ComputeNode) -> None:
        self.events: list[Event] = []
        role = Manager(None, wanted)
        role.board.listeners.append(self.events.append)
        self.manager = ManagerNode(role)
        kinds = ([Aggregator()], [node() for _ in range(wanted.nodes)], [owner() for _ in range(wanted.owners)])
        share_ends(kinds[2])
        self.crowds = [Crowd(members, self.manager.endpoint) for members in kinds]

    @contextmanager
    def running(self) -> Iterator[CrowdRun]:
        self.manager.start()
        for crowd in self.crowds:
            crowd.start()
        try:
            yield self
        finally:
            for crowd in self.crowds:
                crowd.close()
            self.manager.close()

    def finish(self) -> None:
        assert self.manager.drain(90), "the run did not end"
        if self.manager.error is not None:
            raise self.manager.error
        for crowd in self.crowds:
            assert crowd.drain(10)
            assert crowd.error is None

    @property
    def members(self) -> dict[str, Member]:
        return {node.member.place: node.member for crowd in self.crowds for node in crowd.nodes}

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


SLOW = """
owners:
  - {name: near, count: 2, slow_down: 2, latency_s: 0.002, jitter_s: 0.004}
  - {name: far, slow_down: 3, bytes_per_s: 2e6, latency_s: 0.01}
nodes:
  - {name: small, count: 2, slow_down: 2, bytes_per_s: 50e6, jitter_s: 0.002}
"""


class TestRuns:
    @pytest.mark.parametrize("more", [[], ["train.micro_batches=3", "codec=lossless"]])
    def test_slow_devices_and_links_change_no_weight(self, tmp_path: Path, more: list[str]) -> None:
        wanted = emulated(job(*QUICK, *more), written(tmp_path, SLOW))
        with CrowdRun(wanted).running() as run:
            run.finish()
        plain = structs.replace(wanted, emulate=Job().emulate, compute_nodes=None, cuts="even", codec=Job().codec)
        assert differing(global_state(run.members), train(plain).states[-1]) == []
        (plan,) = run.of(PlanEvent)
        assert plan.emulated
        assert [event.predicted_s is not None for event in run.of(RoundEvent)] == [True, True]
        assert words(wanted) in [event.text for event in run.of(NoticeEvent)]

    def test_owners_hold_a_state_of_their_own_only_while_they_train(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those that wait, and those whose parts have left, have nothing but the base that all share."""
        states: list[weakref.ref[np.ndarray]] = []
        holders: list[int] = []
        begin = OwnerEngine.begin

        def begin_and_count(engine: OwnerEngine, round_: int) -> None:
            begin(engine, round_)
            states.append(weakref.ref(engine.flat.base))
            holders.append(sum(owner.engine._copy is not None for owner in owners))

        monkeypatch.setattr(OwnerEngine, "begin", begin_and_count)
        more = ["owners_in_flight=2", "optimizer.name=adam", "optimizer.state=average", "cuts=even"]
        text = "owners: [{count: 6, latency_s: 0.001}]\nnodes: [{name: n, count: 2}]\nreplicas: 2\n"
        wanted = emulated(job(*QUICK, *more), written(tmp_path, text))
        run = CrowdRun(wanted)
        owners = [node.member for node in run.crowds[2].nodes]
        with run.running():
            run.finish()
        assert len({id(owner.engine.base) for owner in owners}) == 1
        assert len(holders) == 12
        assert max(holders) <= 2
        assert all(owner.engine._copy is None for owner in owners)
        assert not any(state() is not None for state in states)
        plain = structs.replace(wanted, emulate=Job().emulate, compute_nodes=None)
        assert differing(global_state(run.members), train(plain).states[-1]) == []

    def test_codecs_are_chosen_for_the_link_that_is_imitated(self, tmp_path: Path) -> None:
        """What the kernel would measure is this host's loopback."""
        text = SLOW.replace("bytes_per_s: 2e6", "bytes_per_s: 5e5").replace("latency_s: 0.002,", "bytes_per_s: 5e5,")
        more = ["codec=auto", "train.rounds=1", "evaluate.every=0"]
        wanted = emulated(job(*QUICK, *more), written(tmp_path, f"time_scale: 2\n{text}"))
        with CrowdRun(wanted).running() as run:
            run.finish()
        (event,) = run.of(RoundEvent)
        for way in ("owner>node-0", "node-1>owner", "node-0>owner", "owner>node-1"):
            assert event.links[way].bytes_per_s == 1e6
            assert set(event.links[way].codecs) & {"huff", "bitmap"}, way
        # Of a node's link and one to an owner that is slower nothing is mixed up; the aggregator's is an owner's too.
        assert event.links["node-0>node-1"].bytes_per_s == event.links["node-1>node-0"].bytes_per_s == 1e8
        assert event.links["owner>aggregator"].bytes_per_s == 1e6

    def test_measured_seconds_are_taken_for_the_host_s_own(self, tmp_path: Path) -> None:
        text = SLOW.replace("slow_down: 3,", "first: {forward_s: 0.02, backward_s: 0.01}, last: {forward_s: 0.01, "
                            "backward_s: 0.01},")  # fmt: skip
        wanted = emulated(job(*QUICK, "train.rounds=1", "evaluate.every=0"), written(tmp_path, text))
        with CrowdRun(wanted).running() as run:
            run.finish()
        (event,) = run.of(RoundEvent)
        far, batches = event.roles["owner-2"], 2
        assert far.forward_s == pytest.approx(batches * 0.04, rel=0.5)
        assert far.backward_s == pytest.approx(batches * 0.01, rel=0.5)

    def test_thirty_owners_that_compute_nothing(self, tmp_path: Path) -> None:
        profile = PLANNING / "digits-profile.json"
        text = f"""
profile: {profile}
time_scale: 50
local_epochs: 2
owners:
  - {{name: thin, count: 30, slow_down: 60, bytes_per_s: 12.5e6, latency_s: 0.02, compute: none, batches: 3}}
nodes:
  - {{name: node, count: 2, slow_down: 20, compute: none}}
"""
        wanted = emulated(job("train.rounds=2"), written(tmp_path, text))
        assert (wanted.owners, wanted.train.local_epochs, wanted.evaluate.every) == (30, 2, 0)
        with CrowdRun(wanted, ThinOwner, ThinNode).running() as run:
            run.finish()
        assert [event.batches for event in run.of(RoundEvent)] == [180, 180]
        assert any("Nobody trains here" in event.text for event in run.of(NoticeEvent))

    def test_the_command_starts_few_processes(self, tmp_path: Path) -> None:
        options = [part for text in (*QUICK, "train.rounds=1", "evaluate.every=0") for part in ("--set", text)]
        written(tmp_path, SLOW)
        with cli("run", "--plain", "--emulate", "e.yaml", "--name", "r", *options, folder=tmp_path) as process:
            out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "emulated job digits: 3 owners" in out
        assert "note: emulated: 2 near + 1 far data owners; 2 small compute nodes" in out
        logs = {path.stem for path in (tmp_path / "runs" / "r" / "logs").iterdir()}
        assert logs == {"manager", "aggregator", "node-0", "node-1", *(f"owners-{n}" for n in range(len(crowds(3))))}
        assert "Emulated run." in (tmp_path / "runs" / "r" / "report.html").read_text(encoding="utf-8")

    def test_an_owner_without_the_memory_is_refused(self, tmp_path: Path) -> None:
        text = SLOW.replace("slow_down: 3,", "memory_bytes: 1000,")
        wanted = emulated(job(*QUICK), written(tmp_path, text))
        with CrowdRun(wanted).running() as run, pytest.raises(JobError, match=r"owner-2 \(emulated far\).*1,000"):
            run.finish()


class TestFile:
    def test_it_says_who_is_there(self, tmp_path: Path) -> None:
        wanted = emulated(job("owners=9", "compute_nodes=5"), written(tmp_path, "first_cut: 2\nreplicas: 2\n" + SLOW))
        assert (wanted.owners, wanted.nodes, wanted.first_cut, wanted.owners_in_flight) == (3, 2, 2, 2)
        kinds = [wanted.emulate.owner(index) for index in range(4)]
        assert [kind and kind.name for kind in kinds] == ["near", "near", "far", None]

    def test_the_documented_example(self) -> None:
        wanted = emulated(job(), PLANNING / "owners.yaml")
        assert (wanted.owners, wanted.nodes, wanted.emulate.time_scale) == (20, 2, 4)
        assert "10 rpi4 + 10 rpi3 data owners" in words(wanted)

    def test_a_scenario_is_one_too(self) -> None:
        assert emulated(job(), PLANNING / "scenario.yaml").owners == 40

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("owners: [{count: 2}]", "e.yaml:1: the job: object missing required field `nodes`"),
            ("owners: [{cont: 2}]\nnodes: [{name: a}]", r"e.yaml:1: unknown key 'owners.0.cont'; did you mean 'count'"),
            ("owners: [{latency_s: -1}]\nnodes: [{name: a}]", r"e.yaml:1: owners.0.latency_s: .*>= 0"),
            ("owners: [{}]\nnodes: [{name: a}, {name: a}]", "nodes: 2 classes are called 'a'"),
            ("owners: [{}]\nnodes: [{name: a, compute: none}]", "emulate.nodes.0: compute: none needs seconds"),
            ("owners: [{compute: timed}]\nnodes: [{name: a}]", "emulate.owners.0: .*or give first and last"),
        ],
    )
    def test_what_is_wrong_and_where(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(JobError, match=message):
            emulated(job(), written(tmp_path, text))

    def test_a_node_that_computes_nothing_has_the_memory_of_its_class(self, tmp_path: Path) -> None:
        text = f"""
profile: {PLANNING / "digits-profile.json"}
owners: [{{compute: none}}]
nodes: [{{name: a, compute: none}}, {{name: b, compute: none, memory_bytes: 5e9}}, {{name: c, memory_bytes: 5e9}}]
"""
        wanted = emulated(job("memory=1GiB"), written(tmp_path, text))
        joins = {f"node-{hop}": Join(role="compute", host="h", host_bytes=4 << 30) for hop in range(3)}
        assert rooms_of(wanted, joins)[:2] == (None, 5 * 10**9)
        assert rooms_of(wanted, joins)[2] <= 1 << 30

    def test_it_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(JobError, match="cannot be read"):
            read_scenario(tmp_path / "none.yaml")

    def test_classes_in_a_job_must_have_as_many_devices(self) -> None:
        with pytest.raises(JobError, match=r"emulate.owners: the classes have 3 devices, the job 4"):
            job("emulate.owners=[{count: 3}]")


class TestLane:
    def test_one_after_the_other_then_latency(self) -> None:
        lane = Lane(100.0, 0.5, 0.0, "")
        assert [lane.arrival(50, now) for now in (10.0, 10.0, 20.0)] == pytest.approx([11.0, 11.5, 21.0])

    def test_jitter_never_overtakes_and_follows_the_seed(self) -> None:
        def arrivals(seed: str) -> list[float]:
            lane = Lane(None, 0.1, 0.5, seed)
            return [lane.arrival(10**6, 0.01 * number) for number in range(50)]

        assert arrivals("a") == arrivals("a") == sorted(arrivals("a"))
        assert arrivals("a") != arrivals("b")
        assert 0.1 <= arrivals("a")[0] <= 0.6

    def test_a_scaled_link_is_faster_by_that(self) -> None:
        kind = OwnerClass(bytes_per_s=10.0, latency_s=2.0)
        slow, fast = lane_of(kind, 1.0, ""), lane_of(kind, 4.0, "")
        assert slow is not None
        assert fast is not None
        assert slow.arrival(10, 0.0) == pytest.approx(3.0)
        assert fast.arrival(10, 0.0) == pytest.approx(0.75)

    def test_no_link_is_imitated_where_none_is_given(self) -> None:
        assert lane_of(OwnerClass(slow_down=3.0), 1.0, "") is None
        assert lane_of(None, 1.0, "") is None


class TestPage:
    def test_it_is_up_to_date(self) -> None:
        text = (ROOT / "docs" / "emulation.md").read_text(encoding="utf-8")
        assert text == page(), "out of date: python -m zmpsl.job.emulation_page > docs/emulation.md"

    def test_the_module_prints_it(self) -> None:
        command = [sys.executable, "-m", "zmpsl.job.emulation_page"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, page(), "")

    def test_every_key_is_there(self) -> None:
        for kind in (OwnerClass, NodeClass, PartSeconds):
            for name in kind.__struct_fields__:
                assert f"| `{name}` |" in page()


def test_a_thousand_owners_take_four_processes() -> None:
    dealt = crowds(1000)
    assert len(dealt) >= 4
    assert sorted(sum(dealt, ())) == sorted(f"owner-{index}" for index in range(1000))
