"""Figure 8: how long the split takes to solve, and what eq. (7) constrains."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from mpsl.page import Group, Section
from mpsl.published import MODELS, Published
from report import machine, table

from zmpsl.planner.problem import NodeSpec
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import Backend, solve

__all__ = ["equation_7", "figure_8"]

# Layers and nodes for which every assignment is tried.
SMALL = ((6, 2), (7, 3), (7, 4))
Assignment = tuple[int, ...]


def figure_8(data: Published) -> Section:
    """Solves every point of the figure with the dynamic programme, and with the solver library."""
    name = "edgesys_fig5__paper_fig8_gurobi_time_class.csv"
    solve(data.profile("vgg19").problem(4, 9, (NodeSpec("c0"),)), "mip")  # the library is loaded before anything is timed
    rows, points, impossible = [], 0, 0
    for model in MODELS:
        known = data.rows(name, model=model)
        for size in sorted({int(row["S_star"]) for row in known}):
            here = [row for row in known if int(row["S_star"]) == size]
            drawn = sorted({int(row["N"]) for row in here})
            nodes = [one for one in drawn if one <= size]  # eq. (6): every node gets a layer
            points, impossible = points + len(nodes), impossible + len(drawn) - len(nodes)
            classes = sorted({int(row["time_s_class"].lstrip("<")) for row in here})
            dp, mip = ([_solved(data, model, size, n, backend) for n in nodes] for backend in ("dp", "mip"))
            _same(dp, mip)
            paper = " ".join(f"<{one}" for one in classes)
            rows.append((MODELS[model], size, f"{nodes[0]}-{nodes[-1]}", paper, *(f"{max(one.seconds for one in many):.3f}" for many in (dp, mip))))  # fmt: skip
    slow = [row for row in data.rows(name) if int(row["N"]) <= 5 and row["time_s_class"] != "<1"]
    log = [float(row["python_total_s"]) for row in data.rows("solver_runs_vgg19_N5_K150.csv")]
    return Section(
        "Figure 8: time to solve the split",
        "Seconds to find the optimal split of S* blocks on N equal nodes. The paper gives classes (below 1 s, 5 s, ...) for"
        " Gurobi on its machine. zmpsl has two exact backends: a dynamic programme, which is the default, and python-mip"
        " with CBC. Both solve every point and prove the same optimum.",
        f"Solved: {points} points of the figure. {impossible} more is drawn with more nodes than layers (VGG, S* = 20, N = 22), which"
        " eq. (6) forbids.",
        f'The text says "less than 1 s for up to 5 nodes". Its own figure has {len(slow)} points with N <= 5 that take'
        f" longer, and the authors' log of 17 runs with 19 blocks and 5 nodes takes {min(log):.1f} to {max(log):.1f} s per"
        " run. With the dynamic programme the question does not arise: milliseconds, and no solver to install.",
        (Group("solver time", remark="different solvers and machines; see the table"),),
        timings=table(("model", "S*", "N", "paper, Gurobi s", "dp, slowest s", "mip, slowest s"), rows)
        + "\n" + machine("python " + " ".join(sys.argv)),
    )  # fmt: skip


def _solved(data: Published, model: str, size: int, nodes: int, backend: Backend) -> Solution:
    """Which blocks the figure leaves out is not known: here those at the ends."""
    known = data.profile(model)
    first = min(1, len(known.node) - size)
    return solve(known.problem(first, first + size, tuple(NodeSpec(f"c{i}") for i in range(nodes))), backend)


def _same(one: Sequence[Solution], other: Sequence[Solution]) -> None:
    for a, b in zip(one, other, strict=True):
        if not (a.optimal and b.optimal and abs(a.value - b.value) <= 1e-9 * a.value):
            raise SystemExit(f"{a.backend} has {a.value} ({a.proof}), {b.backend} has {b.value} ({b.proof})")


def equation_7(_: Published) -> Section:
    """Tries every assignment of a few layers: which does the printed constraint forbid?"""
    rows = []
    for layers, nodes in SMALL:
        every = list(assignments(layers, nodes))
        gaps = [one for one in every if not contiguous(one)]
        printed = sum(all(printed_form(one, i) for i in range(nodes)) for one in gaps)
        coded = [one for one in every if all(coded_form(one, i) for i in range(nodes))]
        wrong = sum(contiguous(one) != (one in set(coded)) for one in every)
        rows.append((layers, nodes, len(every), len(gaps), printed, wrong))
    return Section(
        "Equation 7: parts without gaps",
        "Eq. (7) shall make every node's layers a contiguous run. As printed, in both papers of the authors, it is"
        " `sum_{k=2..j} x_ij (x_{i,k-1} - 2 x_ij - x_ik) <= 0`. Here all assignments of S* layers to N nodes are tried that"
        " give every node at least one layer.",
        table(
            ("S*", "N", "assignments", "with gaps", "of these, allowed by eq. (7)", "errors of the form in the code"), rows
        )
        + "\nWhere x_ij = 1, the sum telescopes to x_i1 - x_ij - 2 (j - 1), which is never above 0; where x_ij = 0, it is 0."
        " What the authors' code imposes is `x_ij (x_{i,k-1} - x_ik) <= 0` for every k < j by itself; this allows exactly the"
        " contiguous assignments.",
        "The printed constraint forbids nothing: a solver given eqs. (6)-(12) as printed may return parts with gaps. The"
        " results of the paper come from its code, which has another constraint. zmpsl's backends place runs and need"
        " none.",
        (Group("eq. (7) as printed", remark="vacuous: allows every assignment with gaps; the code's form is right"),),
    )  # fmt: skip


def assignments(layers: int, nodes: int) -> Iterator[Assignment]:
    """Every way to give each layer a node so that no node is without a layer."""
    return (one for one in product(range(nodes), repeat=layers) if len(set(one)) == nodes)


def contiguous(one: Assignment) -> bool:
    """Whether every node has one run of layers."""
    return sum(a != b for a, b in pairwise(one)) == len(set(one)) - 1


def printed_form(one: Assignment, node: int) -> bool:
    """Eq. (7) of MP-SL, character by character, for one node and all j."""
    x = [int(owner == node) for owner in one]
    return all(sum(x[j] * (x[k - 1] - 2 * x[j] - x[k]) for k in range(1, j + 1)) <= 0 for j in range(len(x)))


def coded_form(one: Assignment, node: int) -> bool:
    """The same as the authors' code has it: no sum."""
    x = [int(owner == node) for owner in one]
    return all(x[j] * (x[k - 1] - x[k]) <= 0 for j in range(len(x)) for k in range(1, j))
