"""Closed forms against numbers worked out by hand, and against the published bars."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from by_hand import CHAIN, FAST, NOTHING, OWNERS, TRANSFERS, Published
from msgspec.structs import replace

from zmpsl.errors import JobError
from zmpsl.planner.cost import aggregation_time, fedavg_time, pace, paper_time, splitnn_time
from zmpsl.planner.problem import BlockCost, NodeLink, NodeSpec, Problem
from zmpsl.planner.solver import solve
from zmpsl.planner.terms import Aggregator, Chain, Owners, PartTime, Transfers

BETWEEN = NodeLink(7.13e9 / 8)  # the paper's rate between nodes


class TestPaper:
    def test_every_term_by_hand(self) -> None:
        """L_fwd 3, L_back 2.5; in: 0.5 + 20/10; out: 10/5 + 1.25; 12 batches; 50 bytes up once, down twice."""
        time = paper_time(CHAIN, OWNERS, TRANSFERS, Aggregator(1.0))
        assert (time.forward_s, time.backward_s, time.full_s) == (3.0, 2.5, 5.5)
        assert (time.start_s, time.empty_s, time.end_s, time.batches) == (2.5, 7.5, 3.25, 12)
        assert time.all_batches_s == 2.5 + 7.5 + 11 * 5.5 + 3.25
        assert time.aggregate_s == 50 / 10 + 1 + 2 * 50 / 5
        assert time.total_s == 73.75 + 26

    def test_one_node_is_the_one_hop_formula(self) -> None:
        time = paper_time(Chain((PartTime(1.0, 2.0, 0.5),)), OWNERS, Transfers((20.0, 30.0), (10.0, 40.0)))
        assert time.all_batches_s == pytest.approx(2.5 + 12 * 3.5 + 3.25)
        assert time.aggregate_s == 0

    def test_unequal_owners_count_by_their_mean_and_their_own_batches(self) -> None:
        firsts = (PartTime(0.0, 0.0), PartTime(4.0, 2.0))
        owners = replace(OWNERS, first=firsts, uplink=(NodeLink(10.0), NodeLink(20.0)), batches=(1, 4))
        time = paper_time(CHAIN, owners, TRANSFERS)
        assert (time.start_s, time.end_s, time.batches) == (2.0 + (2.0 + 1.0) / 2, 2.0 + 1.0, 10)
        assert time.aggregate_s == (5 + 2.5) / 2 + 2 * 10

    def test_the_results_can_leave_over_another_link(self) -> None:
        aggregator = Aggregator(sends_over=NodeLink(100.0, 0.25))
        assert aggregation_time(OWNERS, 50.0, aggregator) == 5 + 2 * (0.5 + 0.25)

    def test_a_latency_is_part_of_every_transfer(self) -> None:
        owners = replace(OWNERS, uplink=NodeLink(10.0, 0.1), downlink=NodeLink(5.0, 0.2))
        time = paper_time(CHAIN, owners, TRANSFERS)
        assert (time.start_s, time.end_s) == (pytest.approx(2.6), pytest.approx(3.45))

    def test_a_solved_split_is_a_chain(self) -> None:
        problem = Problem(tuple(BlockCost(f"b{j}", 1.0, 2.0, 0.5) for j in range(3)), (NodeSpec("x"), NodeSpec("y")))
        chain = Chain.from_solution(solve(problem))
        assert sorted(part.all_s for part in chain.parts) == [3.5, 7.0]
        owners = Owners(50, NOTHING, NOTHING, FAST)
        assert pace(chain, owners, Transfers((0.0,) * 3, (0.0,) * 3)).pace_s == solve(problem).pace_s


class TestPace:
    def test_the_pace_is_the_busiest_node_not_the_two_longest_directions(self) -> None:
        chain = Chain((PartTime(1.0, 0.3), PartTime(0.2, 1.1)))
        owners, transfers = Owners(10, NOTHING, NOTHING, FAST), Transfers((0.0,) * 3, (0.0,) * 3)
        assert pace(chain, owners, transfers).pace_s == pytest.approx(1.3)
        assert paper_time(chain, owners, transfers).full_s == pytest.approx(2.1)

    def test_the_round_trip_by_hand(self) -> None:
        """Own 0.5 + 0.75 + 1.25 + 1.25, up (20 + 40)/10, nodes 4 + 3, down (30 + 10)/5; other updates are hidden."""
        found = pace(CHAIN, OWNERS, TRANSFERS)
        assert found.round_trip_s == (pytest.approx(3.75 + 6 + 7 + 8),) * 2
        assert (found.pace_s, found.bottleneck) == (4.0, "node 1")
        assert found.owners_to_fill == pytest.approx(24.75 / 4)
        assert (found.full, found.bound_s) == (False, pytest.approx(6 * 24.75))

    def test_links_between_nodes_take_time_and_can_be_the_bottleneck(self) -> None:
        found = pace(replace(CHAIN, links=(NodeLink(1.0, 0.5),)), OWNERS, TRANSFERS)
        assert (found.pace_s, found.bottleneck) == (8.0, "link 0")
        assert found.round_trip_s[0] == pytest.approx(24.75 + 16 + 1)

    @pytest.mark.parametrize(
        ("count", "latency_s", "full", "pieces", "bound_s"),
        [(5, 0.0, True, 1, 15), (4, 0.0, False, 2, 13), (3, 0.0, False, None, 13), (1, 0.0, False, None, 13),
         (4, 0.5, False, None, 15), (4, 0.25, False, 3, 14)],
    )  # fmt: skip
    def test_how_many_owners_or_pieces_fill_the_pipe(
        self, count: int, latency_s: float, full: bool, pieces: int | None, bound_s: float
    ) -> None:
        """Pace 3, round trip 13, the owner itself 10: with m pieces 13/m + (m - 1)/m * 10 must be at most 3 K.

        A latency, four times per round trip, is not divided: 1 + (13 + 20)/3 is just the 12 of four owners.
        """
        owners = Owners(count, NOTHING, PartTime(5.0, 5.0), NodeLink(1.0, latency_s))
        found = pace(Chain((PartTime(1.0, 2.0),)), owners, Transfers((0.0, 0.0), (0.0, 0.0)))
        assert (found.full, found.micro_batches, found.bound_s) == (full, pieces, pytest.approx(bound_s))
        assert found.owners_to_fill == pytest.approx((13 + 4 * latency_s) / 3)

    def test_unequal_round_trips_fill_by_their_rates(self) -> None:
        """Two owners of 3 s and one of 6 s bring 5/6 batches a second: enough for a pace of 1.2 s, not of 1.1 s."""
        lasts = (PartTime(0.9, 0.9), PartTime(0.9, 0.9), PartTime(2.4, 2.4))
        owners, transfers = Owners(3, NOTHING, lasts, FAST), Transfers((0.0, 0.0), (0.0, 0.0))
        found = pace(Chain((PartTime(0.6, 0.6),)), owners, transfers)
        assert found.full
        assert found.owners_to_fill == pytest.approx(3.0)
        assert not pace(Chain((PartTime(0.55, 0.55),)), owners, transfers).full

    def test_nodes_that_take_no_time_are_never_full(self) -> None:
        found = pace(Chain((NOTHING,)), Owners(2, NOTHING, NOTHING, FAST), Transfers((0.0, 0.0), (0.0, 0.0)))
        assert (found.pace_s, found.bound_s, found.owners_to_fill) == (0, 0, math.inf)


class TestOthers:
    def test_splitnn_takes_the_owners_one_by_one_without_local_epochs(self) -> None:
        """Per batch 24.75 of the round trip and the hidden updates 0.5 + 9; 3 batches, then 50 bytes up; twice."""
        assert splitnn_time(CHAIN, OWNERS, TRANSFERS) == pytest.approx(2 * (3 * (24.75 + 9.5) + 5))

    def test_fedavg_waits_for_the_slowest_owner(self) -> None:
        models = (PartTime(1.0, 2.0, 1.0), PartTime(2.0, 4.0, 1.0))
        assert fedavg_time(models, OWNERS, 100.0) == 2 * 3 * 7 + 100 / 10 + 2 * 100 / 5
        assert fedavg_time(models[0], OWNERS, 0.0) == 24


# Minutes for K = 10 to 50, read off the vector figure: cuts, measured (L_fwd, L_back) or None for the profile's sums,
# bytes of the owner's parts, bars, tolerance.
FIGURE_9 = [
    ("resnet101", (2, 26, 35), None, None, (5.90, 11.70, 17.57, 23.37, 29.17), 0.005),
    ("resnet101", (2, 16, 26, 35), None, None, (4.93, 9.77, 14.60, 19.36, 24.20), 0.005),
    ("vgg19", (12, 19), (0.3, 1.3), 95_607_345, (10.80, 19.36, 27.85, 36.42, 44.98), 0.005),
    ("vgg19", (4, 13, 19), (0.4, 1.55), 95_607_345, (12.46, 22.88, 33.24, 43.66, 54.09), 0.04),
    ("vgg19", (4, 9, 15, 19), (0.29815, 1.1), 95_607_345, (9.49, 16.95, 24.47, 31.93, 39.38), 0.04),
]
# Minutes of the solver's split for N = 3, 4, 5, between the first and the last cut.
FIGURE_11 = [
    ("resnet101", (1, 36), None, 100, (38.89, 31.03, 24.47)),
    ("resnet101", (1, 36), None, 150, (57.97, 46.05, 36.27)),
    ("vgg19", (1, 24), 95_607_345, 100, (77.38, 56.87, 49.08)),
    ("vgg19", (1, 24), 95_607_345, 150, (115.2, 84.21, 72.77)),
]


class TestFigures:
    @pytest.mark.parametrize(("model", "cuts", "longest", "size", "bars", "within"), FIGURE_9)
    def test_figure_9_model_bars(
        self, shared_data: Path, model: str, cuts: tuple[int, ...], longest: Any, size: Any, bars: Any, within: float
    ) -> None:
        """The bars come out with results sent at the rate between nodes, not with eq. (5)'s K slow downlinks."""
        known = Published(shared_data, model)
        chain = known.chain(cuts)
        if longest is not None:
            chain = Chain((PartTime(*longest),) * len(chain.parts))
        for count, minutes in zip((10, 20, 30, 40, 50), bars, strict=True):
            time = paper_time(chain, known.owners(count, cuts), known.transfers(cuts, size), Aggregator(0.0, BETWEEN))
            assert time.total_s / 60 == pytest.approx(minutes, rel=within)

    @pytest.mark.parametrize(("model", "ends", "size", "count", "bars"), FIGURE_11)
    def test_figure_11_optimiser_bars(
        self, shared_data: Path, model: str, ends: tuple[int, int], size: Any, count: int, bars: Any
    ) -> None:
        known = Published(shared_data, model)
        for nodes, minutes in zip((3, 4, 5), bars, strict=True):
            solution = solve(known.problem(*ends, nodes))
            cuts = (*(piece.first for piece in solution.pieces), ends[1])
            transfers, owners = known.transfers(cuts, size), known.owners(count, cuts)
            time = paper_time(Chain.from_solution(solution), owners, transfers, Aggregator(0.0, BETWEEN))
            assert time.full_s == pytest.approx(solution.value)
            assert time.total_s / 60 == pytest.approx(minutes, rel=0.025)

    def test_figure_12_the_second_node_nearly_halves_the_time(self, shared_data: Path) -> None:
        for model, ends in (("resnet101", (2, 36)), ("resnet101", (1, 36)), ("vgg19", (4, 23))):
            known = Published(shared_data, model)
            one, two = (paper_full(known, ends, nodes) for nodes in (1, 2))
            assert -0.493 <= two / one - 1 <= -0.45
        expected = (1.985, 1.037, 0.711, 0.561, 0.438, 0.407, 0.354)
        found = [paper_full(Published(shared_data, "resnet101"), (2, 36), nodes) for nodes in range(1, 8)]
        assert found == pytest.approx(expected, abs=1e-3)

    def test_the_owners_that_fill_the_papers_pipe(self, shared_data: Path) -> None:
        """Round trip 7.1 s: 6.5 owners with two nodes, 8 with three."""
        known = Published(shared_data, "resnet101")
        for cuts, fill, seconds in (((2, 26, 35), 6.5, 1.091), ((2, 16, 26, 35), 8.0, 0.893)):
            found = pace(known.chain(cuts), known.owners(10, cuts), known.transfers(cuts))
            assert found.round_trip_s[0] == pytest.approx(7.12, rel=0.01)
            assert found.pace_s == pytest.approx(seconds, abs=1e-3)
            assert found.owners_to_fill == pytest.approx(fill, rel=0.015)
            assert found.full
            assert not pace(known.chain(cuts), known.owners(6, cuts), known.transfers(cuts)).full


def paper_full(known: Published, ends: tuple[int, int], nodes: int) -> float:
    chain = Chain.from_solution(solve(known.problem(*ends, nodes)))
    nothing = Transfers((0.0,) * (nodes + 1), (0.0,) * (nodes + 1))
    return paper_time(chain, Owners(1, NOTHING, NOTHING, FAST), nothing).full_s


BAD = [
    (lambda: Chain(()), "the chain is empty"),
    (lambda: Chain((PartTime(1, 1), PartTime(math.nan, 1))), "node 1: forward_s is nan"),
    (lambda: Chain((PartTime(1, -2.0),)), "node 0: backward_s is -2.0"),
    (lambda: replace(CHAIN, links=(FAST, FAST)), "2 compute nodes have 1 links between them, not 2"),
    (lambda: replace(CHAIN, links=(NodeLink(0.0),)), "the link from node 0 to 1: bytes_per_s is 0.0"),
    (lambda: replace(OWNERS, count=0), "the number of owners is 0"),
    (lambda: replace(OWNERS, local_epochs=0), "local_epochs is 0"),
    (lambda: replace(OWNERS, batches=0), "owners: batches is 0"),
    (lambda: replace(OWNERS, batches=(3, math.nan)), "owner 1: batches is nan"),
    (lambda: replace(OWNERS, batches=(3,)), "batches has 1 values for 2 owners"),
    (lambda: replace(OWNERS, first=PartTime(1, 1, math.inf)), "owners: first part: update_s is inf"),
    (lambda: replace(OWNERS, last=(NOTHING, PartTime(-1, 1))), "owner 1: last part: forward_s is -1"),
    (lambda: replace(OWNERS, uplink=(FAST, NodeLink(0.0))), "owner 1: uplink: bytes_per_s is 0.0"),
    (lambda: replace(OWNERS, downlink=NodeLink(1.0, math.nan)), "owners: downlink: latency_s is nan"),
    (lambda: replace(OWNERS, uplink=NodeLink(math.inf)), "owners: uplink: bytes_per_s is inf"),
    (lambda: Transfers((1.0,), (1.0,)), "forward_bytes has 1 cuts and backward_bytes 1; both need"),
    (lambda: Transfers((1.0, 1.0), (1.0,)), "forward_bytes has 2 cuts and backward_bytes 1; both need"),
    (lambda: Transfers((1.0, 1.0), (1.0, math.nan)), r"transfers: backward_bytes\[1\] is nan"),
    (lambda: replace(TRANSFERS, part_bytes=(1.0,)), "part_bytes has 1 parts, but 3 cuts make 4"),
    (lambda: replace(TRANSFERS, part_bytes=(1.0, 1.0, 1.0, -1.0)), r"transfers: part_bytes\[3\] is -1.0"),
    (lambda: Aggregator(-1.0), "aggregator: processing_s is -1.0"),
    (lambda: Aggregator(0.0, NodeLink(-5.0)), "aggregator: sends_over: bytes_per_s is -5.0"),
    (lambda: fedavg_time(PartTime(math.nan, 0), OWNERS, 1.0), "owners: first part: forward_s is nan"),
    (lambda: fedavg_time(NOTHING, OWNERS, math.nan), "bytes to aggregate is nan"),
]


class TestBadInput:
    @pytest.mark.parametrize(("make", "message"), BAD)
    def test_the_message_names_what_is_wrong(self, make: Any, message: str) -> None:
        with pytest.raises(JobError, match=message):
            make()

    @pytest.mark.parametrize("call", [paper_time, pace, splitnn_time])
    def test_chain_and_transfers_must_fit(self, call: Any) -> None:
        with pytest.raises(JobError, match="2 compute nodes have 3 cuts around them, but the transfers give 2"):
            call(CHAIN, OWNERS, Transfers((1.0, 1.0), (1.0, 1.0)))
