"""Where to cut and in which order the nodes stand: one call, three backends, and what is missing where nothing fits."""

from __future__ import annotations

import math
import time
from typing import Literal

import msgspec
import numpy as np

from zmpsl.errors import JobError
from zmpsl.planner import dp, mip, path
from zmpsl.planner.bound import least, orders, quick
from zmpsl.planner.limits import Answer, Deadline, lower_bound
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.problem import NodeSpec, Problem
from zmpsl.planner.solution import Infeasible, Solution, evaluate
from zmpsl.planner.stages import Run, Stages, build
from zmpsl.planner.table import Table, in_order
from zmpsl.planner.tighten import keep, tighten

__all__ = ["Backend", "solve", "solve_in_order"]

Backend = Literal["dp", "mip", "path"]
BACKENDS = {"dp": dp.solve, "mip": mip.solve, "path": path.solve}
FEW_BLOCKS = 64  # up to here all runs are computed at once
QUICK_S = 1.0  # seconds to look for a split to start from
MOST_TIGHTENED = 1_000_000  # runs beyond which tightening takes longer than it saves
SHORT_SHOWN = 3  # nodes without enough memory that a message lists


def solve(problem: Problem, backend: Backend = "dp", time_limit_s: float | None = None) -> Solution:
    """Finds the split with the least objective value.

    Args:
        problem: The problem.
        backend: `dp` needs nothing else and is the fastest; `mip` is a solver of its own to check it with, and can
            take many different nodes; `path` is the threshold method of 2505.04368.
        time_limit_s: Seconds after which the best split known is given, with `optimal` False.

    Returns:
        The split. `optimal` says whether it is proven best, `proof` how, or how far from the best it may be.

    Raises:
        Infeasible: No split meets all limits; the message names the nodes and the bytes they lack.
        JobError: The backend is unknown or not installed, or found nothing in time.
    """
    start_s = time.perf_counter()
    if backend not in BACKENDS:
        raise JobError(f"solver backend {backend!r} is unknown; it must be one of {', '.join(BACKENDS)}")
    if time_limit_s is not None and not time_limit_s > 0:
        raise JobError(f"time_limit_s is {time_limit_s}; it must be above 0")
    deadline = Deadline(time_limit_s)
    needed = sum(not node.optional for node in problem.nodes)
    if needed > len(problem.blocks):
        raise Infeasible(
            f"{needed} nodes must get at least one block each, but only {len(problem.blocks)} blocks lie between the"
            " first and the last cut: make nodes optional or move the cuts"
        )
    if _too_large(problem):
        raise _infeasible(problem)
    stages = build(problem, _rough_limit(problem))
    start = quick(problem, stages, deadline.ends_s(QUICK_S))
    if start[1]:
        stages = trimmed(problem, stages, start[0])
        if problem.objective == "micro" and sum(cost.size for cost in stages.way) <= MOST_TIGHTENED:
            stages, _ = tighten(problem, stages, start[0])
    answer = BACKENDS[backend](problem, stages, start, deadline)
    if not answer.best[1]:
        raise _infeasible(problem)
    return _solution(problem, stages, answer, backend, start_s)


def solve_in_order(problem: Problem) -> Solution:
    """Finds the best split with the nodes in the order in which the problem lists them; exact.

    Raises:
        Infeasible: No split meets all limits. The message tells what the nearest split lacks, in whichever order.
    """
    start_s = time.perf_counter()
    stages = build(problem)
    types = {name: number for number, kind in enumerate(stages.types) for name in kind.names}
    order = [types[node.name] for node in problem.nodes]
    best, _ = least(problem, stages, lambda costs, op: in_order(stages, order, costs, op))
    if not best[1]:
        raise _infeasible(problem)
    return _solution(problem, stages, Answer(best, True, "all splits in the given order were compared"), "dp", start_s)


def _rough_limit(problem: Problem) -> float:
    """Most seconds a run may take to beat a plan made by hand; infinite for short chains, or without such a plan.

    With m micro-batches a run of t seconds makes the value at least m * t: once on the way, m - 1 times as the worst.
    """
    if len(problem.blocks) <= FEW_BLOCKS:
        return math.inf
    plain = not any(node.max_blocks or node.max_share or node.holds for node in problem.nodes)
    plans = (even_split(problem), greedy_split(problem)) if plain else ()
    batches = problem.micro_batches if problem.objective == "micro" else 1
    return min((plan.value for plan in plans if not plan.short), default=math.inf) / batches


def _too_large(problem: Problem) -> bool:
    """Whether all nodes together have less memory than the blocks need: no search is needed then."""
    budgets = [math.inf if node.memory_bytes is None else node.memory_bytes for node in problem.nodes]
    return math.fsum(block.memory_bytes for block in problem.blocks) > math.fsum(budgets)


def trimmed(problem: Problem, stages: Stages, value: float) -> Stages:
    """Leaves out the runs that alone make a split worse than `value`."""
    value *= 1 + 1e-12
    weight = problem.micro_batches - 1
    if problem.objective == "pace":
        alone = stages.pace
    elif problem.objective == "sum":
        alone = tuple(f + b for f, b in zip(stages.forward, stages.backward, strict=True))
    else:
        pairs = zip(stages.way, stages.pace, strict=True)
        alone = tuple(way + weight * pace if weight else way for way, pace in pairs)
    return keep(stages, [cost <= value for cost in alone])


def _named(problem: Problem, stages: Stages, runs: list[Run]) -> list[tuple[str, int, int]]:
    """Gives runs of node types the names of nodes, in the listed order."""
    names = [iter(kind.names) for kind in stages.types]
    return [(next(names[t]), a + problem.first_block, e + problem.first_block) for t, a, e in runs]


def _solution(problem: Problem, stages: Stages, answer: Answer, backend: str, start_s: float) -> Solution:
    solution = evaluate(problem, _named(problem, stages, answer.best[1]), backend)
    proof = answer.proof
    if not answer.optimal:
        bound = lower_bound(problem)
        above = f"; at most {solution.value / bound - 1:.1%} above the least possible" if bound > 0 else ""
        proof = f"not proven: {proof}{above}"
    seconds = time.perf_counter() - start_s
    return msgspec.structs.replace(solution, optimal=answer.optimal, proof=proof, seconds=seconds)


def _infeasible(problem: Problem) -> Infeasible:
    """Finds the split that lacks the fewest bytes on its worst node, and says what it lacks."""
    blocks = len(problem.blocks)
    head = f"no split of blocks {problem.first_block} to {problem.first_block + blocks - 1} over"
    head += f" {len(problem.nodes)} nodes meets all limits"
    near = _nearest(problem)
    if not near:
        limits = [
            f"{node.name!r} ({', '.join(limit)})" for node in problem.nodes if (limit := _limits_of(problem, node))
        ]
        return Infeasible(
            f"{head}, whatever memory the nodes have: what they may see does not cover the model:"
            f" {'; '.join(limits)}. Raise a limit or add a node"
        )
    short = sorted(evaluate(problem, near).short, key=lambda one: -one.lacks_bytes)
    lines = [
        f"node {one.node!r} would hold blocks {one.first} to {one.stop - 1} and needs {one.needs_bytes:,.0f} bytes but"
        f" has {one.has_bytes:,.0f}: {one.lacks_bytes:,.0f} bytes short"
        for one in short[:SHORT_SHOWN]
    ]
    if len(short) > SHORT_SHOWN:
        lines.append(f"{len(short) - SHORT_SHOWN} more nodes lack memory too")
    text = f"{head}. In the nearest one found {'; '.join(lines)}. Add memory or a node, or hold fewer replicas"
    return Infeasible(text, tuple(short))


def _nearest(problem: Problem) -> list[tuple[str, int, int]]:
    """Gives the split whose worst node lacks the fewest bytes; empty where other limits forbid every split."""
    stages = build(problem, relaxed="memory")
    longest = max(map(len, stages.excess))
    if Table.work(stages.types, stages.blocks, longest) <= dp.MOST_WORK:
        runs = Table(stages.types, stages.blocks).best(stages.excess, np.maximum)[1]
    else:
        runs = min(in_order(stages, order, stages.excess, np.maximum) for order in orders(stages))[1]
    return _named(problem, stages, runs)


def _limits_of(problem: Problem, node: NodeSpec) -> list[str]:
    """Says which limits other than memory a node has."""
    limits = []
    if node.max_blocks is not None:
        limits.append(f"at most {node.max_blocks} blocks")
    if node.max_share is not None:
        limits.append(f"at most {node.max_share:.1%} of the parameters")
    if node.holds:
        limits.append(f"must hold {', '.join(str(number + problem.first_block) for number in node.holds)}")
    return limits
