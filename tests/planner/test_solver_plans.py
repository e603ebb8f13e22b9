"""The split solver: plans worked by hand, what each limit does, and what is said where something cannot work."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import msgspec
import pytest

from zmpsl.errors import JobError
from zmpsl.planner import dp
from zmpsl.planner.limits import lower_bound
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.problem import BlockCost, BlockTime, CutCost, FixedStage, NodeLink, NodeSpec, Problem
from zmpsl.planner.solution import Infeasible, evaluate
from zmpsl.planner.solver import solve
from zmpsl.planner.stages import build
from zmpsl.planner.table import Table

replace = msgspec.structs.replace
EXACT = ("dp", "path", "mip")


def chain(seconds: tuple[float, ...] = (1, 2, 3, 4), **kwargs: Any) -> Problem:
    """Blocks that take as long forward as backward, on two nodes alike unless told otherwise."""
    blocks = tuple(BlockCost(f"b{j}", s / 2, s / 2, memory_bytes=10, parameter_bytes=1) for j, s in enumerate(seconds))
    nodes = kwargs.pop("nodes", (NodeSpec("c0"), NodeSpec("c1")))
    return Problem(blocks, nodes, **kwargs)


class TestOptima:
    def test_a_chain_worked_by_hand(self) -> None:
        """1 2 3 | 4: the worst stage takes 6 s; every other cut gives 7 or more."""
        solution = solve(chain())
        assert solution.assignment == (("c0", 0, 3), ("c1", 3, 4))
        assert (solution.value, solution.pace_s, solution.forward_s, solution.backward_s) == (6, 6, 3, 3)
        assert solution.way_s == 10
        assert solution.optimal
        assert "all splits" in solution.proof

    @pytest.mark.parametrize("backend", EXACT)
    def test_the_pace_is_not_the_sum_of_the_worst_forward_and_the_worst_backward(self, backend: Any) -> None:
        """One block is all forward, one all backward: the paper's sum says 2.1 s where a batch leaves every 1.3 s."""
        blocks = (BlockCost("a", 1.0, 0.3), BlockCost("b", 0.2, 1.1))
        nodes = (NodeSpec("c0"), NodeSpec("c1"))
        assert solve(Problem(blocks, nodes), backend).value == pytest.approx(1.3)
        assert solve(Problem(blocks, nodes, objective="sum"), backend).value == pytest.approx(2.1)

    @pytest.mark.parametrize("backend", EXACT)
    def test_the_node_order_is_chosen(self, backend: Any) -> None:
        """The second node has the memory for the large first block, so it must stand first."""
        blocks = (BlockCost("large", 1, 1, memory_bytes=100), BlockCost("small", 1, 1, memory_bytes=1))
        nodes = (NodeSpec("c0", memory_bytes=50), NodeSpec("c1", memory_bytes=100))
        assert solve(Problem(blocks, nodes), backend).assignment == (("c1", 0, 1), ("c0", 1, 2))

    @pytest.mark.parametrize("backend", EXACT)
    def test_an_optional_node_is_used_only_where_it_helps(self, backend: Any) -> None:
        slow = NodeSpec("slow", slowdown=100, optional=True)
        assert [piece.node for piece in solve(chain(nodes=(NodeSpec("c0"), slow)), backend).pieces] == ["c0"]
        must = solve(chain(nodes=(NodeSpec("c0"), replace(slow, optional=False))), backend)
        assert must.assignment == (("slow", 0, 1), ("c0", 1, 4))

    @pytest.mark.parametrize("backend", EXACT)
    def test_micro_batches_prefer_an_even_pipe_to_a_short_way(self, backend: Any) -> None:
        """With one micro-batch all work goes to the fast node but for one block; with many both share it."""
        nodes = (NodeSpec("fast"), NodeSpec("slow", slowdown=1.5))
        one = solve(chain((2, 2, 2, 2, 2), nodes=nodes, objective="micro"), backend)
        many = solve(chain((2, 2, 2, 2, 2), nodes=nodes, objective="micro", micro_batches=64), backend)
        assert sorted(piece.stop - piece.first for piece in one.pieces) == [1, 4]
        assert sorted(piece.stop - piece.first for piece in many.pieces) == [2, 3]
        assert many.value == pytest.approx(12 + 63 * 6)

    def test_among_plans_of_equal_pace_the_shortest_way_wins(self) -> None:
        """A pinned slow block sets the pace; the rest must still not go to the slow node for nothing."""
        nodes = (NodeSpec("slow", slowdown=10, holds=(0,)), NodeSpec("fast"))
        solution = solve(chain((10, 1, 1), nodes=nodes))
        assert solution.assignment == (("slow", 0, 1), ("fast", 1, 3))

    def test_a_slow_link_is_a_stage_and_moves_the_cut(self) -> None:
        """Cutting before block 1 balances compute but sends 100 bytes; before block 2 nearly nothing is sent."""
        cuts = (CutCost(), CutCost(100, 100), CutCost(1, 1), CutCost())
        nodes = tuple(NodeSpec(f"c{i}", link=NodeLink(10.0, 0.5)) for i in range(2))
        problem = chain((4, 2, 2), nodes=nodes, cuts=cuts)
        solution = solve(problem)
        assert solution.assignment == (("c0", 0, 2), ("c1", 2, 3))
        assert solve(replace(problem, cuts=())).pieces[0].stop == 1
        # Both nodes' latency there and back, and the hop's 1 byte forward and 1 byte back at 10 bytes a second.
        assert solution.way_s == pytest.approx(8 + 2 * 2 * 0.5 + 0.2)

    @pytest.mark.parametrize("backend", EXACT)
    @pytest.mark.parametrize("objective", ["pace", "sum", "micro"])
    def test_blocks_that_cost_nothing_can_be_split_too(self, backend: Any, objective: Any) -> None:
        solution = solve(chain((0, 0, 0), objective=objective, micro_batches=4), backend)
        assert (solution.value, len(solution.pieces), solution.optimal) == (0, 2, True)

    def test_a_fixed_stage_bounds_the_pace(self) -> None:
        solution = solve(chain(fixed=(FixedStage("uplink", 20.0, 1.0),)))
        assert (solution.value, solution.forward_s) == (21.0, 20.0)

    def test_block_numbers_are_those_of_the_model(self) -> None:
        assert solve(chain(first_block=5)).assignment == (("c0", 5, 8), ("c1", 8, 9))

    def test_many_alike_nodes_are_one_type(self) -> None:
        """A chain of a language model's size: the table has 17 rows, not 65,536."""
        blocks = tuple(BlockCost(f"b{j}", 1.0, 2.0 + j % 3, 0.1, 1) for j in range(400))
        problem = Problem(blocks, tuple(NodeSpec(f"c{i}") for i in range(16)))
        by_dp, by_path = solve(problem, "dp"), solve(problem, "path")
        assert by_dp.value == pytest.approx(by_path.value)
        assert by_dp.value >= lower_bound(problem)
        assert Table.rows_for(build(problem, 200.0).types) == 17


class TestLimits:
    @pytest.mark.parametrize("backend", EXACT)
    def test_memory_that_does_not_suffice_names_the_node_and_the_bytes(self, backend: Any) -> None:
        """Four blocks of 10 bytes: with 15 and 22 bytes the nearest split lacks 8 on one or 5 on the other."""
        nodes = (NodeSpec("c0", memory_bytes=15), NodeSpec("c1", memory_bytes=22))
        message = r"'c0' would hold blocks \d to \d and needs 20 bytes but has 15: 5 bytes short"
        with pytest.raises(Infeasible, match=message) as caught:
            solve(chain(nodes=nodes), backend)
        (short,) = caught.value.shortfalls
        assert (short.node, short.lacks_bytes) == ("c0", 5)
        assert isinstance(caught.value, JobError)

    def test_many_nodes_without_memory_are_counted_and_the_worst_listed(self) -> None:
        nodes = tuple(NodeSpec(f"c{i}", memory_bytes=i) for i in range(4))
        message = r"needs 10 bytes but has 0: 10 bytes short;.*; 1 more nodes lack"
        with pytest.raises(Infeasible, match=message) as caught:
            solve(chain(nodes=nodes))
        assert [short.lacks_bytes for short in caught.value.shortfalls] == [10, 9, 8, 7]

    def test_a_model_larger_than_all_memory_is_refused_whatever_its_size(self) -> None:
        """20 unequal nodes are too many to search, but not to add up."""
        blocks = tuple(BlockCost(f"b{j}", 1, 1, memory_bytes=1000) for j in range(100))
        problem = Problem(blocks, tuple(NodeSpec(f"c{i}", memory_bytes=4000 + i) for i in range(20)))
        with pytest.raises(Infeasible, match=r"node 'c\d+' would hold blocks \d+ to \d+ and needs"):
            solve(problem)

    def test_message_buffers_count_as_memory(self) -> None:
        nodes = (NodeSpec("c0", memory_bytes=20), NodeSpec("c1", memory_bytes=20))
        assert solve(chain(nodes=nodes)).pieces[0].memory_bytes == 20
        with pytest.raises(Infeasible, match="needs 22 bytes but has 20"):
            solve(chain(nodes=nodes, cuts=(CutCost(),) * 2 + (CutCost(memory_bytes=2),) + (CutCost(),) * 2))

    def test_exposure_that_does_not_suffice_is_told_apart_from_memory(self) -> None:
        nodes = (NodeSpec("c0", max_blocks=1), NodeSpec("c1", max_share=0.5, memory_bytes=1))
        message = r"'c0' \(at most 1 blocks\); 'c1' \(at most 50.0% of the parameters\)"
        with pytest.raises(Infeasible, match=message) as caught:
            solve(chain(nodes=nodes))
        assert caught.value.shortfalls == ()

    def test_more_nodes_than_blocks(self) -> None:
        nodes = tuple(NodeSpec(f"c{i}") for i in range(5))
        with pytest.raises(Infeasible, match="5 nodes must get at least one block each, but only 4 blocks"):
            solve(chain(nodes=nodes))
        optional = tuple(replace(node, optional=True) for node in nodes)
        assert len(solve(chain(nodes=optional)).pieces) <= 4

    def test_a_pinned_optional_node_is_used(self) -> None:
        nodes = (NodeSpec("c0"), NodeSpec("c1", slowdown=50, optional=True, holds=(3,)))
        for backend in EXACT:
            assert solve(chain(nodes=nodes), backend).assignment == (("c0", 0, 3), ("c1", 3, 4))

    def test_too_many_unequal_nodes_are_said_to_be_unproven(self) -> None:
        """The table of 20 unequal nodes has a million rows: the best of a few orders, with a bound, is the answer."""
        blocks = tuple(BlockCost(f"b{j}", 1.0, 2.0) for j in range(100))
        problem = Problem(blocks, tuple(NodeSpec(f"c{i}", slowdown=1 + i / 10) for i in range(20)))
        for backend in ("dp", "path"):
            solution = solve(problem, backend)  # type: ignore[arg-type]
            assert not solution.optimal
            assert "1,048,576" in solution.proof or "vertices are too many" in solution.proof
            assert "above the least possible" in solution.proof
            assert solution.pieces[-1].stop == 100
            assert solution.value >= lower_bound(problem)

    @pytest.mark.parametrize("backend", ["dp", "path"])
    def test_after_the_time_limit_the_best_split_known_is_given(self, backend: Any) -> None:
        blocks = tuple(BlockCost(f"b{j}", 1.0, 2.0 + j % 5) for j in range(300))
        problem = Problem(blocks, tuple(NodeSpec(f"c{i}", slowdown=1 + i // 3) for i in range(9)))
        solution = solve(problem, backend, time_limit_s=1e-6)
        assert not solution.optimal
        assert "time limit" in solution.proof
        assert solution.pieces[-1].stop == 300

    def test_a_type_of_nodes_is_not_split_by_names(self) -> None:
        """Four nodes alike and one other: 5 * 2 sets instead of 32."""
        problem = chain(nodes=(*(NodeSpec(f"c{i}") for i in range(4)), NodeSpec("d", slowdown=2)))
        assert Table.rows_for(build(problem).types) == 10


class TestByHand:
    def test_an_even_split_counts_blocks(self) -> None:
        solution = even_split(chain((1, 1, 1, 1, 9)))
        assert solution.assignment == (("c0", 0, 3), ("c1", 3, 5))
        assert (solution.value, solution.optimal) == (10, False)

    def test_a_greedy_split_fills_to_an_equal_share_of_the_work(self) -> None:
        assert greedy_split(chain((1, 1, 1, 1, 9))).assignment == (("c0", 0, 4), ("c1", 4, 5))
        assert greedy_split(chain((9, 1, 1, 1, 1))).assignment == (("c0", 0, 1), ("c1", 1, 5))

    def test_every_node_gets_a_block(self) -> None:
        nodes = tuple(NodeSpec(f"c{i}") for i in range(4))
        for seconds in ((100, 1, 1, 1), (1, 1, 1, 100), (0, 0, 0, 0), (1, 100, 1, 1)):
            for plan in (even_split(chain(seconds, nodes=nodes)), greedy_split(chain(seconds, nodes=nodes))):
                assert plan.assignment == tuple((f"c{i}", i, i + 1) for i in range(4))

    def test_what_does_not_fit_is_listed(self) -> None:
        nodes = (NodeSpec("c0", memory_bytes=15), NodeSpec("c1"))
        (short,) = even_split(chain(nodes=nodes)).short
        assert (short.node, short.needs_bytes, short.has_bytes, short.lacks_bytes) == ("c0", 20, 15, 5)

    def test_a_given_split_must_cover_the_blocks_once(self) -> None:
        problem = chain(first_block=2)
        assert evaluate(problem, [("c1", 2, 3), ("c0", 3, 6)]).value == 9
        for wrong, message in (
            ([("c0", 2, 4)], "blocks 4 to 5 are on no node"),
            ([("c0", 2, 4), ("c1", 5, 6)], r"blocks \[5, 6\) do not follow on block 4"),
            ([("c0", 2, 4), ("c0", 4, 6)], "'c0' is unknown, or holds two pieces"),
            ([("cx", 2, 6)], "'cx' is unknown"),
        ):
            with pytest.raises(JobError, match=message):
                evaluate(problem, wrong)


BAD_BLOCKS = [
    ({"forward_s": math.nan}, r"block 3 \('b1'\): forward_s is nan"),
    ({"backward_s": -1.0}, r"block 3 \('b1'\): backward_s is -1.0"),
    ({"update_s": math.inf}, r"block 3 \('b1'\): update_s is inf"),
    ({"memory_bytes": -5}, r"block 3 \('b1'\): memory_bytes is -5"),
    ({"parameter_bytes": math.nan}, r"block 3 \('b1'\): parameter_bytes is nan"),
]
BAD_NODES = [
    ({"slowdown": 0.0}, "node 'c1': slowdown is 0.0"),
    ({"slowdown": math.nan}, "node 'c1': slowdown is nan"),
    ({"memory_bytes": -1}, "node 'c1': memory_bytes is -1"),
    ({"max_blocks": 0}, "node 'c1': max_blocks is 0"),
    ({"max_share": 1.5}, "node 'c1': max_share is 1.5"),
    ({"max_share": math.nan}, "node 'c1': max_share is nan"),
    ({"overhead_s": -0.1}, "node 'c1': overhead_s is -0.1"),
    ({"link": NodeLink(0.0)}, "node 'c1': bytes_per_s of its link is 0.0"),
    ({"link": NodeLink(1.0, math.inf)}, "node 'c1': latency_s of its link is inf"),
    ({"holds": (4,)}, "node 'c1': it must hold block 4, but the blocks to place are 0 to 3"),
    ({"times": (BlockTime(1, 1),)}, "node 'c1': its profile has 1 blocks, the model has 4"),
    ({"times": (BlockTime(1, 1),) * 3 + (BlockTime(1, math.nan),)}, r"node 'c1', block 5 \('b3'\): backward_s is nan"),
    ({"name": "c0"}, "2 compute nodes are called 'c0'"),
]


class TestBadInput:
    @pytest.mark.parametrize(("change", "message"), BAD_BLOCKS)
    def test_a_bad_number_names_the_block(self, change: dict[str, Any], message: str) -> None:
        problem = chain(first_block=2)
        blocks = list(problem.blocks)
        blocks[1] = replace(blocks[1], **change)
        with pytest.raises(JobError, match=message):
            replace(problem, blocks=tuple(blocks))

    @pytest.mark.parametrize(("change", "message"), BAD_NODES)
    def test_a_bad_number_names_the_node(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(JobError, match=message):
            chain(first_block=2, nodes=(NodeSpec("c0"), replace(NodeSpec("c1"), **change)))

    def test_empty_and_ill_shaped_problems(self) -> None:
        cuts = (CutCost(),) * 4 + (CutCost(backward_bytes=-1),)
        pinned = (NodeSpec("c0", holds=(1,)), NodeSpec("c1", holds=(1, 2)))
        for make, message in (
            (lambda: chain(()), "the profile is empty"),
            (lambda: chain(nodes=()), "no compute node to place 4 blocks on"),
            (lambda: chain(cuts=(CutCost(),)), "4 blocks have 5 cuts around them, but the profile gives 1"),
            (lambda: chain(cuts=cuts), "the cut before block 4: backward_bytes is -1"),
            (lambda: chain(objective="fast"), "objective 'fast' is unknown; it must be one of pace, sum, micro"),
            (lambda: chain(micro_batches=0), "micro_batches is 0"),
            (lambda: chain(fixed=(FixedStage("uplink", math.nan, 0.0),)), "stage 'uplink': forward_s is nan"),
            (lambda: chain(model_parameter_bytes=-1), "model_parameter_bytes is -1"),
            (lambda: chain(nodes=pinned), "nodes 'c0' and 'c1' must both hold block 1"),
        ):
            with pytest.raises(JobError, match=message):
                make()

    def test_an_unknown_backend_and_a_bad_time_limit(self) -> None:
        with pytest.raises(JobError, match="backend 'cplex' is unknown; it must be one of dp, mip, path"):
            solve(chain(), "cplex")  # type: ignore[arg-type]
        with pytest.raises(JobError, match="time_limit_s is nan"):
            solve(chain(), time_limit_s=math.nan)

    def test_without_python_mip_the_message_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mip", None)
        with pytest.raises(JobError, match=r"pip install zmpsl\[manager\]"):
            solve(chain(), "mip")
        assert solve(chain(), "dp").optimal

    def test_a_table_too_large_without_any_known_split_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Better no answer than one that takes all memory."""
        monkeypatch.setattr(dp, "MOST_WORK", 10)
        monkeypatch.setattr(importlib.import_module("zmpsl.planner.solver"), "quick", lambda *_: (math.inf, []))
        with pytest.raises(JobError, match="out of reach: 4 sets of nodes times 4 blocks are too many for a table"):
            solve(chain(nodes=(NodeSpec("c0"), NodeSpec("c1", slowdown=2))))
