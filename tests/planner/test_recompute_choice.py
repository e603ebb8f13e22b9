"""Which nodes run forward again before backward, and which cuts then fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import msgspec
import pytest
import torch
from exact import reference
from helpers import differing, global_state, job
from measured_blocks import measured
from small_pools import Watched, parts, small

from zmpsl.engine.build import summarise
from zmpsl.engine.footprint import model_footprints
from zmpsl.errors import JobError
from zmpsl.job import Job
from zmpsl.job.schema import Model
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import Join
from zmpsl.observe.events import NoticeEvent
from zmpsl.plan import Block, Entry, Footprint
from zmpsl.planner.advice import micro_problem
from zmpsl.planner.measured import chain_of, problem_of
from zmpsl.planner.predict import batch_s, owners_to_fill
from zmpsl.pool.account import PartMemory, part_memory
from zmpsl.roles.admission import Places

BLOCKS = tuple(Block("Linear", (Entry("weight", "float32", (16, 16), True),)) for _ in range(6))
BOUNDS = (0, 1, 3, 5, 6)
# Activations that outweigh the weights.
PRINTS = (Footprint(1000, 1000, 90_000),) * 6
OWNERS = 8
PIPED = ["train.micro_batches=4", "train.schedule=gpipe"]


def asked(recompute: str, *more: str) -> Job:
    return job(f"owners={OWNERS}", "compute_nodes=2", f"recompute={recompute}", "evaluate.every=0", *more)


def part(*more: str) -> PartMemory:
    """Both parts cost the same."""
    return part_memory(asked("auto", *more), BLOCKS, BOUNDS, PRINTS, 1)


def places(rooms: list[int], wanted: Job, batch_s: object = None, prints: tuple[Footprint, ...] = PRINTS) -> Places:
    joins = {f"owner-{index}": Join(role="owner") for index in range(OWNERS)}
    joins |= {f"node-{hop}": Join(role="compute", memory=str(room)) for hop, room in enumerate(rooms)}
    return Places(wanted, BLOCKS, BOUNDS, prints, joins, batch_s)  # type: ignore[arg-type]


def pace(to_fill: float, work: float) -> object:
    """A chain that so many owners fill, and whose slowest node takes so much longer when any runs forward again."""
    return lambda owners, again: (work if again else 1.0) * max(1.0, to_fill / owners)


class TestPlaces:
    @pytest.mark.parametrize("recompute", ["auto", "never", "always"])
    def test_where_one_owner_does_not_fit(self, recompute: str) -> None:
        tight, ample = part(*PIPED).need(1) - 1, part(*PIPED).need(OWNERS)
        wanted = asked(recompute, *PIPED)
        if recompute == "never":
            with pytest.raises(JobError, match=r"part 2 .*; run forward again .* \(recompute: auto\), give it"):
                places([ample, tight], wanted)
            return
        found = places([ample, tight], wanted)
        assert found.recompute == (["node-1"] if recompute == "auto" else ["node-0", "node-1"])
        assert "to need less (recompute), on node-" in str(found)

    def test_where_it_would_not_help_the_error_is_of_what_was_asked(self) -> None:
        """One owner with whole batches: what is kept no longer is needed as scratch."""
        with pytest.raises(JobError, match=f"needs {part().need(1)} bytes.*; give it more"):
            places([part().need(1) - 1] * 2, asked("auto"))

    @pytest.mark.parametrize(
        ("to_fill", "work", "chosen"),
        [
            (6.0, 4 / 3, True),  # 2 owners fill a third of the chain, 8 all of it
            (2.0, 4 / 3, False),  # it is full already
            (2.5, 4 / 3, False),  # more owners gain a quarter, the work costs a third
            (3.0, 4 / 3, True),  # 1.5 against 1.33
            (2.9, 4 / 3, False),  # 1.45 against 1.33: too little to be sure of
        ],
    )
    def test_where_too_few_fit_to_fill_the_chain(self, to_fill: float, work: float, chosen: bool) -> None:
        room = part().need(2)
        found = places([room, part().need(OWNERS)], asked("auto"), pace(to_fill, work))
        assert found.recompute == (["node-0"] if chosen else [])
        assert (found.training.most > 2) == chosen
        assert places([room, room], asked("never"), pace(to_fill, work)).recompute == []

    def test_the_next_node_follows_where_that_gains_too(self) -> None:
        seen: list[tuple[int, list[str]]] = []

        def batch_s(owners: int, again: Collection[str]) -> float:
            seen.append((owners, sorted(again)))
            return max(1.0, 8 / owners)

        found = places([part().need(2), part().need(3)], asked("auto"), batch_s)
        assert found.recompute == ["node-0", "node-1"]
        assert seen[:2] == [(2, []), (3, ["node-0"])]
        assert found.training.most == OWNERS

    @pytest.mark.parametrize(
        ("to_fill", "words"),
        [
            (5.4, "; 5.4 would fill the chain, so its slowest node will have to wait"),
            (0.5, "; 2 should fill the chain"),
        ],
    )
    def test_it_says_whether_those_that_fit_fill_the_chain(self, to_fill: float, words: str) -> None:
        found = places([part().need(4)] * 2, asked("never"))
        assert "fill" not in str(found)
        found.training.aim(to_fill)
        assert words in str(found)

    def test_a_part_whose_forward_writes_its_weights_is_left_alone(self) -> None:
        """It cannot be run again: such a job would end at its first batch."""
        # Blocks 3 and 4 are those of node-1.
        prints = tuple(msgspec.structs.replace(each, writes=index == 3) for index, each in enumerate(PRINTS))
        found = places([part().need(2), part().need(3)], asked("auto"), pace(8, 1.0), prints)
        assert found.recompute == ["node-0"]
        assert places([part().need(3), part().need(2)], asked("auto"), pace(8, 1.0), prints).recompute == []
        with pytest.raises(JobError, match=r"node-1: part 2 .*; give it more"):
            places([part(*PIPED).need(OWNERS), part(*PIPED).need(1) - 1], asked("auto", *PIPED), prints=prints)

    def test_a_probe_finds_what_forward_writes(self) -> None:
        found = model_footprints(Model(name="small_nets:odd_net"), (4, 64), torch.float32)
        assert [each.writes for each in found] == [False, False, True, False, False]

    def test_nothing_is_chosen_by_what_nobody_knows(self) -> None:
        assert places([part().need(2)] * 2, asked("auto"), lambda _owners, _again: None).recompute == []


class TestMeasured:
    def test_backward_takes_a_forward_more_and_activations_are_kept_once(self) -> None:
        plain, again = measured(), measured().with_recompute()
        assert [b.backward_s - a.backward_s for a, b in zip(*map(blocks, (plain, again)), strict=True)] == [2, 3, 4, 5]
        saved = [b.memory_bytes - a.memory_bytes for a, b in zip(*map(blocks, (plain, again)), strict=True)]
        assert saved == [100 - 3 * 100] * 4  # of three owners
        # What was received is kept, beside buffers for what is under way.
        assert problem_of(again).cuts[0].memory_bytes == 2 * problem_of(plain).cuts[0].memory_bytes

    def test_of_single_nodes_only_their_time_counts(self) -> None:
        one = measured().with_recompute(["node-1"])
        assert [node.recompute for node in one.nodes] == [False, True]
        assert blocks(one)[0].memory_bytes == blocks(measured())[0].memory_bytes
        before, after = (chain_of(each, (0, 1, 3, 5, 6), ["node-0", "node-1"]).parts for each in (measured(), one))
        assert after[0] == before[0]
        assert after[1].backward_s == before[1].backward_s + 4 + 5

    def test_micro_batches_keep_one_at_a_time(self) -> None:
        """Of half the samples, half the activations."""
        halves = micro_problem(measured().with_recompute(), 4)
        assert blocks(measured().with_recompute())[0].memory_bytes - halves.blocks[0].memory_bytes == 50

    def test_seconds_per_batch(self) -> None:
        bounds, order = (0, 1, 3, 5, 6), ["node-0", "node-1"]
        fill = owners_to_fill(measured(), bounds, order)
        full = batch_s(measured(), bounds, order, 100)
        assert batch_s(measured(), bounds, order, 1) == pytest.approx(fill * full)
        assert batch_s(measured().with_recompute(), bounds, order, 100) > full


def blocks(each: object) -> tuple[object, ...]:
    return problem_of(each).blocks  # type: ignore[arg-type]


def test_cuts_that_fit_only_so_are_found() -> None:
    """However the model is cut, the nodes could not keep the activations of as many owners as the job asks for."""
    even = small("transformer", 2, 3, 1)
    wanted = msgspec.structs.replace(even, cuts="auto", owners_in_flight=3)
    last = len(summarise(wanted.model)) - 1
    cut = [parts(msgspec.structs.replace(wanted, cuts=[1, at, last])) for at in range(2, last)]
    plain = min(max(each.need(3) for each in both) for both in cut)
    less = min(max(replace(each, recompute=True).need(3) for each in both) for both in cut)
    room = (plain + less) // 2
    assert less < room < plain
    with pytest.raises(JobError, match="node"):
        MemoryRun(wanted, rooms=[room, room]).run()
    ours, told = Watched(msgspec.structs.replace(wanted, recompute="auto"), 1, rooms=[room, room]), list[object]()
    ours.manager.board.listeners.append(told.append)
    ours.run()
    assert ours.manager.plan is not None
    assert any(ours.manager.plan.recompute)
    assert any("(recompute), on node-" in event.text for event in told if isinstance(event, NoticeEvent))
    assert differing(global_state(ours.members), reference(even).states[-1]) == []
