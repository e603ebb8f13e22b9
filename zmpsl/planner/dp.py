"""Backend `dp`: exact by dynamic programming, with NumPy alone."""

from __future__ import annotations

from zmpsl.planner.bound import Best, least, quick
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Stages
from zmpsl.planner.table import Table

__all__ = ["MOST_WORK", "solve"]

MOST_WORK = 4_000_000_000  # steps of one table: seconds


def solve(problem: Problem, stages: Stages, deadline: Deadline) -> tuple[Best, bool, str]:
    pass
