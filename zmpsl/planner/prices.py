"""A lower bound that pays every type of node a price, so that any path through the cuts counts; prices are improved.

That each type is used so often is hard for a shortest path; a price per use in its place is easy. For every set of
prices the cheapest path, less what the nodes that are there may cost, is below the cost of every split; the best prices
give the bound of the linear relaxation. With one price per type the search is a small one: Shor's r-algorithm takes
about a hundred shortest paths for eight types. Source: Lagrange relaxation of the path form of MP-SL eqs. (6)-(8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zmpsl.planner.stages import Array, Stages

__all__ = ["Prices", "Ruling"]

SCALING = 3.0  # how much a step shrinks space along a change of the slope
FIRST_STEP = 0.05
ENOUGH = 1e-5  # gain over as many steps as there are types, below which more are not worth it


@dataclass(frozen=True)
class Ruling:
    """What prices say: no split is left (`none`), or which runs may be in one; `prices` to go on from.

    `bound` is what every split costs at least, over the target.
    """

    none: bool
    bound: float
    good: tuple[NDArray[np.bool_], ...]
    prices: Array


class Prices:
    """Bounds the sum of costs over all splits, or with all costs zero tells whether there is one.

    Args:
        stages: The problem; a type's nodes are all used, or at most so many where they are optional.
        costs: Seconds per type, shape (D_t, S + 1), infinite where not allowed.
        target: What the sum may be at most; 0 where only the paths count and costs are zero.
    """

    def __init__(self, stages: Stages, costs: Sequence[Array], target: float) -> None:
        self.counts = np.array([kind.count for kind in stages.types], dtype=np.float64)
        self.optional = np.array([kind.node.optional for kind in stages.types])
        self.blocks, self.longest = stages.blocks, max(map(len, costs))
        # cost[t, e, i] is the run [e - D + i, e): all that stop before e are one row.
        self.cost = np.full((len(costs), self.blocks + 1, self.longest), np.inf)
        for t, cost in enumerate(costs):
            self.cost[t, :, self.longest - len(cost) :] = (cost[::-1] / target if target else cost[::-1]).T
        self.plain, self.lengths = not target, [len(cost) for cost in costs]

    def rule(self, prices: Array, most_paths: int) -> Ruling:
        """Improves the prices until no split is left below the target, or they are about the best.

        Args:
            prices: Where to start, one per type; in units of the target.
            most_paths: Shortest paths to try at most.
        """
        value, prices = _Climb(self, prices).climb(most_paths)
        none = value > 1 + 1e-9
        return Ruling(none, value, () if none else self._through(prices), prices)

    def value(self, prices: Array) -> tuple[float, Array]:
        """Gives the bound over the target, and how it changes with the prices."""
        prices = self._legal(prices)
        costs = self.cost + prices[:, None, None]
        reach, lengths = self._forward(costs.min(axis=0))
        used = np.zeros(len(prices))
        e = self.blocks
        if not np.isfinite(reach[-1]):
            return np.inf, used
        while e > 0:
            used[int(costs[:, e, lengths[e]].argmin())] += 1
            e -= self.longest - lengths[e]
        most = float(prices @ self.counts)
        if not self.plain:
            return float(reach[-1]) - most, used - self.counts
        ratio = float(reach[-1]) / most if most > 0 else 0.0
        return ratio, used - ratio * self.counts

    def _legal(self, prices: Array) -> Array:
        """A node that may stay unused cannot be paid for not being used."""
        return np.where(self.optional, np.maximum(prices, 0.0), prices)

    def _forward(self, least: Array) -> tuple[Array, list[int]]:
        longest = self.longest
        reach = np.full(self.blocks + 1 + longest, np.inf)
        reach[longest] = 0.0
        last = [0] * (self.blocks + 1)
        for e in range(1, self.blocks + 1):
            ways = reach[e : e + longest] + least[e]
            last[e] = i = int(ways.argmin())
            reach[longest + e] = ways[i]
        return reach[longest:], last

    def _through(self, prices: Array) -> tuple[NDArray[np.bool_], ...]:
        """Marks the runs with a path through them that is not above the target."""
        prices = self._legal(prices)
        costs, longest = self.cost + prices[:, None, None], self.longest
        least = costs.min(axis=0)
        reach, _ = self._forward(least)
        rest = np.full(self.blocks + 1 + longest, np.inf)
        rest[-1] = 0.0
        for e in range(self.blocks, 0, -1):
            window = rest[e : e + longest]
            np.minimum(window, least[e] + rest[longest + e], out=window)
        before = np.concatenate((np.full(longest, np.inf), reach))
        starts = np.lib.stride_tricks.sliding_window_view(before, longest)[: self.blocks + 1]
        whole = costs + starts + rest[longest:, None]
        most = float(prices @ self.counts)
        good = whole <= (most if self.plain else 1 + most) + 1e-9 * max(1.0, abs(most))
        return tuple(good[t, :, longest - n :].T[::-1] for t, n in enumerate(self.lengths))


class _Climb:
    """Shor's r-algorithm: steps along the slope, in a space that shrinks along every change of the slope."""

    def __init__(self, prices: Prices, start: Array) -> None:
        self.bound, self.at = prices, start.copy()
        self.value, self.slope = prices.value(self.at)
        self.best = (self.value, self.at.copy())
        self.paths, self.step = 1, FIRST_STEP * (float(np.abs(start).max()) if prices.plain else 1.0)

    def climb(self, most_paths: int) -> tuple[float, Array]:
        """Gives the best bound found, over the target, and its prices."""
        size = len(self.at)
        space, since, before = np.eye(size), 0, self.best[0]
        while self.paths < most_paths and self.best[0] <= 1 + 1e-9:
            along = space.T @ self.slope
            if (norm := float(np.linalg.norm(along))) < 1e-12:
                break
            slope = self.slope
            self._walk(space @ (along / norm), most_paths)
            change = space.T @ (self.slope - slope)
            if (norm := float(np.linalg.norm(change))) > 1e-12:
                change /= norm
                space += (1 / SCALING - 1) * np.outer(space @ change, change)
            since += 1
            if since >= 2 * size:
                if self.best[0] - before < ENOUGH:
                    break
                since, before = 0, self.best[0]
        return self.best

    def _walk(self, way: Array, most_paths: int) -> None:
        """Goes on until it goes down."""
        for count in range(1, most_paths - self.paths + 1):
            self.at = self.at + self.step * way
            self.value, self.slope = self.bound.value(self.at)
            self.paths += 1
            if self.value > self.best[0]:
                self.best = (self.value, self.at.copy())
            if self.best[0] > 1 + 1e-9 or float(self.slope @ way) <= 0:
                if count == 1:
                    self.step *= 0.9
                return
            if count >= 3:
                self.step *= 1.5
