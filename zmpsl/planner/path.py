"""Backend `path`: bottleneck-aware shortest path. Source: arXiv 2505.04368.

A vertex is (next block, nodes used of each type), an edge one run of blocks on one more node. For one threshold after
the other, Dijkstra's algorithm runs on the edges within it, for the sum of the edges or for the worst of them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from zmpsl.errors import JobError
from zmpsl.planner.bound import Best, least, swapped
from zmpsl.planner.limits import SWAP_S, Answer, Deadline, TooLong, hopeless
from zmpsl.planner.problem import Problem
from zmpsl.planner.stages import Array, Run, Stages
from zmpsl.planner.table import Table

__all__ = ["MOST_VERTICES", "solve"]

MOST_VERTICES = 3_000_000
Edges = list[list[list[tuple[int, float]]]]  # by type and first block: stop block and cost


def solve(problem: Problem, stages: Stages, start: Best, deadline: Deadline) -> Answer:
    """Finds the best split; arguments, answer and errors as for `dp.solve`."""
    vertices = Table.rows_for(stages.types) * (stages.blocks + 1)
    if vertices > MOST_VERTICES:
        reason = f"{vertices:,} vertices are too many for a shortest path"
        if not start[1]:
            raise JobError(hopeless(reason))
        return Answer(swapped(problem, stages, start, deadline.ends_s(SWAP_S)), False, reason)
    searches = 0

    def find(costs: Sequence[Array], op: np.ufunc) -> tuple[float, list[Run]]:
        nonlocal searches
        searches += 1
        deadline.check()
        return Graph(stages, costs, deadline).shortest(worst=op is np.maximum)

    try:
        best, complete = least(problem, stages, find, deadline.ends_s(math.inf, share=1), start[0], prune=True)
    except TooLong as error:
        if not start[1]:
            raise JobError(f"backend path: no split found; {error}") from None
        return Answer(start, False, str(error))
    best = min(best, start)
    if not complete:
        return Answer(best, False, deadline.text)
    return Answer(best, True, f"{searches} shortest paths over {vertices:,} vertices leave no better threshold")


class Graph:
    """The graph for one kind of cost; edges with infinite cost are not there."""

    def __init__(self, stages: Stages, costs: Sequence[Array], deadline: Deadline) -> None:
        self.blocks, self.deadline = stages.blocks, deadline
        self.counts = [kind.count for kind in stages.types]
        self.required = [0 if kind.node.optional else kind.count for kind in stages.types]
        self.strides = Table.strides_for(stages.types)
        self.edges: Edges = [_edges(cost, self.blocks) for cost in costs]
        self.longest = [_longest(cost) for cost in costs]

    def shortest(self, worst: bool) -> tuple[float, list[Run]]:
        """Finds the path with the least sum of costs, or the least worst cost.

        Returns:
            The value and the runs in order; infinite and no runs where there is no path.

        Raises:
            TooLong: The deadline has passed.
        """
        width = self.blocks + 1
        reached: dict[int, float] = {0: 0.0}
        before: dict[int, tuple[int, int]] = {}
        done: set[int] = set()
        heap = [(0.0, 0)]
        while heap:
            value, vertex = heapq.heappop(heap)
            if vertex in done:
                continue
            done.add(vertex)
            if len(done) % 1024 == 0:
                self.deadline.check()
            row, a = divmod(vertex, width)
            if a == self.blocks:
                return value, self._runs(vertex, before)
            for t, stop_low, stop_high in self._moves(row, a):
                base = vertex + self.strides[t] * width - a
                for e, cost in self.edges[t][a]:
                    if not stop_low <= e <= stop_high:
                        continue
                    new = max(value, cost) if worst else value + cost
                    if new < reached.get(base + e, np.inf):
                        reached[base + e] = new
                        before[base + e] = (vertex, t)
                        heapq.heappush(heap, (new, base + e))
        return np.inf, []

    def _moves(self, row: int, a: int) -> list[tuple[int, int, int]]:
        """Types that may come next, with the stop blocks from which the rest can still be covered."""
        used = [(row // stride) % (count + 1) for stride, count in zip(self.strides, self.counts, strict=True)]
        must = sum(max(0, need - u) for need, u in zip(self.required, used, strict=True))
        reach = sum((n - u) * d for n, u, d in zip(self.counts, used, self.longest, strict=True))
        moves = []
        for t, (count, u) in enumerate(zip(self.counts, used, strict=True)):
            if u < count:
                after = must - (u < self.required[t])
                # The last block may only be reached once nobody has to be placed any more.
                high = self.blocks - after
                moves.append((t, self.blocks - (reach - self.longest[t]), high))
        return moves

    def _runs(self, vertex: int, before: dict[int, tuple[int, int]]) -> list[Run]:
        runs: list[Run] = []
        width = self.blocks + 1
        while vertex:
            last, t = before[vertex]
            runs.append((t, last % width, vertex % width))
            vertex = last
        return runs[::-1]


def _edges(cost: Array, blocks: int) -> list[list[tuple[int, float]]]:
    """Lists, for every first block, the runs that are allowed."""
    edges: list[list[tuple[int, float]]] = [[] for _ in range(blocks + 1)]
    lengths, stops = np.nonzero(np.isfinite(cost))
    for d, e, value in zip((lengths + 1).tolist(), stops.tolist(), cost[lengths, stops].tolist(), strict=True):
        edges[e - d].append((e, value))
    return edges


def _longest(cost: Array) -> int:
    """Length of the longest run that is allowed."""
    lengths = np.flatnonzero(np.isfinite(cost).any(axis=1))
    return int(lengths[-1]) + 1 if lengths.size else 0
