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
from zmpsl.planner.bound import Best, swapped
from zmpsl.planner.limits import Answer, Deadline, hopeless
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.tighten import Floors, tighten

__all__ = ["solve"]

# The start split's value becomes this much, so that the solver's absolute tolerances of 1e-6 are relative ones of 1e-9.
SCALE = 1000.0
MOST_SWAP_S = 0.5
MOST_TERMS = 1_000_000


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Answer:
    """Finds the best split; arguments and answer as for `dp.solve`.

    Raises:
        JobError: python-mip is not installed, or no split was found in time and there is no `start`.
    """
    mip = _library()
    start = swapped(problem, stages, start, deadline.ends_s(MOST_SWAP_S))
    stages, floors = tighten(problem, stages, start[0])
    if math.inf in (floors.forward, floors.backward, floors.pace):
        return Answer((math.inf, []), True, "all nodes together cannot take all blocks")
    runs = [
        (t, int(e - d - 1), int(e)) for t, cost in enumerate(stages.pace) for d, e in np.argwhere(np.isfinite(cost))
    ]
    if (terms := sum(e - a for _, a, e in runs)) > MOST_TERMS:
        reason = f"{len(runs):,} runs of blocks with {terms:,} terms are too many for the solver"
        if not start[1]:
            raise JobError(hopeless(reason))
        return Answer(start, False, reason)
    scale = SCALE / (start[0] if start[1] and start[0] > 0 else max(map(_largest, stages.way)) or 1.0)
    model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
    model.verbose = 0
    model.threads = 1
    model.max_mip_gap = model.max_mip_gap_abs = 1e-9
    take = [model.add_var(var_type=mip.BINARY) for _ in runs]
    _add_path(mip, model, stages, runs, take)
    _add_objective(mip, model, problem, stages, floors, runs, take, scale)
    status = model.optimize(max_seconds=max(0.01, deadline.left_s))
    found: Best = (math.inf, [])
    if model.num_solutions:
        chosen = [run for run, var in zip(runs, take, strict=True) if var.x > 0.5]
        found = (model.objective_value / scale, sorted(chosen, key=lambda run: run[1]))
    return _answer(mip, status, found, start, f"{len(runs):,} runs of {stages.blocks} blocks")


def _answer(mip: Any, status: Any, found: Best, start: Best, size: str) -> Answer:
    """Says what the solver's status means for what it found and for what was known before."""
    kinds = mip.OptimizationStatus
    if status == kinds.OPTIMAL:
        return Answer(found, True, f"branch and bound over {size} closed the gap")
    if status in (kinds.INFEASIBLE, kinds.INT_INFEASIBLE) and not start[1]:
        return Answer(found, True, f"branch and bound over {size} found that no split meets all limits")
    best = min(found, start, key=lambda one: one[0])
    if not best[1]:
        raise JobError(f"backend mip: no split found ({status.name.lower()}): give it more time, or use the backend dp")
    return Answer(best, False, f"branch and bound over {size} ended early ({status.name.lower()})")


def _library() -> Any:
    try:
        import mip
    except ImportError as error:
        raise JobError(
            f"backend mip needs python-mip ({error}): pip install zmpsl[manager], or use the backend dp"
        ) from error
    return mip


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


def _add_objective(
    mip: Any,
    model: Any,
    problem: Problem,
    stages: Stages,
    floors: Floors,
    runs: list[Run],
    take: list[Any],
    scale: float,
) -> None:
    """Adds the variables for the worst stages, their rows, and the objective."""

    def worst(kind: tuple[Array, ...], floor: float) -> Any:
        # A stage below the floor is as good as one at the floor, which makes the relaxation tighter still.
        top = model.add_var(lb=floor * scale)
        cover: list[list[Any]] = [[] for _ in range(stages.blocks)]
        own: list[list[Any]] = [[] for _ in stages.types]
        costs = np.maximum(stages.cost_of(kind, runs), floor).tolist()
        for (t, a, e), var, cost in zip(runs, take, costs, strict=True):
            own[t].append((cost * scale) * var)
            for block in range(a, e):
                cover[block].append((cost * scale) * var)
        for terms in cover:
            model.add_constr(mip.xsum(terms) <= top)
        for kind_of_node, terms in zip(stages.types, own, strict=True):
            model.add_constr(mip.xsum(terms) <= kind_of_node.count * top)
        return top

    if problem.objective == "sum":
        forward, backward = worst(stages.forward, floors.forward), worst(stages.backward, floors.backward)
        model.add_constr(forward + backward >= floors.pace * scale)
        model.objective = forward + backward
        return
    top = worst(stages.pace, floors.pace)
    if problem.objective == "pace":
        model.objective = top + 0.0
        return
    costs = stages.cost_of(stages.way, runs)
    way = mip.xsum((cost * scale) * var for var, cost in zip(take, costs, strict=True))
    model.objective = way + (problem.micro_batches - 1) * top
