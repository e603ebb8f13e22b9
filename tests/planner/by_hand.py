"""A chain and owners small enough to be computed by hand, and the figures that the papers publish."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

from zmpsl.planner.problem import BlockCost, NodeLink, NodeSpec, Problem
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers

__all__ = ["CHAIN", "FAST", "NOTHING", "OWNERS", "Published", "SLOW", "TRANSFERS", "total"]

NOTHING = PartTime(0.0, 0.0)
FAST = NodeLink(1e9)
SLOW = NodeLink(8e6 / 8)  # the paper's rate to an owner; its B is 16 and its r 2
CHAIN = Chain((PartTime(1.0, 2.0, 0.5), PartTime(3.0, 1.0)))
OWNERS = Owners(2, PartTime(0.5, 1.0, 0.25), PartTime(0.75, 1.25, 9.0), NodeLink(10.0), NodeLink(5.0), 3, 2)
TRANSFERS = Transfers((20.0, 8.0, 30.0), (10.0, 8.0, 40.0), (30.0, 1.0, 1.0, 20.0))


class Published:
    """The authors' profile of one model: RPi 4 owners (d1), VM nodes, CIFAR-10, batches of 128."""

    def __init__(self, folder: Path, model: str) -> None:
        def rows(name: str, **wanted: str) -> list[dict[str, str]]:
            with (folder / "mpsl" / name).open(newline="") as file:
                return [row for row in csv.DictReader(file) if all(row[key] == text for key, text in wanted.items())]

        def times(device: str) -> list[PartTime]:
            found = rows("layer_profile.csv", model=model, dataset="CIFAR", device=device)
            return [PartTime(*(float(row[key]) / 1000 for key in ("fwd_ms", "bwd_ms", "opt_ms"))) for row in found]

        sizes = rows("layer_memory.csv", model=model, dataset="CIFAR")
        self.owner, self.node = times("d1"), times("VM")
        self.activations = [1024 * float(row["activation_kib_fixed"]) for row in sizes]
        self.weights = [1024 * float(row["weights_kib"]) for row in sizes]

    def chain(self, cuts: tuple[int, ...]) -> Chain:
        return Chain(tuple(total(self.node[a:e]) for a, e in pairwise(cuts)))

    def owners(self, count: int, cuts: tuple[int, ...]) -> Owners:
        first, last = total(self.owner[: cuts[0]]), total(self.owner[cuts[-1] :])
        return Owners(count, first, last, SLOW, batches=16, local_epochs=2)

    def transfers(self, cuts: tuple[int, ...], owner_bytes: float | None = None) -> Transfers:
        sizes = tuple(self.activations[cut - 1] for cut in cuts)
        parts = [math.fsum(self.weights[a:e]) for a, e in pairwise((0, *cuts, len(self.weights)))]
        if owner_bytes is not None:
            parts[0], parts[-1] = owner_bytes, 0.0
        return Transfers(sizes, sizes, tuple(parts))

    def problem(self, first: int, stop: int, nodes: int) -> Problem:
        times = [(part.forward_s, part.backward_s, part.update_s) for part in self.node[first:stop]]
        blocks = tuple(BlockCost(f"b{number}", *time) for number, time in enumerate(times))
        return Problem(blocks, tuple(NodeSpec(f"c{i}") for i in range(nodes)), objective="sum", first_block=first)


def total(parts: list[PartTime]) -> PartTime:
    columns = zip(*((part.forward_s, part.backward_s, part.update_s) for part in parts), strict=True)
    return PartTime(*(math.fsum(column) for column in columns))
