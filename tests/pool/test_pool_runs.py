"""A node's memory bounds how many owners train at a time, and changes nothing in the result."""

from __future__ import annotations

import os
import random
import weakref
from pathlib import Path

import msgspec
import numpy as np
import pytest
from exact import reference
from helpers import ThreadedRun, differing, global_state
from small_pools import Watched, parts, pools, rooms, small

from zmpsl.engine.build import summarise
from zmpsl.errors import JobError
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import Begin, Trained
from zmpsl.observe.events import NoticeEvent
from zmpsl.roles import compute
from zmpsl.roles.actions import Tell
from zmpsl.roles.admission import Filling
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.planning import CutPlanning
from zmpsl.transport.task import Op
from zmpsl.transport.wire import parse

CASES = [
    ("mlp", 1, 4, 1, [1]),
    ("mlp", 3, 5, 1, [2, 4, 3]),
    ("dropout", 2, 4, 1, [1, 3]),
    ("dropout", 2, 5, 4, [2, 2]),
    ("batch-norm", 2, 4, 1, [3, 2]),
    ("transformer", 2, 3, 2, [2, 1]),
]


@pytest.mark.parametrize(("model", "hops", "owners", "micro", "fit"), CASES)
def test_any_budget_gives_the_reference(model: str, hops: int, owners: int, micro: int, fit: list[int]):
    seed = hops * 100 + owners * 10 + micro
    wanted = small(model, hops, owners, micro)
    ours = Watched(wanted, seed, rooms=rooms(wanted, fit, seed))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert ours.manager.plan is not None
    assert ours.manager.plan.in_flight == ours.most == min(fit)
    assert all(pool.held <= pool.capacity and not pool.in_use for pool in pools(ours))


@pytest.mark.parametrize("seed", range(int(os.environ.get("ZMPSL_BUDGETS", "4"))))
def test_budgets_drawn_at_random(tmp_path: Path, seed: int):
    """Model, hops, owners, micro-batches, room, optimiser states, recomputation and every order of events."""
    draw = random.Random(1000 + seed)
    model, hops, owners = draw.choice(["mlp", "dropout", "batch-norm"]), draw.randint(1, 3), draw.randint(2, 5)
    micro = 1 if model == "batch-norm" else draw.randint(1, 4)
    wanted = small(model, hops, owners, micro, f"optimizer.state={draw.choice(['reset', 'average', 'keep'])}")
    fit = [draw.randint(1, owners) for _ in range(hops)]
    chosen = msgspec.structs.replace(wanted, recompute=draw.choice(["never", "always"]))
    ours = Watched(chosen, seed, tmp_path, rooms=rooms(wanted, fit, seed))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


@pytest.mark.parametrize(
    "more",
    [["optimizer.state=average"], ["optimizer.name=adam", "optimizer.state=average"], ["train.schedule=gpipe"]],
    ids=lambda more: more[0] + more[-1],
)
def test_settings(more: list[str]):
    wanted = small("dropout", 2, 4, 3, *more)
    ours = Watched(wanted, 3, rooms=rooms(wanted, [2, 2], 3))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    assert ours.most == 2


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("state", ["reset", "average"])
def test_weights_that_are_not_trained_or_written_in_forward(hops: int, state: str):
    """Replicas share the base's weights until their first update; what forward writes must never be the base's."""
    odd = ["model.name=small_nets:odd_net", "model.args={}", "evaluate.every=0"]  # evaluation would write them too
    wanted = small("mlp", hops, 3, 1, *odd, f"optimizer.state={state}")
    ours = Watched(wanted, 1, rooms=rooms(wanted, [2] * hops, 1))
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


@pytest.mark.parametrize(
    ("model", "hops", "micro"), [("dropout", 2, 1), ("dropout", 1, 4), ("batch-norm", 2, 1), ("transformer", 2, 2)]
)
def test_activations_computed_again(model: str, hops: int, micro: int):
    """Dropout draws the same again; batch norm's running statistics count a batch once."""
    wanted = small(model, hops, 3, micro)
    ours = Watched(msgspec.structs.replace(wanted, recompute="always"), 1, rooms=[1 << 30] * hops)
    ours.run()
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


def test_activations_are_computed_again_where_they_would_not_fit():
    wanted = msgspec.structs.replace(small("dropout", 2, 3, 1), owners_in_flight=3)
    given = [1 << 30, parts(wanted)[1].need(3) - 1]
    with pytest.raises(JobError, match="node-1: part 2"):
        MemoryRun(wanted, rooms=given).run()
    ours = Watched(msgspec.structs.replace(wanted, recompute="auto"), 1, rooms=given)
    told: list[object] = []
    ours.manager.board.listeners.append(told.append)
    ours.run()
    again = "forward is run again before backward, to need less (recompute), on node-1"
    assert any(again in event.text for event in told if isinstance(event, NoticeEvent))
    assert ours.manager.plan.recompute == (False, True)
    assert ours.most == 3
    assert differing(global_state(ours.members), reference(small("dropout", 2, 3, 1)).states[-1]) == []


def test_a_forward_that_writes_weights_is_not_repeated():
    odd = ["model.name=small_nets:odd_net", "model.args={}"]
    wanted = msgspec.structs.replace(small("mlp", 1, 2, 1, *odd), recompute="always")
    with pytest.raises(JobError, match="write their weights in forward, which cannot be repeated"):
        MemoryRun(wanted).run()


class CloseLast(random.Random):
    """Draws moves, the arrival of a CLOSE only where nothing else can happen."""

    def choice(self, moves):
        def closes(what, place, sender) -> bool:
            return what == "arrive" and parse(place.arriving[sender][0][0], 1 << 40).task.op is Op.CLOSE

        return super().choice([move for move in moves if not closes(*move)] or moves)


@pytest.mark.parametrize("seed", range(2))
def test_owners_wait_in_the_node_while_a_close_is_on_its_way(seed: int):
    """The manager lets the next owner begin when one has trained: its first forward may overtake the other's CLOSE."""
    wanted = small("mlp", 3, 5, 1, "train.rounds=3")
    ours = Watched(wanted, seed, rooms=rooms(wanted, [1, 1, 1], seed))
    ours.random = CloseLast(seed)
    ours.run()
    assert all(pool.waits > 0 for pool in pools(ours)[:1])
    assert ours.most == 1
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


def test_the_job_can_say_how_many():
    wanted = msgspec.structs.replace(small("mlp", 2, 4, 1), owners_in_flight=2)
    ours = Watched(wanted)
    ours.run()
    assert ours.most == 2
    assert differing(global_state(ours.members), reference(small("mlp", 2, 4, 1)).states[-1]) == []


def test_the_memory_that_cuts_are_planned_for_bounds_owners_too():
    wanted = small("mlp", 2, 4, 1)
    budgets = rooms(wanted, [4, 2], 1)
    ours = Watched(small("mlp", 2, 4, 1, f"planning.node_memory={{node-1: {budgets[1]}}}"), rooms=[1 << 30] * 2)
    ours.run()
    assert ours.manager.plan.rooms == (1 << 30, budgets[1])
    assert ours.most == ours.manager.plan.in_flight == 2
    little = small("mlp", 2, 4, 1, f"planning.node_memory={{node-1: {parts(wanted)[1].need(1) - 1}}}")
    with pytest.raises(JobError, match=r"node-1: part 2 .* for it \(memory, planning.node_memory\)"):
        MemoryRun(little).run()


def test_over_tcp_with_random_delays():
    wanted = small("dropout", 2, 4, 2, "network.jitter_s=0.002")
    bounded = msgspec.structs.replace(wanted, owners_in_flight=1, recompute="always")
    with ThreadedRun(bounded) as ours:
        ours.finish()
    assert differing(global_state(ours.members), reference(small("dropout", 2, 4, 2)).states[-1]) == []
    assert all(node.rejected == 0 for node in ours.nodes)


def test_all_train_at_once_where_all_fit():
    wanted = small("mlp", 2, 4, 1)
    ours = MemoryRun(wanted)
    assert ours.manager.plan is None
    ours.run()
    assert ours.manager.plan.in_flight == 4


@pytest.mark.parametrize(("asked", "room"), [("auto", 0.9), (2, 1.2), (2, 0.0)])
def test_too_little_memory_is_refused_when_the_plan_is_made(asked: object, room: float):
    wanted = msgspec.structs.replace(small("mlp", 2, 4, 1), owners_in_flight=asked)
    memory = parts(wanted)[1]
    need = memory.need(1 if asked == "auto" else 2)
    given = int(room * memory.need(1))
    ours = MemoryRun(wanted, rooms=[1 << 30, given])
    what = rf"node-1: part 2 \(blocks 4 to 5\) .* needs {need} bytes .*, but the node has {given} bytes"
    with pytest.raises(JobError, match=what):
        ours.run()
    assert not any(hasattr(member, "engine") for member in ours.members.values())  # nothing was built


def test_activations_larger_than_reckoned_are_found_before_they_are_made(monkeypatch: pytest.MonkeyPatch):
    """A manager that knows no shapes plans without activations; the node looks before it builds."""
    wanted = small("mlp", 1, 3, 1)
    monkeypatch.setattr("zmpsl.roles.owner.model_footprints", lambda *_: ())
    memory = parts(wanted)[0]
    ours = Watched(wanted, rooms=[memory.need(2)])
    ours.run()
    assert ours.manager.plan.in_flight == 3
    assert ours.most == 2
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
    with pytest.raises(JobError, match=r"node-0: one replica needs .*, there is room for"):
        MemoryRun(wanted, rooms=[memory.need(1) - 1]).run()


def test_a_new_plan_finds_the_memory_of_the_old_one_free(monkeypatch: pytest.MonkeyPatch):
    ours = MemoryRun(small("mlp", 1, 2, 1))
    ours.run()
    node, plan = ours.members["node-0"], ours.manager.plan
    kind = compute.ComputeEngine
    spare = node.engine.pool._spares[0]
    before = [weakref.ref(each) for each in (node.engine, node.engine.base.flat, spare, spare.flat)]
    del spare

    def build(*args):
        assert [each() for each in before] == [None] * 4
        return kind(*args)

    monkeypatch.setattr(compute, "ComputeEngine", build)
    list(node.build(msgspec.structs.replace(plan, version=2)))
    assert node.engine.pool.capacity == 2


def test_what_a_process_takes_by_itself_is_measured_before_it_holds_a_part():
    node = compute.ComputeNode()
    first = node.limits()
    held = np.ones(64 << 20, np.uint8)
    assert node.limits() == first
    assert compute.ComputeNode().limits().used_bytes >= first.used_bytes + held.nbytes // 2


def test_owners_take_turns_to_be_first():
    wanted = msgspec.structs.replace(small("mlp", 1, 3, 1, "train.rounds=3"), owners_in_flight=1)
    ours = MemoryRun(wanted)
    begun = []
    hear = ours.manager.hear

    def hear_and_note(who, message):
        for action in hear(who, message):
            if isinstance(action, Tell) and isinstance(action.message, Begin):
                begun.append(ours.manager.roster.get(action.to).place)
            yield action

    ours.manager.hear = hear_and_note
    ours.run()
    owners = [place for place in begun if place.startswith("owner")]
    assert [int(place[-1]) for place in owners] == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert [begun.count(place) for place in ("node-0", "aggregator")] == [3, 3]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_owner_with_a_hundred_times_the_data_holds_nobody_up(seed: int):
    """It trains from the start; those with a single sample come and go meanwhile, one after the other."""
    wanted = small("mlp", 2, 3, 1, "train.batch_size=1", "data.partition.sizes=[108, 1, 1]", "train.rounds=1")
    ours = Watched(wanted, seed, rooms=rooms(wanted, [2, 2], seed))
    done: list[tuple[str, int]] = []
    trained = ours.manager.board.trained

    def note(place: str, message: Trained) -> None:
        done.append((place, message.batches))
        trained(place, message)

    ours.manager.board.trained = note
    ours.run()
    epochs = wanted.train.local_epochs
    assert done[:2] == [("owner-1", epochs), ("owner-2", epochs)]
    assert done[2][1] >= 100 * epochs
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []


def test_solved_cuts_respect_the_memory_of_each_node():
    """An even split would not fit on the small node; the solved one gives it less, and the result is the same."""
    even = small("mlp", 2, 2, 1)
    wanted = msgspec.structs.replace(even, cuts="auto")
    whole = sum(memory.need(1) for memory in parts(even))
    small_room = parts(msgspec.structs.replace(even, cuts=[1, 2, len(summarise(even.model)) - 1]))[0].need(1)
    with pytest.raises(JobError, match="node-0"):
        MemoryRun(even, rooms=[small_room, whole]).run()
    ours = MemoryRun(wanted, rooms=[small_room, whole])
    ours.run()
    assert ours.manager.plan is not None
    assert ours.manager.plan.bounds[1:3] == (1, 2)
    assert differing(global_state(ours.members), reference(even).states[-1]) == []


class Impatient(Watched):
    """A run whose manager may look at any moment whether the busiest node has to wait."""

    def _move(self, what, place, arg) -> None:
        super()._move(what, place, arg)
        if self.manager.phase is Phase.TRAINING and self.random.random() < 0.05:
            for action in self.manager._fill_the_chain(0.0):
                self._places[int.from_bytes(action.to, "big")].told.append(action.message)


@pytest.mark.parametrize("hungry", [False, True])
def test_as_many_owners_as_fill_the_chain_and_more_where_it_has_to_wait(monkeypatch: pytest.MonkeyPatch, hungry: bool):
    wanted = msgspec.structs.replace(small("mlp", 2, 5, 1, "train.rounds=3"), cuts="auto")
    monkeypatch.setattr(CutPlanning, "to_fill", lambda self: 0.5)
    monkeypatch.setattr(Filling, "waits", lambda self, *_: hungry)
    ours = Impatient(wanted)
    notices = []
    ours.manager.board.listeners.append(notices.append)
    ours.run()
    texts = " ".join(event.text for event in notices if isinstance(event, NoticeEvent))
    assert "5 of 5 owners can train at a time" in texts
    assert "2 should fill the chain" in texts
    assert ("train at a time, not 2" in texts) == hungry
    assert (ours.most > 3) == hungry  # one more may begin before the CLOSE of another is there
    assert differing(global_state(ours.members), reference(wanted).states[-1]) == []
