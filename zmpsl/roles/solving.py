"""Solves how a job is cut, with the solver that it names."""

from __future__ import annotations

from zmpsl.job.schema import Job
from zmpsl.planner.measured import Measured, problem_of
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import solve, solve_in_order
from zmpsl.planner.stages import node_types

__all__ = ["cuts_of", "solved"]

SOLVE_S = 10.0


def solved(measured: Measured, job: Job, fixed: bool) -> Solution:
    """Solves a split; nodes that differ and must keep their order need no search for one.

    Args:
        measured: What was measured.
        job: Names the solver.
        fixed: Nodes keep the order of their places.

    Raises:
        Infeasible: No split fits.
    """
    problem = problem_of(measured)
    if fixed and len(node_types(problem)) > 1:
        return solve_in_order(problem)
    return solve(problem, job.planning.solver, SOLVE_S)


def cuts_of(measured: Measured, solution: Solution) -> tuple[tuple[int, ...], list[str]]:
    """Gives the bounds of all parts and the nodes in hop order."""
    pieces = solution.pieces
    bounds = (0, pieces[0].first, *(piece.stop for piece in pieces), measured.owner.model_blocks)
    return bounds, [piece.node for piece in pieces]
