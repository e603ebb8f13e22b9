"""Tables 1 and 2, and the memory of figure 3."""

from __future__ import annotations

import math

from report import table

from mpsl.page import Check, Group, Panel, Plot, Section, Series, percent
from mpsl.published import MIB, MODELS, Profile, Published, nodes_of, total
from zmpsl.planner.problem import BlockCost, Problem
from zmpsl.planner.solver import solve

__all__ = ["figure_3", "table_1", "table_2"]

# Ends between which blocks are placed on nodes; the paper does not say which its figure 3 has.
ENDS = (("resnet101", 2, 35), ("vgg19", 3, 22), ("vgg19", 1, 24))
NODES = (1, 2, 3, 4)
FC1 = 22  # VGG's largest block


def table_1(data: Published) -> Section:
    """Seconds of a batch on one device: the sum of the profile against the table."""
    rows, checks = [], []
    for known in data.rows("table1.csv"):
        for model, name in MODELS.items():
            printed = known[f"{model}_batch_s"]
            if printed:
                check = Check(float(printed), total(data.times(model, known["id"])).all_s)
                checks.append(check)
                spread = known[f"{model}_std_s"]
                rows.append(
                    (known["id"], name, f"{printed} ± {spread}", f"{check.ours:.2f}", percent(check.difference))
                )
    remark = "the profile of VGG on the VM is not the table's"
    values = {
        "table": table(("device", "model", "paper s", "profile s", "difference"), rows),
        "worst": max(checks, key=lambda one: abs(one.difference)),
    }
    groups = (Group("seconds of a batch", tuple(checks), 0.05, remark=remark),)
    return Section("table_1", "Table 1: a batch on one device", groups, values)


def table_2(data: Published) -> Section:
    """The price list; nothing is computed, figure 14 uses it."""
    columns = ("id", "instance", "vcpus", "memory_gb", "usd_per_hour", "relative_slowdown")
    rows = [[row[column] for column in columns] for row in data.rows("vm_prices.csv")]
    values = {"table": table(("VM", "AWS type", "vCPUs", "memory GB", "$ per hour", "slowdown"), rows)}
    groups = (Group("prices", remark="constants"),)
    return Section("table_2", "Table 2: prices of virtual machines", groups, values)


def figure_3(data: Published) -> Section:
    """The largest part of one replica over the number of nodes."""
    rows, series, more = [], [], []
    parts = [number + 2 for number in NODES]
    for model, first, stop in ENDS:
        known = data.profile(model)
        label = f"{MODELS[model]} ({first}, {stop})"
        paper = [_largest(known, known.counted_bytes, first, stop, nodes) / MIB for nodes in NODES]
        least = [_least(known.counted_bytes, first, stop, nodes) / MIB for nodes in NODES]
        real = [_largest(known, _held(known), first, stop, nodes) / MIB for nodes in NODES]
        more += [a / b for a, b in zip(real, paper, strict=True)]
        series.append(Series(label, parts, paper))
        series.append(Series(f"{label}, with gradients", parts, real, dashed=True))
        names = ("as the paper counts", "the same, split for memory", "with gradients and momentum")
        for what, line in zip(names, (paper, least, real), strict=True):
            rows.append((label, what, *(f"{one:.1f}" for one in line)))
    vgg = data.profile("vgg19")
    whole = Check(80, 100 * math.fsum(vgg.counted_bytes) / 1e9)
    values = {
        "table": table(("cuts", "MiB", *(f"P = {one}" for one in parts)), rows),
        "whole": whole.ours,
        "floor": vgg.counted_bytes[FC1] / MIB,
        "more": max(more),
    }
    groups = (
        Group("80 GB for 100 replicas of VGG", (whole,), 0.05),
        Group("bars", remark="no numbers printed, cuts and owners not stated"),
    )
    panel = Panel("Largest part of one replica", "parts P", "MiB", tuple(series), log=True)
    alt = "MiB of the largest part over P: falls with P, for VGG with its fc layers only to 500 MiB"
    return Section("figure_3", "Figure 3: memory of the largest part", groups, values, Plot("figure-3", alt, (panel,)))


def _held(known: Profile) -> tuple[float, ...]:
    """Bytes with gradients and momentum: two more times the weights."""
    return tuple(one + 2 * weights for one, weights in zip(known.counted_bytes, known.weight_bytes, strict=True))


def _largest(known: Profile, sizes: tuple[float, ...], first: int, stop: int, nodes: int) -> float:
    """The largest part of the split with the least L_fwd + L_back."""
    solution = solve(known.problem(first, stop, nodes_of(nodes)))
    return max(math.fsum(sizes[piece.first : piece.stop]) for piece in solution.pieces)


def _least(sizes: tuple[float, ...], first: int, stop: int, nodes: int) -> float:
    """The largest part of the split that makes it as small as can be: bytes take the place of seconds."""
    blocks = tuple(BlockCost(f"b{number}", sizes[number], 0.0) for number in range(first, stop))
    return solve(Problem(blocks, nodes_of(nodes))).value
