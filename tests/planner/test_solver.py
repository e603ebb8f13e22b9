"""The split solver against brute force: every backend finds the optimum, and plans are contiguous and within limits."""

from __future__ import annotations

import importlib
import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from zmpsl.planner.bound import quick
from zmpsl.planner.limits import lower_bound
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.problem import BlockCost, BlockTime, CutCost, FixedStage, NodeLink, NodeSpec, Problem
from zmpsl.planner.solution import Infeasible, Solution
from zmpsl.planner.solver import solve
from zmpsl.planner.stages import build
from zmpsl.planner.table import extend

replace = msgspec.structs.replace
OBJECTIVES = ("pace", "sum", "micro")
EXACT = ("dp", "path", "mip")


# What follows is written from the formulas alone, with plain loops, and shares no code with the planner.


def splits(problem: Problem) -> Iterator[list[tuple[NodeSpec, int, int]]]:
    """Every order of every allowed set of nodes with every contiguous split."""
    blocks = len(problem.blocks)
    for size in range(1, len(problem.nodes) + 1):
        for chosen in itertools.permutations(problem.nodes, size):
            if any((node.holds or not node.optional) and node not in chosen for node in problem.nodes):
                continue
            for cuts in itertools.combinations(range(1, blocks), size - 1):
                edges = [0, *cuts, blocks]
                yield [(node, edges[i], edges[i + 1]) for i, node in enumerate(chosen)]


def allowed(problem: Problem, node: NodeSpec, a: int, e: int) -> bool:
    memory = sum(block.memory_bytes for block in problem.blocks[a:e])
    if problem.cuts:
        memory += problem.cuts[a].memory_bytes + problem.cuts[e].memory_bytes
    shown = sum(block.parameter_bytes for block in problem.blocks[a:e])
    total = sum(block.parameter_bytes for block in problem.blocks)
    return (
        (node.memory_bytes is None or memory <= node.memory_bytes)
        and (node.max_blocks is None or e - a <= node.max_blocks)
        and (node.max_share is None or shown <= node.max_share * total)
        and all(a <= block < e for block in node.holds)
    )


def value_of(problem: Problem, split: list[tuple[NodeSpec, int, int]]) -> float:
    forward, backward, busy, way = [], [], [], 0.0
    for node, a, e in split:
        f = b = node.overhead_s
        u = 0.0
        for j in range(a, e):
            block = node.times[j] if node.times else problem.blocks[j]
            factor = 1.0 if node.times else node.slowdown
            f, b, u = f + block.forward_s * factor, b + block.backward_s * factor, u + block.update_s * factor
        rx_f = rx_b = tx_f = tx_b = 0.0
        if node.link:
            way += 2 * node.link.latency_s
            if problem.cuts:
                rx_f = problem.cuts[a].forward_bytes / node.link.bytes_per_s
                tx_f = problem.cuts[e].forward_bytes / node.link.bytes_per_s
                rx_b = problem.cuts[e].backward_bytes / node.link.bytes_per_s
                tx_b = problem.cuts[a].backward_bytes / node.link.bytes_per_s
        way += f + b + u + rx_f + rx_b
        forward.append(max(f, rx_f, tx_f))
        backward.append(max(b + u, rx_b, tx_b))
        work = f + b if problem.objective == "micro" else f + b + u
        busy.append(max(work, rx_f + rx_b, tx_f + tx_b))
    for stage in problem.fixed:
        forward.append(stage.forward_s)
        backward.append(stage.backward_s)
        busy.append(stage.forward_s + stage.backward_s)
        way += stage.forward_s + stage.backward_s
    if problem.objective == "pace":
        return max(busy)
    if problem.objective == "sum":
        return max(forward) + max(backward)
    return way + (problem.micro_batches - 1) * max(busy)


def brute_force(problem: Problem) -> float:
    values = [
        value_of(problem, split)
        for split in splits(problem)
        if all(allowed(problem, node, a, e) for node, a, e in split)
    ]
    return min(values, default=math.inf)


def random_problem(seed: int) -> Problem:
    """A small problem; by turns with unequal nodes, tight memory, optional nodes, exposure limits, links and pins."""
    rng = random.Random(seed)
    size, number = rng.randint(3, 7), rng.randint(1, 4)
    blocks = tuple(
        BlockCost(
            f"block{j}", rng.randint(0, 20) / 8, rng.randint(1, 40) / 8, rng.choice((0, rng.randint(0, 8) / 8)),
            rng.randint(1, 30), rng.randint(1, 30),
        )
        for j in range(size)
    )  # fmt: skip
    total = sum(block.memory_bytes for block in blocks)
    tight, kinds = rng.random() < 0.6, rng.choice((1, 2, 4))
    palette = [random_node(rng, blocks, total / number, tight) for _ in range(kinds)]
    nodes = [replace(rng.choice(palette), name=f"c{i}") for i in range(number)]
    if rng.random() < 0.15:
        nodes[0] = replace(nodes[0], holds=(rng.randrange(size),))
    cuts: tuple[CutCost, ...] = ()
    if rng.random() < 0.5:
        cuts = tuple(CutCost(rng.randint(0, 40), rng.randint(0, 40), rng.randint(0, 5)) for _ in range(size + 1))
    fixed = (FixedStage("owner", rng.randint(0, 20) / 4, rng.randint(0, 20) / 4),) if rng.random() < 0.3 else ()
    micro = rng.choice((1, 2, 8))
    return Problem(blocks, tuple(nodes), cuts, rng.choice(OBJECTIVES), micro, fixed, first_block=rng.randint(0, 3))


def random_node(rng: random.Random, blocks: tuple[BlockCost, ...], share: float, tight: bool) -> NodeSpec:
    measured = tuple(BlockTime(rng.randint(0, 40) / 8, rng.randint(1, 40) / 8, 0.25) for _ in blocks)
    return NodeSpec(
        "",
        slowdown=rng.choice((1.0, 1.5, 2.0, 3.25, 8.0)),
        memory_bytes=round(share * rng.uniform(0.6, 2.0)) if tight else None,
        optional=rng.random() < 0.5,
        max_blocks=rng.choice((None, None, None, rng.randint(1, len(blocks)))),
        max_share=rng.choice((None, None, None, rng.randint(2, 10) / 10)),
        overhead_s=rng.choice((0.0, 0.5, 3.0)),
        link=rng.choice((None, NodeLink(rng.choice((4.0, 16.0)), rng.choice((0.0, 0.25))))),
        times=rng.choice((None, None, None, measured)),
    )


def assert_is_a_split(problem: Problem, solution: Solution) -> None:
    """Contiguous, complete, every node at most once, every node that must be used, within all limits."""
    at, names = problem.first_block, [name for name, _, _ in solution.assignment]
    nodes = {node.name: node for node in problem.nodes}
    for name, first, stop in solution.assignment:
        assert first == at < stop
        assert allowed(problem, nodes[name], first - problem.first_block, stop - problem.first_block)
        at = stop
    assert at == problem.first_block + len(problem.blocks)
    assert len(set(names)) == len(names)
    assert {node.name for node in problem.nodes if not node.optional} <= set(names)
    assert solution.short == ()


def many_speeds(blocks: int, number: int, speeds: int) -> Problem:
    """A long chain on nodes of several speeds, in micro-batches."""
    rng = random.Random(2)
    costs = tuple(BlockCost(f"b{j}", rng.uniform(0.5, 1.5), rng.uniform(1, 3), 0.1) for j in range(blocks))
    nodes = tuple(NodeSpec(f"c{i}", slowdown=1 + 0.5 * (i % speeds)) for i in range(number))
    return Problem(costs, nodes, objective="micro", micro_batches=8)


def solve_or_none(problem: Problem, backend: Any) -> Solution | None:
    try:
        return solve(problem, backend)
    except Infeasible:
        return None


class TestAgainstBruteForce:
    @pytest.mark.parametrize("first", range(0, 800, 100))
    def test_every_backend_finds_the_optimum_or_that_there_is_none(self, first: int) -> None:
        for seed in range(first, first + 100):
            problem = random_problem(seed)
            best = brute_force(problem)
            for backend in EXACT:
                found = solve_or_none(problem, backend)
                if found is None:
                    assert best == math.inf, (seed, backend, best)
                    continue
                assert found.value == pytest.approx(best, rel=1e-9), (seed, backend, problem.objective)
                assert found.optimal, (seed, backend, found.proof)
                assert_is_a_split(problem, found)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_the_backends_agree_where_brute_force_is_too_slow(self, objective: Any) -> None:
        """16 blocks and 5 unequal nodes with tight memory: three methods that share only the costs."""
        for seed in range(6):
            rng = random.Random(seed)
            blocks = tuple(
                BlockCost(f"b{j}", rng.uniform(0.5, 2), rng.uniform(1, 6), 0.1, rng.randint(5, 30)) for j in range(16)
            )
            memory = sum(block.memory_bytes for block in blocks) / 5
            nodes = tuple(NodeSpec(f"c{i}", rng.uniform(1, 3), memory * rng.uniform(0.9, 2.2)) for i in range(5))
            problem = Problem(blocks, nodes, objective=objective, micro_batches=4)
            values = []
            for backend in EXACT:
                found = solve(problem, backend)  # type: ignore[arg-type]
                assert_is_a_split(problem, found)
                values.append(found.value)
            assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-9), seed

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_leaving_out_hopeless_runs_beforehand_changes_no_optimum(
        self, objective: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Long chains are cut down by the value of a known split before any backend sees them."""
        rng = random.Random(5)
        blocks = tuple(BlockCost(f"b{j}", rng.uniform(0.5, 2), rng.uniform(1, 6), 0.1, 1) for j in range(80))
        nodes = tuple(NodeSpec(f"c{i}", 1 + i / 2, 30 if i % 2 else None, overhead_s=0.2) for i in range(5))
        problem = Problem(blocks, nodes, objective=objective, micro_batches=4)
        found = [solve(problem, backend).value for backend in ("dp", "path")]
        solver = importlib.import_module("zmpsl.planner.solver")
        monkeypatch.setattr(solver, "quick", lambda *_: (math.inf, []))
        monkeypatch.setattr(solver, "FEW_BLOCKS", 1000)
        plain = solve(problem, "dp")
        assert plain.optimal
        assert found == pytest.approx([plain.value] * 2, rel=1e-12)

    def test_farthest_blocks_prove_what_a_table_would(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Large problems are first asked how far sets of nodes get; here small ones are too, where all is known."""
        dp, reach = (importlib.import_module(f"zmpsl.planner.{name}") for name in ("dp", "reach"))
        monkeypatch.setattr(dp, "WORTH_REACHING", 0)
        monkeypatch.setattr(reach, "ROUGH", 3)
        proven = 0
        for seed in range(400):
            problem = random_problem(seed)
            best, found = brute_force(problem), solve_or_none(problem, "dp")
            if found is None:
                assert best == math.inf, seed
                continue
            assert found.value == pytest.approx(best, rel=1e-9), (seed, found.proof)
            assert found.optimal
            assert_is_a_split(problem, found)
            proven += "gets to block" in found.proof
        assert proven > 100

    @pytest.mark.parametrize("objective", ["pace", "sum"])
    def test_many_nodes_of_many_speeds_are_proven(self, objective: Any) -> None:
        rng = random.Random(2)
        blocks = tuple(BlockCost(f"b{j}", rng.uniform(0.5, 1.5), rng.uniform(1, 3), 0.1) for j in range(200))
        nodes = tuple(NodeSpec(f"c{i}", slowdown=1 + 0.3 * i) for i in range(12))
        found = solve(Problem(blocks, nodes, objective=objective), "dp")
        assert found.optimal, found.proof
        assert "4,096 sets of nodes" in found.proof

    def test_bounds_before_each_search_change_no_optimum(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Large tables leave runs out range by range; here small ones do too, where all is known."""
        dp = importlib.import_module("zmpsl.planner.dp")
        monkeypatch.setattr(dp, "WORTH_PRUNING", 0)
        for seed in range(300):
            problem = replace(random_problem(seed), objective="micro", micro_batches=1 + seed % 9)
            best, found = brute_force(problem), solve_or_none(problem, "dp")
            assert (math.inf if found is None else found.value) == pytest.approx(best, rel=1e-9), seed
        long = many_speeds(90, 9, 3)
        pruned = solve(long, "dp")
        monkeypatch.setattr(dp, "WORTH_PRUNING", math.inf)
        assert solve(long, "dp").value == pytest.approx(pruned.value, rel=1e-12)
        assert pruned.optimal

    def test_where_micro_is_out_of_reach_the_bound_is_near(self) -> None:
        found = solve(many_speeds(300, 16, 16), "dp", 1.0)
        assert not found.optimal
        assert found.value < 1.1 * lower_bound(many_speeds(300, 16, 16))

    def test_the_random_problems_are_of_all_kinds(self) -> None:
        """The test above proves little if all its problems are alike."""
        problems = [random_problem(seed) for seed in range(400)]
        infeasible = sum(brute_force(problem) == math.inf for problem in problems)
        unused = [
            solution
            for problem in problems
            if (solution := solve_or_none(problem, "dp")) and len(solution.pieces) < len(problem.nodes)
        ]
        assert 40 < infeasible < 250
        assert len(unused) > 20
        assert {problem.objective for problem in problems} == set(OBJECTIVES)

    def test_a_bound_is_below_and_a_quick_split_above_the_optimum(self) -> None:
        for seed in range(200):
            problem = random_problem(seed)
            best = brute_force(problem)
            assert lower_bound(problem) <= best * (1 + 1e-12), seed
            constant = sum(s.forward_s + s.backward_s for s in problem.fixed) if problem.objective == "micro" else 0.0
            assert quick(problem, build(problem))[0] + constant >= best * (1 - 1e-12), seed

    def test_no_plan_made_by_hand_beats_the_solver(self) -> None:
        for seed in range(60):
            problem = random_problem(seed)
            problem = replace(
                problem,
                nodes=tuple(
                    replace(n, memory_bytes=None, max_blocks=None, max_share=None, holds=()) for n in problem.nodes
                ),
            )
            if sum(not node.optional for node in problem.nodes) <= len(problem.blocks):
                best = solve(problem).value * (1 - 1e-12)
                assert even_split(problem).value >= best
                assert greedy_split(problem).value >= best


class TestTable:
    def test_one_step_equals_plain_loops(self) -> None:
        """The strided window is easily off by one."""
        rng = np.random.default_rng(3)
        for op in (np.maximum, np.add):
            value, cost = rng.random((3, 8)), rng.random((5, 8))
            expected = np.full((3, 8), np.inf)
            for row, e, d in itertools.product(range(3), range(8), range(1, 6)):
                if e >= d:
                    expected[row, e] = min(expected[row, e], op(value[row, e - d], cost[d - 1, e]))
            np.testing.assert_array_equal(extend(value, cost, op), expected)
