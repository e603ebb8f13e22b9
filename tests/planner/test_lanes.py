"""Chains side by side, by hand: who serves how many owners, and what it costs."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
from by_hand import CHAIN, NOTHING, OWNERS, TRANSFERS
from msgspec.structs import replace

from zmpsl.errors import JobError
from zmpsl.planner.cost import paper_time
from zmpsl.planner.lanes import Lane, allocate, horizontal_time, hybrid_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.terms import Aggregator, Chain, Owners, PartTime, Transfers


def node(seconds: float, memory_bytes: float | None = None) -> Lane:
    return Lane(Chain((PartTime(seconds / 2, seconds / 2),)), (memory_bytes,))


class TestAllocate:
    def test_owners_go_in_proportion_to_speed(self) -> None:
        assert allocate((node(1.0), node(2.0), node(4.0)), 14, (1.0,)) == (8, 4, 2)

    def test_a_full_node_leaves_its_owners_to_the_others(self) -> None:
        """The fast node has room for three; the two others share the rest two to one."""
        assert allocate((node(1.0, 35.0), node(2.0, 1e9), node(4.0)), 12, (10.0,)) == (3, 6, 3)

    def test_memory_stays_with_the_node_it_belongs_to(self) -> None:
        """Whatever the order of the list, the fast node is the one with the room."""
        lanes = (node(4.0, 15.0), node(1.0, 100.0), node(4.0, 15.0))
        assert allocate(lanes, 12, (10.0,)) == (1, 10, 1)
        assert allocate(lanes[1:] + lanes[:1], 12, (10.0,)) == (10, 1, 1)

    @pytest.mark.parametrize("count", range(1, 10))
    def test_the_slowest_node_is_as_early_as_can_be(self, count: int) -> None:
        """Against every possible allocation."""
        lanes = (node(1.0, 20.0), node(1.7, 60.0), node(2.9))
        found = allocate(lanes, count, (10.0,))
        speeds, rooms = (1.0, 1.7, 2.9), (2, 6, count)
        every = [one for one in product(*(range(room + 1) for room in rooms)) if sum(one) == count]
        best = min(max(k * s for k, s in zip(one, speeds, strict=True)) for one in every)
        assert max(k * s for k, s in zip(found, speeds, strict=True)) == best
        assert all(k <= room for k, room in zip(found, rooms, strict=True))

    def test_too_little_memory_is_told(self) -> None:
        with pytest.raises(JobError, match="replicas of 5 owners do not fit: the 2 lanes have memory for 4"):
            allocate((node(1.0, 29.0), node(1.0, 20.0)), 5, (10.0,))


class TestTime:
    OWNERS = Owners(3, PartTime(1.0, 1.0), NOTHING, NodeLink(10.0), batches=2)
    TRANSFERS = Transfers((10.0, 0.0), (20.0, 0.0), (5.0, 40.0, 15.0))

    def test_horizontal_by_hand(self) -> None:
        """Two owners on the fast node: 2 + 4 * 3 + 3; one on the other: 2 + 2 * 6 + 3. M_2: 40/20 up, twice down."""
        nodes = (node(3.0), node(6.0))
        found = horizontal_time(nodes, self.OWNERS, self.TRANSFERS, 1.0, Aggregator(0.5), NodeLink(20.0))
        assert (found.owners, found.lane_s) == ((2, 1), (17.0, 17.0))
        assert (found.aggregate_s, found.across_s) == (2 + 0.5 + 6, 2 + 4)
        assert found.total_s == 17 + 8.5

    def test_one_lane_is_the_papers_chain(self) -> None:
        found = hybrid_time((Lane(CHAIN),), OWNERS, TRANSFERS, (1.0, 1.0), across=NodeLink(1e-3))
        assert found.total_s == paper_time(CHAIN, OWNERS, TRANSFERS).total_s
        assert found.across_s == 0

    def test_two_chains_share_the_owners(self) -> None:
        """Each serves one: 2.5 + 7.5 + 5 * 5.5 + 3.25; the two middle parts of 1 byte: up at once, down twice each."""
        found = hybrid_time((Lane(CHAIN), Lane(CHAIN)), OWNERS, TRANSFERS, (1.0, 1.0), across=NodeLink(0.1))
        assert (found.owners, found.lane_s) == ((1, 1), (40.75, 40.75))
        assert (found.across_s, found.aggregate_s) == (10 + 40, 25)
        assert found.total_s == 40.75 + 50

    def test_a_lane_without_owners_costs_nothing(self) -> None:
        found = horizontal_time((node(1.0), node(100.0)), self.OWNERS, self.TRANSFERS, 1.0, across=NodeLink(20.0))
        assert (found.owners, found.lane_s[1], found.across_s) == ((3, 0), 0, 0)

    def test_every_lane_gets_the_owners_own_values(self) -> None:
        owners = replace(self.OWNERS, first=(PartTime(1.0, 0.0), PartTime(2.0, 0.0), PartTime(7.0, 0.0)))
        found = horizontal_time((node(3.0), node(6.0)), owners, self.TRANSFERS, 1.0)
        assert found.lane_s == (1.5 + 1 + 12 + 2, 7 + 1 + 12 + 2)


BAD: list[tuple[Any, str]] = [
    (lambda: Lane(CHAIN, (1.0,)), "a lane of 2 nodes has 1 values of memory_bytes"),
    (lambda: Lane(CHAIN, (1.0, math.nan)), "lane: memory_bytes of node 1 is nan"),
    (lambda: hybrid_time((), OWNERS, TRANSFERS, (1.0, 1.0)), "no lane is given"),
    (lambda: hybrid_time((Lane(CHAIN),), OWNERS, TRANSFERS, (1.0,)), "replica_bytes has 1 values for 2 parts"),
    (lambda: hybrid_time((Lane(CHAIN),), OWNERS, TRANSFERS, (1.0, -1.0)), r"replica_bytes\[1\] is -1.0"),
    (lambda: hybrid_time((node(1.0),), OWNERS, TRANSFERS, (1.0,)), "1 compute nodes have 2 cuts around them"),
    (
        lambda: hybrid_time((Lane(CHAIN),) * 2, OWNERS, TRANSFERS, (1.0, 1.0), across=NodeLink(0.0)),
        "across: bytes_per_s is 0.0",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input_is_named(make: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        make()
