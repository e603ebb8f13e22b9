"""The pool of replicas: never above its room, nothing counted twice, nothing lost; budgets; who is in flight."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zmpsl.errors import JobError, RemoteProtocolError
from zmpsl.job import parse_job
from zmpsl.plan import Block, Entry, Footprint
from zmpsl.pool.account import PartMemory, fitting, part_memory
from zmpsl.pool.budget import Limits, Watch, limits_here, parse_memory, room_of
from zmpsl.pool.pool import TRANSITIONS, ReplicaPool, State
from zmpsl.roles.admission import Admission, Filling
from zmpsl.transport.allocator import give_back_freed_memory

OWNERS = 6
BLOCKS = tuple(Block("Linear", (Entry("weight", "float32", (16, 16), True),)) for _ in range(4))
PRINTS = (Footprint(100, 200, 300),) * 4


def memory(*overrides: str) -> PartMemory:
    job = parse_job("", "test", ["compute_nodes=1", "evaluate.every=0", *overrides])
    return part_memory(job, BLOCKS, (0, 1, 3, 4), PRINTS, 1)


class Replica:
    """Stands for one: remembers whose it is."""

    alive = 0

    def __init__(self) -> None:
        Replica.alive += 1

    def __del__(self) -> None:
        Replica.alive -= 1


class Pool(RuleBasedStateMachine):
    """Owners come, train, stall, close and vanish in any order; activations may turn out larger than was thought."""

    @initialize(fit=st.integers(1, OWNERS), rest=st.floats(0, 0.99))
    def start(self, fit: int, rest: float) -> None:
        Replica.alive = 0
        cost = memory()
        self.room = cost.need(fit) + int(rest * cost.slot)
        self.pool: ReplicaPool[Replica] = ReplicaPool(cost, self.room, OWNERS)
        assert self.pool.capacity == min(fit, OWNERS)
        self.folded: list[int] = []
        self.built: set[int] = set()
        self.over = 0  # replicas that were there before it turned out that they do not fit

    def build(self, owner: int, spare: Replica | None) -> Replica:
        self.built.add(owner)
        return spare or Replica()

    @rule(owner=st.integers(0, OWNERS - 1))
    def forward(self, owner: int) -> None:
        before, free = self.pool.state(owner), self.pool.capacity - self.pool.in_use
        admitted = self.pool.admit(owner)
        assert admitted == (before is not State.ASIDE and (before not in (State.FREE, State.WAITING) or free > 0))
        if not admitted:
            assert owner in self.pool.waiting or before is State.ASIDE
            with pytest.raises(RemoteProtocolError):
                self.pool.get(owner, self.build)
        elif before is State.FOLDED:
            with pytest.raises(RemoteProtocolError, match="is folded"):
                self.pool.get(owner, self.build)
        else:
            assert self.pool.get(owner, self.build) is self.pool.get(owner)

    @rule(owner=st.integers(0, OWNERS - 1))
    def reserve_only(self, owner: int) -> None:
        if self.pool.admit(owner) and self.pool.state(owner) is State.RESERVED:
            with pytest.raises(RemoteProtocolError, match="is reserved, it has no replica"):
                self.pool.get(owner)

    @rule(owner=st.integers(0, OWNERS - 1))
    def close(self, owner: int) -> None:
        if self.pool.state(owner) is State.TRAINING:
            replica = self.pool.get(owner)
            assert self.pool.fold(owner) is replica
            self.folded.append(owner)
        else:
            with pytest.raises(RemoteProtocolError, match="cannot fold"):
                self.pool.fold(owner)

    @rule(owner=st.integers(0, OWNERS - 1))
    def vanish(self, owner: int) -> None:
        if self.pool.state(owner) is State.FOLDED:
            with pytest.raises(RemoteProtocolError, match="cannot drop"):
                self.pool.drop(owner)
        else:
            self.pool.drop(owner)
            assert self.pool.state(owner) is State.FREE

    @rule(owner=st.integers(0, OWNERS - 1))
    def stall(self, owner: int) -> None:
        if self.pool.state(owner) in (State.FOLDED, State.ASIDE):
            with pytest.raises(RemoteProtocolError, match="cannot set aside"):
                self.pool.set_aside(owner)
        else:
            self.pool.set_aside(owner)
            assert self.pool.state(owner) is State.ASIDE

    @rule(owner=st.integers(0, OWNERS - 1))
    def go_on(self, owner: int) -> None:
        if self.pool.state(owner) is State.ASIDE:
            self.pool.take_up(owner)
            assert owner in self.pool.waiting
        else:
            with pytest.raises(RemoteProtocolError, match="cannot take up"):
                self.pool.take_up(owner)

    @rule(saved=st.integers(0, 4000))
    def learn(self, saved: int) -> None:
        larger = self.pool.memory.with_activations([Footprint(0, 0, saved)])
        if larger.need(1) > self.room:
            return
        self.pool.resize(larger)
        self.over = max(0, self.pool.in_use - self.pool.capacity)

    @rule()
    def next_round(self) -> None:
        self.pool.begin()
        assert all(self.pool.state(owner) is State.FREE for owner in range(OWNERS))
        self.folded.clear()
        self.built.clear()

    @invariant()
    def never_above_the_room(self) -> None:
        self.over = min(self.over, max(0, self.pool.in_use - self.pool.capacity))
        assert self.pool.held <= self.pool.capacity + self.over
        assert self.over or self.pool.reserved_bytes <= self.room

    @invariant()
    def nothing_is_built_beside_what_is_held(self) -> None:
        assert Replica.alive <= self.pool.held

    @invariant()
    def folded_once_and_only_what_was_built(self) -> None:
        assert len(set(self.folded)) == len(self.folded)
        assert set(self.folded) <= self.built
        assert {owner for owner in range(OWNERS) if self.pool.state(owner) is State.FOLDED} == set(self.folded)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_table_leads_everywhere_and_only_a_training_owner_is_folded() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert [before for (before, event) in TRANSITIONS if event == "fold"] == [State.TRAINING]
    assert [after for (_, event), after in TRANSITIONS.items() if event == "build"] == [State.TRAINING]


class TestAccount:
    def test_by_hand(self) -> None:
        cost = memory("train.batch_size=4")  # SGD with momentum; two blocks of 1024 bytes
        assert (cost.base, cost.accumulator, cost.trained, cost.optimizer, cost.step) == (2048, 8192, 2048, 2048, 1024)
        assert cost.activations == 100 + 600 + 200
        assert cost.fixed == 2048 + 8192 + 1024 + 3 * 200 + 2048  # gradients once
        assert cost.slot == 2048 + 2048 + 900 + 2 * int(300 * 1.125)  # what receive buffers keep is as much again
        assert cost.need(3) == cost.fixed + 3 * cost.slot
        assert sum(nbytes for _, nbytes in cost.rows(3)) == cost.need(3)

    @pytest.mark.parametrize(
        ("more", "optimizer", "base"),
        [
            (["optimizer.momentum=0"], 0, 2048),
            (["optimizer.name=adam"], 4096, 2048),
            (["optimizer.state=average"], 0, 4096),
            (["optimizer.name=adam", "optimizer.state=average"], 0, 3 * 2048 + 128),
        ],
    )
    def test_optimisers(self, more: list[str], optimizer: int, base: int) -> None:
        cost = memory(*more)
        assert (cost.optimizer, cost.base) == (optimizer, base)

    def test_with_micro_batches_gradients_outlive_a_task(self) -> None:
        cost = memory("train.micro_batches=4", "train.schedule=gpipe")
        assert cost.micros == 4
        assert not cost.shared_gradients
        assert cost.slot - cost.activations - 2 * cost.buffers == cost.base + cost.optimizer + cost.trained
        assert memory("train.micro_batches=9").micros == 3  # 1F1B: as many as there are parts

    @settings(deadline=None)
    @given(st.integers(0, 200_000), st.integers(0, 40))
    def test_as_many_as_fit_and_not_one_more(self, room: int, most: int) -> None:
        cost = memory()
        found = fitting(cost, room, most)
        assert found == 0 or cost.need(found) <= room
        assert found == most or cost.need(found + 1) > room

    def test_without_a_limit_all_fit(self) -> None:
        assert fitting(memory(), None, 100) == 100

    def test_not_even_one(self) -> None:
        with pytest.raises(JobError, match=r"node-0: one replica needs .* KiB, there is room for 10 B"):
            ReplicaPool(memory(), 10, 3, "node-0")


class TestBudget:
    @pytest.mark.parametrize(
        ("text", "nbytes"),
        [(4096, 4096), ("4GiB", 4 << 30), ("1.5 GB", 1_500_000_000), ("80%", 800), ("12.5 %", 125), ("7B", 7)],
    )
    def test_texts(self, text: int | str, nbytes: int) -> None:
        assert parse_memory(text, 1000) == nbytes

    @pytest.mark.parametrize("text", ["4 gib", "lots", "-1GiB", "%", "1e9B"])
    def test_no_budget(self, text: str) -> None:
        with pytest.raises(JobError, match="is no budget; write bytes, a size such as 4GiB, or a share such as 80%"):
            parse_memory(text, 1000)
        with pytest.raises(JobError):
            limits_here(text)

    def test_nodes_of_one_host_divide_a_share_but_not_a_size(self) -> None:
        limits = Limits(host_bytes=1000, used_bytes=100)
        assert room_of("80%", limits, 2) == 300
        assert room_of("800B", limits, 2) == 700
        assert room_of("80%", Limits(1000, 100, "500"), 2) == 400
        assert room_of("50B", limits, 1) == 0
        assert room_of("80%", Limits(), 1) is None

    @pytest.mark.parametrize(
        ("line", "files", "limit"),
        [
            ("0::/a/b", {"a/memory.max": "5000000\n", "a/b/memory.max": "max\n"}, 5_000_000),
            ("0::/a/b", {"a/memory.max": "5000000\n", "a/b/memory.max": "4000000\n"}, 4_000_000),
            ("0::/somewhere/else", {"memory.max": "6000000"}, 6_000_000),  # in a container
            ("4:cpu,memory:/x", {"memory/x/memory.limit_in_bytes": "7000000"}, 7_000_000),
            ("4:memory:/x", {"memory/x/memory.limit_in_bytes": str(2**63 - 4096)}, None),
            ("4:cpu:/x", {"memory/x/memory.limit_in_bytes": "7000000", "x/memory.max": "1"}, None),
        ],
    )
    def test_cgroups(self, tmp_path: Path, line: str, files: dict[str, str], limit: int | None) -> None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(line + "\n")
        (tmp_path / "proc/self/statm").write_text("10 5 1 1 0 1 0\n")
        for name, text in files.items():
            (tmp_path / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cg" / name).write_text(text)
        found = limits_here("", tmp_path / "proc", tmp_path / "cg")
        assert found.host_bytes == (limit or limits_here("", tmp_path / "none", tmp_path / "none").host_bytes)

    def test_here(self) -> None:
        here = limits_here("2GiB")
        assert here.own == "2GiB"
        assert here.host_bytes == 0 or here.host_bytes > here.used_bytes > 0


class TestWatch:
    def test_memory_is_given_back_near_the_budget_and_not_all_the_time(self) -> None:
        now, given = [0], []

        def give_back() -> None:
            given.append(now[0])
            now[0] = 900 << 20

        watch = Watch(1000 << 20, give_back, lambda: now[0])
        for mib in (500, 900, 910, 920, 921, 923, 925, 930, 990):
            now[0] = mib << 20
            watch.look()
        assert [nbytes >> 20 for nbytes in given] == [910, 925, 930, 990]

    def test_without_a_budget_nothing_is_done(self) -> None:
        Watch(None, lambda: pytest.fail("given back")).look()

    def test_what_is_free_is_given_back(self) -> None:
        give_back_freed_memory()  # whatever the C library; it must not fail


class TestAdmission:
    @settings(deadline=None)
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50), st.randoms(use_true_random=False))
    def test_everybody_once_and_never_more_than_the_limit(self, limit, owners, round_, random) -> None:
        names = [f"owner-{index}" for index in range(owners)]
        admission = Admission(names, limit)
        flying = list(admission.start(round_))
        assert len(flying) == min(limit, owners)
        begun = [*flying]
        while flying:
            new = admission.done(flying.pop(random.randrange(len(flying))))
            begun += new
            flying += new
            assert len(flying) <= limit
        assert len(set(begun)) == len(begun)
        assert set(begun) == set(names)

    def test_who_is_first_turns(self) -> None:
        admission = Admission(["a", "b", "c"], 2)
        assert [admission.start(round_) for round_ in range(4)] == [["a", "b"], ["c", "a"], ["b", "c"], ["a", "b"]]
        assert Admission(["a", "b", "c"]).start(5) == ["a", "b", "c"]

    def test_begins_with_what_fills_the_chain_and_lets_more_in(self) -> None:
        admission = Admission([str(index) for index in range(20)], 12)
        admission.aim(math.inf)
        assert admission.limit == 12
        admission.aim(2.5)
        assert admission.start(0) == ["0", "1", "2", "3", "4"]  # half as many more, and one
        assert admission.widen() == ["5", "6"]
        assert admission.done("1") == ["7"]
        assert [len(admission.widen()) for _ in range(4)] == [3, 2, 0, 0]
        assert (admission.limit, admission.most, admission.waiting) == (12, 12, 7)

    def test_a_number_that_the_job_gives_stays(self) -> None:
        admission = Admission([str(index) for index in range(20)], 12)
        admission.aim(2.5, more=False)
        assert (admission.limit, admission.to_fill) == (12, 2.5)

    @pytest.mark.parametrize(
        ("owners", "most", "limit"), [(30, 30, 15), (30, 14, 12), (13, 13, 13), (9, 9, 9), (36, 36, 12)]
    )
    def test_the_last_of_them_are_not_too_few(self, owners: int, most: int, limit: int) -> None:
        """7.07 fill the chain, so 12 are enough: but of 30 owners, 6 would then be left for the end."""
        admission = Admission([str(index) for index in range(owners)], most)
        admission.aim(7.07)
        assert admission.limit == limit


class TestFilling:
    @pytest.mark.parametrize(("busy", "waits"), [(2.6, True), (2.9, False)])
    def test_the_busiest_node_counts(self, busy: float, waits: bool) -> None:
        filling = Filling()
        assert not filling.waits(10.0, 5, {"node-0": 1.0, "node-1": 7.0}, 2)
        assert not filling.waits(12.9, 50, {"node-0": 1.1, "node-1": 7.1}, 2)  # too soon
        assert filling.waits(13.0, 50, {"node-0": 1.1, "node-1": 7.0 + busy}, 2) == waits

    def test_every_owner_in_flight_must_have_trained_for_a_while(self) -> None:
        filling = Filling()
        assert not filling.waits(0.0, 0, {}, 3)
        assert not filling.waits(60.0, 11, {"node-0": 1.0}, 3)
        assert filling.waits(61.0, 12, {"node-0": 1.0}, 3)

    def test_each_window_stands_for_itself(self) -> None:
        filling = Filling()
        filling.waits(0.0, 0, {"node-0": 0.0}, 1)
        assert filling.waits(4.0, 8, {"node-0": 1.0}, 1)
        assert not filling.waits(8.0, 16, {"node-0": 2.0}, 1)  # a new one begins here
        filling.restart()
        assert not filling.waits(12.0, 24, {"node-0": 3.0}, 1)
        assert filling.waits(16.0, 32, {"node-0": 4.0}, 1)
