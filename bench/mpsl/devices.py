"""Tables 1 and 2, and the memory of figures 1 and 3."""

from __future__ import annotations

import math

from mpsl.page import Check, Group, Panel, Plot, Section, Series
from mpsl.published import MIB, MODELS, Profile, Published, total
from report import table

from zmpsl.planner.problem import BlockCost, NodeSpec, Problem
from zmpsl.planner.solver import solve

__all__ = ["figure_3", "table_1", "table_2"]

# Ends between which blocks are placed on nodes; the paper does not say which its figure 3 has.
ENDS = (("resnet101", 2, 35), ("vgg19", 3, 22), ("vgg19", 1, 24))
NODES = (1, 2, 3, 4)


def table_1(data: Published) -> Section:
    """Seconds of a batch on one device: the sum of the profile against the table."""
    rows, checks = [], []
    for known in data.rows("table1.csv"):
        for model, name in MODELS.items():
            printed = known[f"{model}_batch_s"]
            if not printed:
                continue
            ours = total(data.times(model, known["id"])).all_s
            checks.append(Check(float(printed), ours))
            spread = known[f"{model}_std_s"]
            rows.append((known["id"], name, f"{printed} ± {spread}", f"{ours:.2f}", f"{100 * checks[-1].difference:+.1f} %"))
    worst = max(checks, key=lambda one: abs(one.difference))
    return Section(
        "Table 1: a batch on one device",
        "Seconds that one batch of 128 takes where the whole model is on one device: d1 is a Raspberry Pi 4, VM a compute"
        " node. Ours is the sum over the blocks of the published profile. d2, a Raspberry Pi 3, cannot hold the models.",
        table(("device", "model", "paper s", "profile s", "difference"), rows),
        f"Three of four agree within 4 %. VGG on the VM does not: the profile sums to {worst.ours:.2f} s, the table says"
        f" {worst.paper:g} s, which is more than its own spread. All that follows takes the profile.",
        (Group("seconds of a batch", tuple(checks), 0.05, remark="the profile of VGG on the VM is not the table's"),),
    )


def table_2(data: Published) -> Section:
    """The price list; nothing is computed, figure 14 uses it."""
    rows = [
        (row["id"], row["instance"], row["vcpus"], row["memory_gb"], row["usd_per_hour"], row["relative_slowdown"])
        for row in data.rows("vm_prices.csv")
    ]
    return Section(
        "Table 2: prices of virtual machines",
        "Constants, used for figure 14. The slowdown is not printed in the table; it is what the authors' solver script"
        " takes.",
        table(("VM", "AWS type", "vCPUs", "memory GB", "$ per hour", "slowdown"), rows),
        "Taken over. Section 2.2 of the paper says that a t2.medium has 2 GB, the table and AWS say 4. Two vCPUs are"
        " taken as twice as slow as four.",
        (Group("prices", remark="constants"),),
    )


def figure_3(data: Published) -> Section:
    """The largest part of one replica over the number of nodes."""
    rows, series = [], []
    for model, first, stop in ENDS:
        known = data.profile(model)
        label = f"{MODELS[model]} ({first}, {stop})"
        paper = [_largest(known, known.counted_bytes, first, stop, nodes) / MIB for nodes in NODES]
        least = [_least(known.counted_bytes, first, stop, nodes) / MIB for nodes in NODES]
        real = [_largest(known, _held(known), first, stop, nodes) / MIB for nodes in NODES]
        series += [Series(label, [n + 2 for n in NODES], paper), Series(f"{label}, with gradients", [n + 2 for n in NODES], real, dashed=True)]  # fmt: skip
        rows += [
            (label, what, *(f"{one:.1f}" for one in values))
            for what, values in (("as the paper counts", paper), ("the same, split for memory", least), ("with gradients and momentum", real))
        ]  # fmt: skip
    vgg = data.profile("vgg19")
    whole = Check(80, 100 * math.fsum(vgg.counted_bytes) / 1e9)
    floor = vgg.counted_bytes[22] / MIB
    return Section(
        "Figure 3: memory of the largest part",
        "MiB that one owner's replica of the largest part takes on its node, for P = 3 to 6 parts, with the fastest split"
        " between the two cuts. The paper shows bars without numbers and does not say for which cuts and how many owners;"
        " only the example of the text can be checked: VGG-19 for 100 owners takes 80 GB on one server."
        f" The profile gives {whole.ours:.1f} GB.",
        table(("cuts", "MiB", *(f"P = {n + 2}" for n in NODES)), rows)
        + "\n{plot}\n\n"
        "The paper counts weights and output activation of each block. A replica that trains with momentum also holds"
        " gradients and the optimiser's state, three times the weights in all (third line), and the activations inside"
        " its blocks, which the profile does not have.",
        f"The shape is right, and splitting more finely stops to help where one block is large: fc1 of VGG alone takes"
        f" {floor:.0f} MiB. As a budget the paper's count is too low: with gradients and momentum the largest part takes"
        " up to three times as much, so its eq. (8) admits splits that do not fit.",
        (
            Group("80 GB for 100 replicas of VGG", (whole,), 0.05),
            Group("bars", remark="no numbers printed, cuts and owners not stated"),
        ),
        Plot("figure-3", "MiB of the largest part over P: falls with P, for VGG with fc layers only to 500 MiB", (
            Panel("Largest part of one replica", "parts P", "MiB", tuple(series), log=True),
        )),
    )  # fmt: skip


def _held(known: Profile) -> tuple[float, ...]:
    """Bytes with gradients and momentum: two more times the weights."""
    return tuple(one + 2 * weights for one, weights in zip(known.counted_bytes, known.weight_bytes, strict=True))


def _largest(known: Profile, sizes: tuple[float, ...], first: int, stop: int, nodes: int) -> float:
    """The largest part of the split with the least L_fwd + L_back."""
    solution = solve(known.problem(first, stop, tuple(NodeSpec(f"c{i}") for i in range(nodes))))
    return max(math.fsum(sizes[piece.first : piece.stop]) for piece in solution.pieces)


def _least(sizes: tuple[float, ...], first: int, stop: int, nodes: int) -> float:
    """The largest part of the split that makes it as small as can be: bytes take the place of seconds."""
    blocks = tuple(BlockCost(f"b{number}", sizes[number], 0.0) for number in range(first, stop))
    return solve(Problem(blocks, tuple(NodeSpec(f"c{i}") for i in range(nodes)))).value
