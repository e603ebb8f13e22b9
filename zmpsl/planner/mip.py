"""Backend `mip`: the split as a mixed-integer programme over segments, solved by CBC through python-mip.

One binary y[a, e, t] per run of blocks [a, e) and node type t. Runs form a path through the cuts 0..S; each type is
used as often as it must; for every block the runs that cover it stand for the stage it is in, which makes the
relaxation tight. What cannot beat the start split is not even a variable. Source: MP-SL eqs. (6)-(12), with the
contiguity of eq. (7), which accepts every assignment as printed, in the form of a path.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from zmpsl.errors import JobError
from zmpsl.planner.bound import Best, least, swapped
from zmpsl.planner.limits import Answer, Deadline, hopeless
from zmpsl.planner.problem import Problem
from zmpsl.planner.ranges import Range, count, divide
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.table import Table
from zmpsl.planner.tighten import Floors, tighten

__all__ = ["solve"]

# The start split's value becomes this much, so that the solver's absolute tolerances of 1e-6 are relative ones of 1e-9.
SCALE = 1000.0
MOST_SWAP_S = 0.1
QUICK_WORK = 3_000_000  # steps of a table that take a few milliseconds
MOST_TERMS = 1_000_000
FEW_RUNS = 100


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Answer:
    """Finds the best split; arguments and answer as for `dp.solve`.

    Raises:
        JobError: python-mip is not installed, or no split was found in time and there is no `start`.
    """
    mip = _library()
    start = _better(problem, stages, start, deadline)
    stages, floors = tighten(problem, stages, start[0])
    if math.inf in (floors.forward, floors.backward, floors.pace):
        return Answer((math.inf, []), True, "all nodes together cannot take all blocks")
    if (terms := sum(e - a for _, a, e in _runs(stages))) > MOST_TERMS:
        reason = f"{count(stages):,} runs of blocks with {terms:,} terms are too many for the solver"
        if not start[1]:
            raise JobError(hopeless(reason))
        return Answer(start, False, reason)
    size = f"{count(stages):,} runs of {stages.blocks} blocks"
    programme = _Programme(mip, problem, floors, deadline)
    if not start[1]:
        low = floors.forward if problem.objective == "sum" else floors.pace
        found, sure = programme.solve(Range(0.0, low, math.inf, stages, np.zeros(0)), start)
        if not found[1] and not sure:
            raise JobError("backend mip: no split found in time: give it more, or use the backend dp")
        return Answer(found, sure, f"branch and bound over {size}" + ("" if sure else f" ended early; {deadline.text}"))
    answer = divide(problem, stages, floors, start, programme.solve, FEW_RUNS, deadline)
    how = f"{answer.ranges} ranges of the worst stage over {size}, {answer.solved} of them by branch and bound"
    return Answer(answer.best, answer.proven, how if answer.proven else f"{how}; {deadline.text}")


def _better(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Best:
    """Improves the upper bound: by the dynamic programme, cut short, or by swaps where its table is too large."""
    longest = max(map(len, stages.pace))
    if not start[1] or Table.work(stages.types, stages.blocks, longest) > QUICK_WORK:
        return swapped(problem, stages, start, deadline.ends_s(MOST_SWAP_S))
    table, until_s = Table(stages.types, stages.blocks), deadline.ends_s(MOST_SWAP_S)
    return min(start, least(problem, stages, table.best, until_s, start[0])[0], key=lambda one: one[0])


def _runs(stages: Stages) -> list[Run]:
    return [
        (t, int(e - d - 1), int(e)) for t, cost in enumerate(stages.pace) for d, e in np.argwhere(np.isfinite(cost))
    ]


def _library() -> Any:
    try:
        import mip
    except ImportError as error:
        raise JobError(
            f"backend mip needs python-mip ({error}): pip install zmpsl[manager], or use the backend dp"
        ) from error
    return mip


class _Programme:
    """Writes a range of the search as a programme, and has it solved."""

    def __init__(self, mip: Any, problem: Problem, floors: Floors, deadline: Deadline) -> None:
        self.mip, self.problem, self.floors, self.deadline = mip, problem, floors, deadline

    def solve(self, part: Range, known: Best) -> tuple[Best, bool]:
        """Finds the best split of a range below a known one; with none there, whether that is sure."""
        mip, stages, runs = self.mip, part.stages, _runs(part.stages)
        scale = SCALE / (known[0] if known[1] and known[0] > 0 else max(map(_largest, stages.way)) or 1.0)
        model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
        model.verbose = 0
        model.threads = 1
        model.max_mip_gap = model.max_mip_gap_abs = 1e-9
        take = [model.add_var(var_type=mip.BINARY) for _ in runs]
        _add_path(mip, model, stages, runs, take)
        self._add_objective(model, part, runs, take, scale)
        if known[1]:
            model.cutoff = known[0] * scale
        status, kinds = model.optimize(max_seconds=max(0.01, self.deadline.left_s)), mip.OptimizationStatus
        if model.num_solutions:
            chosen = [run for run, var in zip(runs, take, strict=True) if var.x > 0.5]
            found = (model.objective_value / scale, sorted(chosen, key=lambda run: run[1]))
            return found, status == kinds.OPTIMAL
        return (math.inf, []), status in (kinds.INFEASIBLE, kinds.INT_INFEASIBLE)

    def _add_objective(self, model: Any, part: Range, runs: list[Run], take: list[Any], scale: float) -> None:
        """Adds the variables for the worst stages, their rows, and the objective."""
        mip, stages, floors, problem = self.mip, part.stages, self.floors, self.problem

        def worst(kind: tuple[Array, ...], low: float, high: float) -> Any:
            # A stage below the lowest is as good as one there, which makes the relaxation tighter still.
            if low == high:
                return low * scale
            top = model.add_var(lb=low * scale, ub=high * scale)
            costs = np.maximum(stages.cost_of(kind, runs), low).tolist()
            _add_worst(mip, model, stages, runs, take, [cost * scale for cost in costs], top)
            return top

        if problem.objective == "sum":
            forward = worst(stages.forward, part.low, part.high)
            backward = worst(stages.backward, floors.backward, math.inf)
            model.add_constr(forward + backward >= floors.pace * scale)
            model.objective = forward + backward
            return
        top = worst(stages.pace, part.low, part.high)
        if problem.objective == "pace":
            model.objective = mip.LinExpr() + top
            return
        costs = stages.cost_of(stages.way, runs)
        way = mip.xsum((cost * scale) * var for var, cost in zip(take, costs, strict=True))
        model.objective = way + (problem.micro_batches - 1) * top


def _largest(cost: Array) -> float:
    finite = cost[np.isfinite(cost)]
    return float(finite.max()) if finite.size else 0.0


def _add_path(mip: Any, model: Any, stages: Stages, runs: list[Run], take: list[Any]) -> None:
    """The runs lead from cut 0 to cut S without a gap, and use every type as often as they must and may."""
    into: list[list[Any]] = [[] for _ in range(stages.blocks + 1)]
    out: list[list[Any]] = [[] for _ in range(stages.blocks + 1)]
    of_type: list[list[Any]] = [[] for _ in stages.types]
    for (t, a, e), var in zip(runs, take, strict=True):
        out[a].append(var)
        into[e].append(var)
        of_type[t].append(var)
    model.add_constr(mip.xsum(out[0]) == 1)
    for cut in range(1, stages.blocks):
        model.add_constr(mip.xsum(into[cut]) - mip.xsum(out[cut]) == 0)
    for kind, own in zip(stages.types, of_type, strict=True):
        used = mip.xsum(own)
        model.add_constr(used <= kind.count if kind.node.optional else used == kind.count)


def _add_worst(
    mip: Any, model: Any, stages: Stages, runs: list[Run], take: list[Any], costs: list[float], top: Any
) -> None:
    """No stage is above `top`: not the one that a block is in, not those of a type on average."""
    cover: list[list[Any]] = [[] for _ in range(stages.blocks)]
    own: list[list[Any]] = [[] for _ in stages.types]
    for (t, a, e), var, cost in zip(runs, take, costs, strict=True):
        own[t].append(cost * var)
        for block in range(a, e):
            cover[block].append(cost * var)
    for terms in cover:
        model.add_constr(mip.xsum(terms) <= top)
    for kind_of_node, terms in zip(stages.types, own, strict=True):
        model.add_constr(mip.xsum(terms) <= kind_of_node.count * top)
