"""The simulation against timetables worked out by hand, the closed forms, and epochs the paper measured."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
from by_hand import CHAIN, FAST, NOTHING, OWNERS, TRANSFERS, Published
from msgspec.structs import replace

from zmpsl.errors import JobError
from zmpsl.planner.cost import pace, paper_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.simulate import simulate
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers

ALONE = replace(OWNERS, count=1)
EMPTY = Transfers((0.0, 0.0), (0.0, 0.0))
EMPTY_3 = Transfers((0.0,) * 3, (0.0,) * 3)


class TestByHand:
    def test_one_owner_alone_takes_its_round_trips(self) -> None:
        """24.75 s per batch, six times; the 9 s update of the last part ends just as the gradient comes back."""
        found = simulate(CHAIN, ALONE, TRANSFERS)
        assert found.epoch_s == pytest.approx(6 * 24.75)
        assert found.owner_finish_s == (found.epoch_s,)
        assert found.node_busy == (pytest.approx(3.5 / 24.75), pytest.approx(4 / 24.75))
        assert (found.batches, found.pace_s) == (6, pytest.approx(24.75))

    def test_an_update_of_the_last_part_that_is_too_long_shows(self) -> None:
        owners = replace(ALONE, last=PartTime(0.75, 1.25, 10.0))
        assert simulate(CHAIN, owners, TRANSFERS).epoch_s == pytest.approx(6 * 25.75)

    def test_links_between_nodes_and_latencies_count_in_both_directions(self) -> None:
        chain = replace(CHAIN, links=(NodeLink(1.0, 0.5),))
        owners = replace(ALONE, uplink=NodeLink(10.0, 0.25))
        assert simulate(chain, owners, TRANSFERS).epoch_s == pytest.approx(6 * (24.75 + 16 + 1 + 0.5))

    def test_a_latency_delays_without_occupying_the_link(self) -> None:
        """Two pieces leave 1 s apart and arrive 1 s apart, however long they are under way."""
        owners = Owners(1, NOTHING, NOTHING, NodeLink(1.0, 10.0), FAST)
        transfers = Transfers((2.0, 0.0), (0.0, 0.0))
        chain = Chain((NOTHING,))
        assert simulate(chain, owners, transfers, micro_batches=2).epoch_s == pytest.approx(2 + 10 + 10)

    def test_backward_first_lets_owners_go_earlier(self) -> None:
        """In order F F F B B B; backward first F F B B F B, as the second F starts before the first B is there."""
        chain, owners = Chain((PartTime(1.0, 1.0),)), Owners(3, NOTHING, NOTHING, FAST)
        assert simulate(chain, owners, EMPTY).owner_finish_s == (4, 5, 6)
        assert simulate(chain, owners, EMPTY, backward_first=True).owner_finish_s == (3, 4, 6)

    def test_the_gradient_leaves_before_the_update(self) -> None:
        """The owner is done at 2 s; the node goes on for 5 s more."""
        found = simulate(Chain((PartTime(1.0, 1.0, 5.0),)), Owners(1, NOTHING, NOTHING, FAST), EMPTY)
        assert (found.owner_finish_s, found.epoch_s, found.node_busy) == ((2.0,), 7.0, (1.0,))

    @pytest.mark.parametrize(("micro", "seconds"), [(1, 4.0), (2, 3.0), (4, 2.5)])
    def test_micro_batches_overlap_on_two_nodes(self, micro: int, seconds: float) -> None:
        """Source: T_f + (m - 1) * T_i of 2505.04368 = 4/m + (m - 1) * 2/m."""
        chain = Chain((PartTime(1.0, 1.0), PartTime(1.0, 1.0)))
        found = simulate(chain, Owners(1, NOTHING, NOTHING, FAST), EMPTY_3, micro_batches=micro)
        assert found.epoch_s == pytest.approx(seconds)

    def test_a_batch_has_one_update_whatever_its_pieces(self) -> None:
        chain = Chain((PartTime(1.0, 1.0, 3.0),))
        for micro in (1, 4):
            found = simulate(chain, Owners(1, NOTHING, NOTHING, FAST, batches=2), EMPTY, micro_batches=micro)
            assert found.epoch_s == pytest.approx(10)

    def test_owners_with_fewer_batches_leave_earlier(self) -> None:
        owners = Owners(2, NOTHING, NOTHING, FAST, batches=(1, 3))
        found = simulate(Chain((PartTime(1.0, 1.0),)), owners, EMPTY)
        assert (found.owner_finish_s, found.batches, found.epoch_s) == ((3.0, 8.0), 4, 8.0)

    def test_only_so_many_owners_at_a_time(self) -> None:
        one, owners = simulate(CHAIN, ALONE, TRANSFERS).epoch_s, replace(OWNERS, count=5)
        assert simulate(CHAIN, owners, TRANSFERS, in_flight=1).epoch_s == pytest.approx(5 * one)
        assert simulate(CHAIN, owners, TRANSFERS, in_flight=9) == simulate(CHAIN, owners, TRANSFERS)
        pairs = simulate(CHAIN, owners, TRANSFERS, in_flight=2)
        assert pairs.epoch_s > 2 * simulate(CHAIN, replace(OWNERS, count=2), TRANSFERS).epoch_s
        assert pairs.owner_finish_s == tuple(sorted(pairs.owner_finish_s))

    def test_a_slow_owner_does_not_hold_up_the_others(self) -> None:
        uplinks = (NodeLink(10.0), NodeLink(0.1), NodeLink(10.0))
        owners = Owners(3, NOTHING, NOTHING, uplinks, FAST, batches=5)
        finish = simulate(Chain((PartTime(0.1, 0.1),)), owners, Transfers((1.0, 0.0), (0.0, 0.0))).owner_finish_s
        assert finish[1] == pytest.approx(5 * 10.2, rel=0.01)
        assert max(finish[0], finish[2]) < 3


class TestClosedForms:
    def test_a_full_pipe_of_one_node_is_equation_4(self) -> None:
        owners = Owners(8, PartTime(0.5, 0.25), PartTime(0.5, 0.5), NodeLink(10.0), batches=4, local_epochs=2)
        transfers = Transfers((10.0, 10.0), (10.0, 10.0))
        chain = Chain((PartTime(1.0, 1.5, 0.5),))
        # The update of the last batch ends while its gradient is on the way: it is not at the end of the epoch.
        found, paper = simulate(chain, owners, transfers), paper_time(chain, owners, transfers)
        assert found.epoch_s == pytest.approx(paper.all_batches_s - 0.5)
        assert pace(chain, owners, transfers).full

    def test_the_pace_is_beta_where_equation_3_says_more(self) -> None:
        """The constructed case: eq. (3) says 2.1 s a batch, the busiest node needs 1.3 s."""
        chain, owners = Chain((PartTime(1.0, 0.3), PartTime(0.2, 1.1))), Owners(40, NOTHING, NOTHING, FAST, batches=25)
        assert simulate(chain, owners, EMPTY_3).pace_s == pytest.approx(1.303, abs=0.005)
        assert paper_time(chain, owners, EMPTY_3).full_s == pytest.approx(2.1)

    def test_the_predicted_numbers_are_needed_and_nearly_enough(self) -> None:
        """K_min is 4.33, and two pieces are the least for four owners; queues cost a little, one more is enough."""
        chain, owners = Chain((PartTime(1.0, 2.0),)), Owners(4, NOTHING, PartTime(5.0, 5.0), FAST, batches=40)
        assert pace(chain, owners, EMPTY).micro_batches == 2
        in_two = pace(chain, owners, EMPTY, 2)
        assert (in_two.full, in_two.micro_batches) == (True, 2)
        assert in_two.owners_to_fill <= 4 < pace(chain, owners, EMPTY).owners_to_fill
        assert simulate(chain, owners, EMPTY).pace_s > 13 / 4
        assert simulate(chain, owners, EMPTY, micro_batches=2).pace_s == pytest.approx(3, rel=0.15)
        assert simulate(chain, owners, EMPTY, micro_batches=3).pace_s == pytest.approx(3, rel=0.02)
        assert simulate(chain, replace(owners, count=5), EMPTY).pace_s == pytest.approx(3, rel=0.03)

    @pytest.mark.parametrize("seed", range(40))
    def test_no_epoch_is_shorter_than_the_bound(self, seed: int) -> None:
        draw = random.Random(seed)

        def part() -> PartTime:
            return PartTime(draw.uniform(0, 2), draw.uniform(0, 2), draw.uniform(0, 0.5))

        def link() -> NodeLink:
            return NodeLink(draw.uniform(0.5, 20), draw.choice((0.0, 0.3)))

        nodes, count = draw.randint(1, 4), draw.randint(1, 9)
        chain = Chain(tuple(part() for _ in range(nodes)), tuple(link() for _ in range(nodes - 1)))
        owners = Owners(
            count, tuple(part() for _ in range(count)), part(), tuple(link() for _ in range(count)), link(),
            tuple(draw.randint(1, 4) for _ in range(count)), draw.randint(1, 2),
        )  # fmt: skip
        sizes = tuple(draw.uniform(0, 5) for _ in range(nodes + 1))
        transfers = Transfers(sizes, sizes[::-1])
        for backward_first in (False, True):
            found = simulate(chain, owners, transfers, backward_first=backward_first)
            assert found.epoch_s >= pace(chain, owners, transfers).bound_s * (1 - 1e-9)
            assert max(found.owner_finish_s) <= found.epoch_s
            assert all(0 <= share <= 1 + 1e-9 for share in found.node_busy)
            work = [owners.local_epochs * sum(owners.batches) * one.all_s for one in chain.parts]  # type: ignore[arg-type]
            assert [share * found.epoch_s for share in found.node_busy] == pytest.approx(work)

    def test_hundreds_of_owners_keep_the_pace_and_the_result_is_the_same_each_time(self) -> None:
        chain = Chain((PartTime(0.2, 0.5, 0.1), PartTime(0.3, 0.3, 0.1), PartTime(0.1, 0.6)))
        firsts = tuple(PartTime(0.1 + number % 7, 0.2) for number in range(300))
        owners = Owners(300, firsts, PartTime(0.1, 0.1), NodeLink(1e6, 0.01), batches=8, local_epochs=2)
        transfers = Transfers((2e6, 1e6, 1e6, 3e5), (2e6, 1e6, 1e6, 3e5))
        found = simulate(chain, owners, transfers)
        assert found.pace_s == pytest.approx(0.8, rel=0.01)
        assert found == simulate(chain, owners, transfers)


class TestPublished:
    CUTS = (2, 16, 26, 35)

    def test_the_measured_epochs_of_figure_9(self, shared_data: Path) -> None:
        """ResNet with three nodes, minutes measured; with 50 owners the testbed ran short of memory."""
        known = Published(shared_data, "resnet101")
        chain, transfers = known.chain(self.CUTS), known.transfers(self.CUTS)
        for count, minutes, expected in ((20, 9.63, 9.62), (30, 14.18, 14.39), (40, 19.16, 19.15)):
            owners = known.owners(count, self.CUTS)
            found = simulate(chain, owners, transfers).epoch_s / 60
            assert found == pytest.approx(minutes, rel=0.02)
            assert found == pytest.approx(expected, abs=0.01)

    def test_equation_4_is_far_too_low_for_one_owner(self, shared_data: Path) -> None:
        known = Published(shared_data, "resnet101")
        chain, owners, transfers = known.chain(self.CUTS), known.owners(1, self.CUTS), known.transfers(self.CUTS)
        found = simulate(chain, owners, transfers).epoch_s / 60
        assert found == pytest.approx(3.79, rel=0.01)
        assert found > 6 * paper_time(chain, owners, transfers).all_batches_s / 60

    def test_slower_owners_do_not_matter_in_a_full_pipe(self, shared_data: Path) -> None:
        """Figure 10: 30 owners whose own compute takes 2.3 times as long."""
        known = Published(shared_data, "resnet101")
        chain, transfers, owners = known.chain(self.CUTS), known.transfers(self.CUTS), known.owners(30, self.CUTS)
        first = owners.first
        assert isinstance(first, PartTime)
        slower = replace(owners, first=PartTime(2.3 * first.forward_s, 2.3 * first.backward_s))
        fast, slow = (simulate(chain, group, transfers).epoch_s for group in (owners, slower))
        assert slow == pytest.approx(fast, rel=0.005)
        assert slow != fast


class TestBadInput:
    def test_without_simpy_the_message_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "simpy", None)
        with pytest.raises(JobError, match=r"pip install zmpsl\[manager\]"):
            simulate(CHAIN, OWNERS, TRANSFERS)

    def test_what_does_not_fit_is_named(self) -> None:
        with pytest.raises(JobError, match="2 compute nodes have 3 cuts around them, but the transfers give 2"):
            simulate(CHAIN, OWNERS, EMPTY)
        with pytest.raises(JobError, match="micro_batches is 0; a batch has at least 1"):
            simulate(CHAIN, OWNERS, TRANSFERS, micro_batches=0)

    def test_numbers_are_checked_before_anything_runs(self) -> None:
        with pytest.raises(JobError, match="owners: uplink: bytes_per_s is 0"):
            simulate(CHAIN, replace(OWNERS, uplink=NodeLink(0.0)), TRANSFERS)
        with pytest.raises(JobError, match="node 0: forward_s is nan"):
            simulate(Chain((PartTime(math.nan, 1.0),)), OWNERS, EMPTY)
