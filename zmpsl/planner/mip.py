"""Backend `mip`: the split as a mixed-integer programme over segments, solved by CBC through python-mip.

One binary y[a, e, t] per run of blocks [a, e) and node type t. Runs form a path through the cuts 0..S; each type is
used as often as it must; for every block the runs that cover it stand for the stage it is in, which makes the
relaxation tight. What cannot beat the start split is not even a variable. Source: MP-SL eqs. (6)-(12), with the
contiguity of eq. (7), which accepts every assignment as printed, in the form of a path.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from zmpsl.errors import JobError
from zmpsl.planner.bound import Best, swapped
from zmpsl.planner.limits import Answer, Deadline
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.tighten import Floors, tighten

__all__ = ["solve"]

# The start split's value becomes this much, so that the solver's absolute tolerances of 1e-6 are relative ones of 1e-9.
SCALE = 1000.0
SWAP_S = 0.5


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Answer:
    """Finds the best split; arguments and answer as for `dp.solve`.

    Raises:
        JobError: python-mip is not installed, or no split was found in time and there is no `start`.
    """
    mip = _library()
    start = swapped(problem, stages, start, time.perf_counter() + min(SWAP_S, deadline.left_s / 4))
    stages, floors = tighten(problem, stages, start[0])
    runs = [
        (t, int(e - d - 1), int(e)) for t, cost in enumerate(stages.pace) for d, e in np.argwhere(np.isfinite(cost))
    ]
    if not runs:
        return Answer((np.inf, []), True, "no run of blocks fits any node")
    scale = SCALE / (start[0] if start[1] and start[0] > 0 else max(map(_largest, stages.way)) or 1.0)
    model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
    model.verbose = 0
    model.threads = 1
    model.max_mip_gap = model.max_mip_gap_abs = 1e-9
    take = [model.add_var(var_type=mip.BINARY) for _ in runs]
    _add_path(mip, model, stages, runs, take)
    _add_objective(mip, model, problem, stages, runs, take, floors, scale)
    status = model.optimize(max_seconds=max(0.01, deadline.left_s))
    kinds = mip.OptimizationStatus
    if status in (kinds.INFEASIBLE, kinds.INT_INFEASIBLE):
        return Answer((np.inf, []), True, "the solver proved that no split meets all limits")
    if not model.num_solutions:
        if start[1]:
            return Answer(start, False, f"the solver found nothing better in time ({status.name.lower()})")
        raise JobError(f"backend mip: no split found ({status.name.lower()}); give it more than {deadline.limit_s} s")
    chosen = sorted((run for run, var in zip(runs, take, strict=True) if var.x > 0.5), key=lambda run: run[1])
    size = f"{len(runs):,} runs and {stages.blocks} blocks"
    if status == kinds.OPTIMAL:
        return Answer((model.objective_value / scale, chosen), True, f"branch and bound closed the gap ({size})")
    gap = f"gap {model.gap:.2%}"
    return Answer((model.objective_value / scale, chosen), False, f"stopped by the time limit, {gap} ({size})")


def _library() -> Any:
    try:
        return importlib.import_module("mip")
    except ImportError as error:
        raise JobError(
            f"backend mip needs python-mip ({error}): pip install zmpsl[manager], or use the backend dp"
        ) from error


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
    mip: Any, model: Any, problem: Problem, stages: Stages, runs: list[Run], take: list[Any], floors: Floors, scale: float
) -> None:
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
