"""What the authors published, read where it lies: profiles per block, digitised bars, solver log, prices."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from zmpsl.planner.problem import BlockCost, NodeLink, NodeSpec, Objective, Problem
from zmpsl.planner.terms import Aggregator, Chain, Owners, PartTime, Transfers

__all__ = [
    "BATCHES", "BETWEEN", "COUNTS", "KIB", "LOCAL_EPOCHS", "MIB", "MODELS", "SENDS", "SLOW", "VGG_OWNER_BYTES", "Cuts",
    "Profile", "Published", "nodes_of", "total",
]  # fmt: skip

Cuts = tuple[int, ...]

KIB, MIB = 1024, 2**20
MODELS = {"resnet101": "ResNet", "vgg19": "VGG"}
# links.csv and script_constants.csv: 8 Mbit/s to an owner, 7.13 Gbit/s between nodes, B = 16, r = 2.
SLOW, BETWEEN = NodeLink(8e6 / 8), NodeLink(7.13e9 / 8)
BATCHES, LOCAL_EPOCHS = 16, 2
COUNTS = (10, 20, 30, 40, 50)
# The authors' scripts send the averaged parts to the owners at the rate between nodes, not as eq. (5) is printed.
SENDS = Aggregator(0.0, BETWEEN)
# script_constants.csv: M_1 and M_P of VGG-19, whatever the cuts.
VGG_OWNER_BYTES = 95_607_345


@dataclass(frozen=True)
class Profile:
    """One model: seconds per block on the owner (RPi 4, "d1") and on a node (VM), bytes per block; batches of 128.

    `counted_bytes` is what the paper counts per replica and block: weights and output activation, as its scripts read
    them (with the slip in VGG's block 24, where the sheet says 209 KiB instead of 2,050).
    """

    model: str
    owner: tuple[PartTime, ...]
    node: tuple[PartTime, ...]
    activation_bytes: tuple[float, ...]
    weight_bytes: tuple[float, ...]
    counted_bytes: tuple[float, ...]

    def chain(self, cuts: Cuts) -> Chain:
        """The parts between the cuts on nodes of slowdown 1."""
        return Chain(tuple(total(self.node[a:e]) for a, e in pairwise(cuts)))

    def owners(self, count: int, cuts: Cuts) -> Owners:
        """`count` owners of kind d1 at 8 Mbit/s."""
        first, last = total(self.owner[: cuts[0]]), total(self.owner[cuts[-1] :])
        return Owners(count, first, last, SLOW, batches=BATCHES, local_epochs=LOCAL_EPOCHS)

    def transfers(self, cuts: Cuts, owner_bytes: float | None = None) -> Transfers:
        """Bytes at the cuts; `owner_bytes` in place of the owner's own parts for aggregation."""
        sizes = tuple(self.activation_bytes[cut - 1] for cut in cuts)
        parts = [math.fsum(self.weight_bytes[a:e]) for a, e in pairwise((0, *cuts, len(self.weight_bytes)))]
        if owner_bytes is not None:
            parts[0], parts[-1] = owner_bytes, 0.0
        return Transfers(sizes, sizes, tuple(parts))

    def problem(
        self, first: int, stop: int, nodes: tuple[NodeSpec, ...], owners: int = 1, objective: Objective = "sum"
    ) -> Problem:
        """The split of blocks [first, stop) with the paper's memory of `owners` replicas."""
        blocks = tuple(
            BlockCost(f"b{number}", part.forward_s, part.backward_s, part.update_s, owners * self.counted_bytes[number])
            for number, part in list(enumerate(self.node))[first:stop]
        )
        return Problem(blocks, nodes, objective=objective, first_block=first)


class Published:
    """The folder with the authors' numbers.

    Args:
        folder: The data folder; the files are in its folder `mpsl`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "mpsl"
        self.profile = cache(self._profile)

    def rows(self, name: str, **wanted: str) -> list[dict[str, str]]:
        """Lines of a file whose columns have these values."""
        with (self.folder / name).open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if all(row[key] == text for key, text in wanted.items())]

    def times(self, model: str, device: str) -> tuple[PartTime, ...]:
        """Seconds of every block on one kind of device."""
        found = self.rows("layer_profile.csv", model=model, dataset="CIFAR", device=device)
        return tuple(PartTime(*(float(row[key]) / 1000 for key in ("fwd_ms", "bwd_ms", "opt_ms"))) for row in found)

    def minutes(self, name: str, key: str, **wanted: str) -> tuple[float, ...]:
        """A row of digitised bars in minutes, in the order of the numbers in column `key`."""
        found = sorted(self.rows(name, **wanted), key=lambda row: int(row[key]))
        return tuple(float(row["epoch_min"]) for row in found)

    def _profile(self, model: str) -> Profile:
        sizes = self.rows("layer_memory.csv", model=model, dataset="CIFAR")
        weights = tuple(KIB * float(row["weights_kib"]) for row in sizes)
        counted = tuple(KIB * float(row["activation_kib_source"]) + w for row, w in zip(sizes, weights, strict=True))
        return Profile(
            model, self.times(model, "d1"), self.times(model, "VM"),
            tuple(KIB * float(row["activation_kib_fixed"]) for row in sizes), weights, counted,
        )  # fmt: skip


def total(parts: tuple[PartTime, ...]) -> PartTime:
    """Blocks one after the other on one device."""
    columns = zip(*((part.forward_s, part.backward_s, part.update_s) for part in parts), strict=True)
    return PartTime(*(math.fsum(column) for column in columns))


def nodes_of(number: int) -> tuple[NodeSpec, ...]:
    """Equal nodes without a memory limit."""
    return tuple(NodeSpec(f"c{i}") for i in range(number))
