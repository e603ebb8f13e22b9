"""Backend `dp`: exact by dynamic programming over (next block, nodes used of each type), with NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from zmpsl.errors import JobError
from zmpsl.planner import reach
from zmpsl.planner.bound import Best, least, swapped
from zmpsl.planner.limits import SWAP_S, Answer, Deadline, TooLong, hopeless
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.table import Table

__all__ = ["MOST_WORK", "solve"]

WORTH_REACHING = 200_000_000  # steps of a table beyond which farthest blocks are looked at first
WORTH_PRUNING = 10_000_000  # steps of a table beyond which bounds are cheaper than the runs they leave out
MOST_WORK = 5_000_000_000  # steps of one table, about 10**9 a second
MOST_NUMBERS = 60_000_000  # numbers in one table: 0.5 GB


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Answer:
    """Finds the best split.

    Args:
        problem: The problem.
        stages: Its costs; what cannot beat `start` may be missing.
        start: A split known before, or infinite and no runs.
        deadline: When to stop.

    Returns:
        The best split and why it is the best; where the table would be too large or time runs out, `start`.

    Raises:
        JobError: As just said, but there is no `start`.
    """
    types, blocks = stages.types, stages.blocks
    longest = max(len(costs) for costs in stages.pace)
    rows = Table.rows_for(types)
    large = Table.work(types, blocks, longest) > WORTH_REACHING and problem.objective != "micro"
    if large and start[1] and rows <= reach.MOST_SETS:
        start, proven = reach.solve(problem, stages, start, deadline)
        if proven:
            return Answer(start, True, f"over {rows:,} sets of nodes, none gets to block {blocks} within a lower cap")
    if Table.work(types, blocks, longest) > MOST_WORK or rows * (blocks + 1) > MOST_NUMBERS:
        reason = f"{rows:,} sets of nodes times {blocks} blocks are too many for a table"
        if not start[1]:
            raise JobError(hopeless(reason))
        return Answer(swapped(problem, stages, start, deadline.ends_s(SWAP_S)), False, reason)
    table, prune = Table(types, blocks), Table.work(types, blocks, longest) > WORTH_PRUNING

    def find(costs: Sequence[Array], op: np.ufunc) -> tuple[float, list[Run]]:
        deadline.check()
        return table.best(costs, op)

    try:
        best, complete = least(problem, stages, find, deadline.ends_s(math.inf, share=1), start[0], prune=prune)
    except TooLong as error:
        if not start[1]:
            raise JobError(f"backend dp: no split found; {error}") from None
        return Answer(start, False, str(error))
    best = min(best, start)
    if not complete:
        return Answer(best, False, deadline.text)
    return Answer(best, True, f"all splits of {blocks} blocks over {rows:,} sets of nodes were compared")
