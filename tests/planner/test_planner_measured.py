"""From profiles to the split problem, its chain, and what a round is expected to take."""

from __future__ import annotations

import msgspec
import pytest
from helpers import job
from measured_blocks import SETTINGS, block, measured, profile

from zmpsl.errors import JobError
from zmpsl.planner.measured import Measured, MeasuredNode, chain_of, owners_of, problem_of, transfers_of
from zmpsl.planner.predict import predict
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.solution import Infeasible
from zmpsl.planner.solver import solve, solve_in_order
from zmpsl.profiles import MessageCost


class TestProblem:
    def test_seconds_bytes_and_limits_of_a_batch(self) -> None:
        problem = problem_of(measured())
        assert [(b.forward_s, b.backward_s, b.update_s) for b in problem.blocks] == [
            (s, 2 * s, pytest.approx(0.1 * s)) for s in (2.0, 3.0, 4.0, 5.0)
        ]
        assert problem.first_block == 1
        assert problem.nodes[0].overhead_s == 0.5 + 0.25 / 2
        # Base 12 and accumulator 48 once; weights 12, gradients 10, momentum 10, saved 100 for each of three owners.
        assert problem.blocks[0].memory_bytes == 5 * 12 + 3 * (12 + 10 + 10 + 100)
        assert [(c.forward_bytes, c.memory_bytes) for c in problem.cuts] == [(7.0, 21.0)] * 5
        assert problem.parameter_bytes() == 60

    def test_micro_batches_count_several_times_an_update_once(self) -> None:
        one = profile([1, 2, 3, 4, 5, 6], batch_size=2)
        settings = job(*SETTINGS, "train.micro_batches=4", "train.schedule=gpipe")
        problem = problem_of(Measured(settings, (MeasuredNode("node-0", one), MeasuredNode("node-1", one)), one))
        first = problem.blocks[0]
        assert (first.forward_s, first.backward_s, first.update_s) == (8.0, 16.0, pytest.approx(0.2))
        assert first.memory_bytes == 5 * 12 + 3 * (32 + 4 * 100)
        assert problem.cuts[0].forward_bytes == 28.0
        few = msgspec.structs.replace(settings, train=msgspec.structs.replace(settings.train, schedule="1f1b"))
        few = msgspec.structs.replace(few, compute_nodes=1)  # 3 parts: at most 3 under way
        assert Measured(few, (MeasuredNode("node-0", one),), one).in_flight == 3

    def test_the_paper_counts_weights_and_outputs_only(self) -> None:
        problem = problem_of(measured("planning.memory_model=paper"))
        assert problem.blocks[0].memory_bytes == 3 * (10 + 7)
        assert problem.cuts[0].memory_bytes == 0

    def test_fewer_replicas_need_less(self) -> None:
        pooled = msgspec.structs.replace(measured(), replicas=1)
        assert problem_of(pooled).blocks[0].memory_bytes == 5 * 12 + 132

    def test_a_slower_device_takes_longer_and_needs_the_same(self) -> None:
        slow = measured()
        nodes = (
            slow.nodes[0],
            MeasuredNode("node-1", msgspec.structs.replace(slow.nodes[1].profile, slow_down=3.0)),
        )
        problem = problem_of(msgspec.structs.replace(slow, nodes=nodes))
        assert [time.forward_s for time in problem.nodes[1].times or ()] == [6.0, 9.0, 12.0, 15.0]
        pieces = solve_in_order(problem).assignment
        assert pieces == (("node-0", 1, 4), ("node-1", 4, 5))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"fingerprint": "g"}, "node 'node-0': the profile is of a model with fingerprint g"),
            ({"batch_size": 4}, "node 'node-0': the profile is for 4 samples at a time, the job passes 8"),
            ({"blocks": {1: block(1.0)}}, "node 'node-0': the profile lacks block 2, 3, 4"),
            ({"optimizer": "adam"}, r"node 'node-0': the profile is for optimiser adam, the job has sgd\+momentum"),
            ({"task_s": -1.0}, "node 'node-0': task_s is -1.0"),
        ],
    )
    def test_a_node_with_a_profile_of_something_else_is_named(self, change: dict[str, object], message: str) -> None:
        one = profile([1, 2, 3, 4, 5, 6])
        with pytest.raises(JobError, match=message):
            Measured(job(*SETTINGS), (MeasuredNode("node-0", msgspec.structs.replace(one, **change)),), one)

    def test_a_link_without_bandwidth_is_named(self) -> None:
        with pytest.raises(JobError, match=r"node 'node-0': bytes_per_s of its link is 0; it must be .* above 0"):
            problem_of(measured(link=NodeLink(0)))

    def test_what_does_not_fit_is_told_in_bytes(self) -> None:
        with pytest.raises(Infeasible, match=r"node 'node-1' .* needs .* bytes but has 500: .* bytes short"):
            solve(problem_of(measured(memory_bytes=500)))


class TestInOrder:
    @pytest.mark.parametrize("seed", range(6))
    def test_it_is_the_best_of_all_splits_in_that_order(self, seed: int) -> None:
        import random
        from itertools import combinations

        from zmpsl.planner.problem import BlockCost, NodeSpec, Problem
        from zmpsl.planner.solution import evaluate

        rng = random.Random(seed)
        blocks = tuple(BlockCost(str(n), rng.random(), rng.random(), memory_bytes=rng.random()) for n in range(7))
        nodes = tuple(NodeSpec(f"n{n}", rng.uniform(1, 4), rng.uniform(2, 5)) for n in range(3))
        for objective in ("pace", "sum"):
            problem = Problem(blocks, nodes, objective=objective)
            every = [
                evaluate(problem, [("n0", 0, a), ("n1", a, b), ("n2", b, 7)]) for a, b in combinations(range(1, 7), 2)
            ]
            values = [plan.value for plan in every if not plan.short]
            if values:
                assert solve_in_order(problem).value == pytest.approx(min(values))
            else:
                with pytest.raises(Infeasible):
                    solve_in_order(problem)


class TestPredict:
    BOUNDS = (0, 1, 3, 5, 6)
    ORDER = ("node-0", "node-1")

    def test_one_owner_pays_every_stage_and_link(self) -> None:
        one = measured("owners=1")
        chain, owners = chain_of(one, self.BOUNDS, self.ORDER), owners_of(one, 4)
        way = sum(part.forward_s + part.backward_s for part in chain.parts)
        (owner,) = owners.each()
        way += owner.first.all_s + owner.last.forward_s + owner.last.backward_s
        found = predict(one, self.BOUNDS, self.ORDER, (4,))
        assert found.round_s == pytest.approx(4 * way, rel=0.01)
        assert found.busy_s["node-0"] == pytest.approx(4 * (1.25 + 3.1 * 5))

    def test_a_full_pipe_goes_at_the_pace_of_the_slowest_node(self) -> None:
        one = measured("owners=12")
        found = predict(one, self.BOUNDS, self.ORDER, (20,) * 12)
        assert found.bottleneck == "node-1"
        assert found.round_s == pytest.approx(240 * found.pace_s, rel=0.05)
        assert found.busy["node-1"] > 0.95
        assert found.owners_to_fill < 12

    def test_a_long_round_is_played_in_part_and_told_whole(self) -> None:
        one = measured("owners=2")
        long, short = (predict(one, self.BOUNDS, self.ORDER, (n, n)).round_s for n in (600, 60))
        assert long == pytest.approx(10 * short, rel=0.02)

    def test_few_owners_at_a_time_do_not_fill_the_pipe(self) -> None:
        one = measured("owners=12")
        full, few, single = (predict(one, self.BOUNDS, self.ORDER, (4,) * 12, None, n).round_s for n in (None, 2, 1))
        assert single == pytest.approx(12 * predict(measured("owners=1"), self.BOUNDS, self.ORDER, (4,)).round_s)
        assert full < 0.9 * few < 0.9 * single

    def test_roles_on_one_machine_share_its_cores(self) -> None:
        one = measured("owners=12")
        alone = predict(one, self.BOUNDS, self.ORDER, (5,) * 12)
        together = predict(one, self.BOUNDS, self.ORDER, (5,) * 12, {"h": ["owner"] * 12 + [*self.ORDER]})
        assert together.round_s > alone.round_s
        work = 60 * (3.1 * sum((1, 2, 3, 4, 5, 6)) + 4 + 1)
        assert together.round_s == pytest.approx(work / 2, rel=0.01)

    @pytest.mark.parametrize(
        ("owners", "batches", "more_s"), [(1, 4, 4 * 6 * (2 + 3 + 4)), (12, 20, 240 * 2 * (2 + 3))]
    )
    def test_messages_keep_roles_from_computing(self, owners: int, batches: int, more_s: float) -> None:
        # Six messages go round with every batch of one owner; a node that has no rest handles two ends each way.
        plain = measured(f"owners={owners}")
        one = msgspec.structs.replace(plain.owner, messages=MessageCost(send_s=2.0, receive_s=3.0, transit_s=4.0))
        nodes = tuple(msgspec.structs.replace(node, profile=one) for node in plain.nodes)
        costly = msgspec.structs.replace(plain, owner=one, nodes=nodes)
        alone, found = (predict(each, self.BOUNDS, self.ORDER, (batches,) * owners) for each in (plain, costly))
        assert found.round_s - alone.round_s == pytest.approx(more_s, rel=0.02)
        assert found.busy_s == alone.busy_s

    @pytest.mark.parametrize(
        ("state", "hosts", "store_s"),
        [
            ("reset", None, 2 + 0.24 + 2),  # the aggregator's two parts take longest; then index and record
            ("reset", {"h": ["owner", *ORDER]}, 2 + 3 * 0.24 + 2),
            ("average", None, 4 + 0.44 + 2),
        ],
    )
    def test_parts_and_record_are_stored(self, state: str, hosts: dict[str, list[str]] | None, store_s: float) -> None:
        plain = measured("owners=1", f"optimizer.state={state}")
        one = msgspec.structs.replace(plain.owner, store_s=1.0, store_s_per_byte=0.01)
        nodes = tuple(msgspec.structs.replace(node, profile=one) for node in plain.nodes)
        stored = msgspec.structs.replace(plain, owner=one, nodes=nodes)
        found = predict(stored, self.BOUNDS, self.ORDER, (4,), hosts)
        assert found.store_s == pytest.approx(store_s)
        assert found.whole_s == pytest.approx(found.round_s + found.exchange_s + found.average_s + store_s)

    def test_parts_of_owners_go_over_their_links(self) -> None:
        slow = msgspec.structs.replace(measured("owners=1"), owner_link=NodeLink(2.0, 0.5))
        assert predict(slow, self.BOUNDS, self.ORDER, (4,)).exchange_s == pytest.approx(2 * (0.5 + 24 / 2))

    def test_imitated_owners_take_longer(self) -> None:
        plain, slow = measured("owners=1"), measured("owners=1", "emulate.slow_down={owner-0: 5}")
        assert owners_of(slow, 1).each()[0].first.forward_s == 5 * owners_of(plain, 1).each()[0].first.forward_s
        assert (
            predict(slow, self.BOUNDS, self.ORDER, (3,)).round_s > predict(plain, self.BOUNDS, self.ORDER, (3,)).round_s
        )

    def test_bytes_at_the_cuts_and_of_the_parts(self) -> None:
        moved = transfers_of(measured(), self.BOUNDS)
        assert moved.forward_bytes == moved.backward_bytes == (7.0, 7.0, 7.0)
        assert moved.part_bytes == (12.0, 24.0, 24.0, 12.0)
