"""Splits people make by hand, to compare the solver's with: even, and greedy up to an equal share of the work."""

from __future__ import annotations

import math

from zmpsl.planner.problem import Problem
from zmpsl.planner.solution import Infeasible, Solution, evaluate

__all__ = ["even_split", "greedy_split"]


def even_split(problem: Problem) -> Solution:
    """Gives every node that must take part the same number of blocks, in the listed order; the first get one more.

    Memory is not looked at: `Solution.short` tells which nodes it would not fit on.

    Raises:
        Infeasible: There are more such nodes than blocks.
    """
    names = _names(problem)
    each, more = divmod(len(problem.blocks), len(names))
    sizes = [each + (number < more) for number in range(len(names))]
    return _plan(problem, names, sizes, "even")


def greedy_split(problem: Problem) -> Solution:
    """Fills node after node up to total / N of the reference seconds, as the paper's manual baseline does.

    A block goes to the node in whose share its middle lies. Memory is not looked at, see `even_split`.

    Raises:
        Infeasible: There are more nodes that must take part than blocks.
    """
    names = _names(problem)
    seconds = [block.forward_s + block.backward_s + block.update_s for block in problem.blocks]
    total, done = math.fsum(seconds), 0.0
    sizes = [0] * len(names)
    at = 0
    for number, own in enumerate(seconds):
        left = len(seconds) - number
        share = math.inf if at == len(names) - 1 else total * (at + 1) / len(names)
        # On to the next node when this one is full, or when every block left is needed for a node without any.
        if sizes[at] and (done + own / 2 >= share or left <= len(names) - 1 - at):
            at = min(at + 1, len(names) - 1)
        sizes[at] += 1
        done += own
    return _plan(problem, names, sizes, "greedy")


def _names(problem: Problem) -> list[str]:
    """Nodes that must take part; where all are optional, the first."""
    names = [node.name for node in problem.nodes if not node.optional] or [problem.nodes[0].name]
    if len(names) > len(problem.blocks):
        raise Infeasible(f"{len(names)} nodes must get at least one block each, but there are {len(problem.blocks)}")
    return names


def _plan(problem: Problem, names: list[str], sizes: list[int], backend: str) -> Solution:
    at, assignment = problem.first_block, []
    for name, size in zip(names, sizes, strict=True):
        assignment.append((name, at, at + size))
        at += size
    return evaluate(problem, assignment, backend)
