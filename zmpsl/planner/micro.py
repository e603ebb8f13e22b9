"""How many samples a micro-batch should have: exactly, in closed form, and in turns with the split.

One batch of B samples passes as m = ceil(B / b) micro-batches of b samples and takes T_f + (m - 1) * T_i, the problem's
objective `micro`. Small pieces fill the pipe, but every piece costs a fixed time at each stage. Source: 2505.04368; its
exact expressions are reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import Problem
from zmpsl.planner.solution import Infeasible, Solution, evaluate
from zmpsl.planner.solver import Backend, solve

__all__ = ["MicroPlan", "alternate", "best", "best_samples", "candidates", "closed_form", "exhaustive"]

Assignment = Sequence[tuple[str, int, int]]
# Gives the problem, with objective `micro` and its number of micro-batches set, for b samples per micro-batch.
Build = Callable[[int], Problem]
EXHAUSTIVE_UP_TO = 128  # candidates of b beyond which `best` alternates instead
STARTS = 3


class MicroPlan(Struct, frozen=True):
    """A split and the micro-batch it goes with: `samples` is b, `micro_batches` m, `solved` counts splits solved."""

    samples: int
    micro_batches: int
    solution: Solution
    solved: int


def candidates(batch: int) -> list[int]:
    """Gives the b worth a look, rising: ceil(B / m) for every m. Any other b needs as many pieces, and larger ones.

    Raises:
        JobError: The batch is empty.
    """
    if batch < 1:
        raise JobError(f"a batch of {batch} samples cannot be cut into micro-batches; it needs at least 1")
    return sorted({-(-batch // m) for m in range(1, batch + 1)})


def best_samples(build: Build, batch: int, assignment: Assignment) -> int:
    """Gives the best b for a given split, exactly, by trying all that can be best.

    Args:
        build: Gives the problem for b.
        batch: B.
        assignment: Node, first and stop block of every piece, in order.

    Raises:
        Infeasible: The split fits in memory for no b.
    """
    plans = [(evaluate(build(b), assignment), b) for b in candidates(batch)]
    fitting = [(plan.value, b) for plan, b in plans if not plan.short]
    if not fitting:
        raise Infeasible("the split fits in memory for no size of micro-batch", plans[0][0].short)
    return min(fitting)[1]


def closed_form(build: Build, batch: int, assignment: Assignment) -> int:
    """Gives the b that is best where the ceiling in m is ignored and the same stage stays the slowest.

    With T_f = A b + C and T_i = a b + c the time is (A - a) b + B c / b + const, least at b = sqrt(B c / (A - a)).
    Both lines are drawn through b = 1 and b = B, so the stage that is slowest at each end counts; near a change of the
    slowest stage the result can be off, which `best_samples` is not.
    """
    if batch == 1:
        return 1
    low, high = evaluate(build(1), assignment), evaluate(build(batch), assignment)
    way_slope = (high.way_s - low.way_s) / (batch - 1)
    pace_slope = (high.pace_s - low.pace_s) / (batch - 1)
    fixed_s = max(0.0, low.pace_s - pace_slope)
    if way_slope <= pace_slope:
        return batch
    b = math.sqrt(batch * fixed_s / (way_slope - pace_slope))
    near = {max(1, min(batch, math.floor(b))), max(1, min(batch, math.ceil(b)))}
    return min(near, key=lambda one: evaluate(build(one), assignment).value)


def exhaustive(build: Build, batch: int, backend: Backend = "dp") -> MicroPlan:
    """Solves the split for every b that can be best: the optimum of both together.

    Raises:
        Infeasible: No split fits for any b.
    """
    found: list[MicroPlan] = []
    nearest: Infeasible | None = None
    sizes = candidates(batch)
    for b in sizes:
        try:
            found.append(MicroPlan(b, -(-batch // b), solve(build(b), backend), len(sizes)))
        except Infeasible as error:
            nearest = nearest or error
    if not found:
        raise nearest or Infeasible("no split fits")
    return min(found, key=lambda plan: plan.solution.value)


def alternate(build: Build, batch: int, start: int, backend: Backend = "dp") -> MicroPlan:
    """Solves the split for b, the best b for that split, and so on until nothing changes.

    Each step is optimal given the other, so no step makes it worse; the end is a local optimum.

    Args:
        build: Gives the problem for b.
        batch: B.
        start: First b.
        backend: Who solves the split.

    Raises:
        Infeasible: No split fits for the first b.
    """
    b, steps = start, 1
    solution = solve(build(b), backend)
    while True:
        better = best_samples(build, batch, solution.assignment)
        if evaluate(build(better), solution.assignment).value >= solution.value:
            return MicroPlan(b, -(-batch // b), solution, steps)
        b, solution, steps = better, solve(build(better), backend), steps + 1


def best(build: Build, batch: int, backend: Backend = "dp") -> MicroPlan:
    """Gives the best split and micro-batch: all of them where they are few, else from several starts in turns.

    Raises:
        Infeasible: No split fits.
    """
    sizes = candidates(batch)
    if len(sizes) <= EXHAUSTIVE_UP_TO:
        return exhaustive(build, batch, backend)
    plans, nearest = [], None
    for start in sorted({sizes[0], sizes[len(sizes) // STARTS], sizes[-1]}):
        try:
            plans.append(alternate(build, batch, start, backend))
        except Infeasible as error:
            nearest = error
    if not plans:
        raise nearest or Infeasible("no split fits")
    return min(plans, key=lambda plan: plan.solution.value)
