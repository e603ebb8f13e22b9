"""The size of a micro-batch: exact, closed form and in turns with the split, against trying everything."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from zmpsl.errors import JobError
from zmpsl.planner.micro import alternate, best, best_samples, candidates, closed_form, exhaustive
from zmpsl.planner.problem import BlockCost, CutCost, NodeLink, NodeSpec, Problem
from zmpsl.planner.solution import Infeasible, evaluate
from zmpsl.planner.solver import solve


def random_build(seed: int, batch: int, memory: float | None = None):
    """A random chain as a function of b: seconds and bytes per sample, fixed seconds per task."""
    rng = random.Random(seed)
    blocks = [(rng.uniform(0.1, 2), rng.uniform(0.1, 3), rng.uniform(0, 0.5)) for _ in range(rng.randint(4, 7))]
    sizes = [rng.uniform(0, 40) for _ in range(len(blocks) + 1)]
    fixed, rate = rng.uniform(0.01, 4), rng.uniform(20, 200)

    def build(b: int) -> Problem:
        return Problem(
            tuple(BlockCost(str(n), b * f, b * g, u, memory_bytes=b) for n, (f, g, u) in enumerate(blocks)),
            tuple(NodeSpec(f"n{n}", 1 + 0.5 * n, memory, overhead_s=fixed, link=NodeLink(rate)) for n in range(3)),
            tuple(CutCost(b * size, b * size) for size in sizes),
            objective="micro",
            micro_batches=-(-batch // b),
        )

    return build


@pytest.mark.parametrize("batch", [1, 2, 7, 32, 100])
def test_no_other_size_than_the_candidates_can_be_best(batch: int) -> None:
    build = random_build(batch, batch)
    plan = solve(build(batch)).assignment
    values = {b: evaluate(build(b), plan).value for b in range(1, batch + 1)}
    assert min(values.values()) == min(values[b] for b in candidates(batch))
    assert values[best_samples(build, batch, plan)] == min(values.values())


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(JobError, match="a batch of 0 samples"):
        candidates(0)


def test_the_closed_form_is_exact_where_it_holds() -> None:
    # One slowest stage for all b, no ceiling at work: T_f = 3 b + 3, T_i = b + 1 (per direction half each).
    def build(b: int) -> Problem:
        blocks = tuple(BlockCost(str(n), b / 2, b / 2) for n in range(3))
        nodes = tuple(NodeSpec(f"n{n}", overhead_s=0.5) for n in range(3))
        return Problem(blocks, nodes, objective="micro", micro_batches=-(-72 // b))

    plan = [("n0", 0, 1), ("n1", 1, 2), ("n2", 2, 3)]
    assert closed_form(build, 72, plan) == math.isqrt(72 // 2) == 6
    assert best_samples(build, 72, plan) == 6


def test_the_closed_form_is_near_the_best_for_the_split_it_was_given() -> None:
    worst = 0.0
    for seed in range(40):
        build = random_build(seed, 64)
        plan = solve(build(64)).assignment
        best_s = evaluate(build(best_samples(build, 64, plan)), plan).value
        worst = max(worst, evaluate(build(closed_form(build, 64, plan)), plan).value / best_s)
    assert 1 <= worst < 1.25


@pytest.mark.parametrize("seed", range(12))
def test_both_together_are_never_worse_than_either_alone(seed: int) -> None:
    build, batch = random_build(seed, 24), 24
    split_alone = min(solve(build(b)).value for b in (1, batch))
    size_alone = min(
        evaluate(build(best_samples(build, batch, plan)), plan).value
        for plan in (solve(build(1)).assignment, solve(build(batch)).assignment)
    )
    everything = exhaustive(build, batch).solution.value
    in_turns = min(alternate(build, batch, start).solution.value for start in (1, 8, batch))
    assert everything == best(build, batch).solution.value
    assert everything <= in_turns <= min(split_alone, size_alone) * (1 + 1e-12)
    assert in_turns <= everything * 1.05


def test_in_turns_no_step_makes_it_worse_than_the_start() -> None:
    for seed in range(8):
        build = random_build(seed, 48)
        for start in (1, 6, 48):
            plan = alternate(build, 48, start)
            assert plan.solution.value <= solve(build(start)).value
            assert plan.micro_batches == -(-48 // plan.samples)


def test_memory_leaves_out_large_pieces() -> None:
    assert exhaustive(random_build(3, 16, memory=9.0), 16).samples <= 4
    with pytest.raises(Infeasible):
        exhaustive(random_build(3, 16, memory=0.5), 16)
    with pytest.raises(Infeasible, match="for no size"):
        best_samples(random_build(3, 16, memory=0.5), 16, solve(random_build(3, 16)(1)).assignment)


def test_large_batches_are_solved_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    build = random_build(5, 64)
    whole = best(build, 64)
    monkeypatch.setattr("zmpsl.planner.micro.EXHAUSTIVE_UP_TO", 4)
    turns = best(build, 64)
    assert turns.solved < whole.solved
    assert turns.solution.value <= whole.solution.value * 1.05
    assert msgspec.json.encode(turns.solution)
