"""Figure 8: how long the split takes to solve, and what eq. (7) constrains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product

from report import machine, table

from mpsl.page import TIMED, Group, Section
from mpsl.published import MODELS, Published, nodes_of
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import Backend, solve

__all__ = ["coded_form", "contiguous", "equation_7", "figure_8", "printed_form"]

FILE = "edgesys_fig5__paper_fig8_gurobi_time_class.csv"
# Layers and nodes for which every assignment is tried.
SMALL = ((6, 2), (7, 3), (7, 4))
Assignment = tuple[int, ...]


def figure_8(data: Published) -> Section:
    """Solves every point of the figure with the dynamic programme, and with the solver library."""
    solve(data.profile("vgg19").problem(4, 9, nodes_of(1)), "mip")  # the library is loaded before anything is timed
    rows, solved, drawn = [], 0, 0
    for model in MODELS:
        for size in sorted({int(row["S_star"]) for row in data.rows(FILE, model=model)}):
            here = data.rows(FILE, model=model, S_star=str(size))
            numbers = sorted({int(row["N"]) for row in here})
            nodes = [one for one in numbers if one <= size]  # eq. (6): every node gets a layer
            solved, drawn = solved + len(nodes), drawn + len(numbers)
            dp, mip = ([_solved(data, model, size, n, backend) for n in nodes] for backend in ("dp", "mip"))
            _same(dp, mip)
            paper = " ".join(f"<{one}" for one in sorted({int(row["time_s_class"].lstrip("<")) for row in here}))
            slowest = (f"{max(one.seconds for one in many):.3f}" for many in (dp, mip))
            rows.append((MODELS[model], size, f"{nodes[0]}-{nodes[-1]}", paper, *slowest))
    log = [float(row["python_total_s"]) for row in data.rows("solver_runs_vgg19_N5_K150.csv")]
    timings = table(("model", "S*", "N", "paper, Gurobi s", "dp, slowest s", "mip, slowest s"), rows)
    values = {
        "solved": solved,
        "impossible": drawn - solved,
        "slow": sum(int(row["N"]) <= 5 and row["time_s_class"] != "<1" for row in data.rows(FILE)),
        "log": (min(log), max(log)),
        "timings": "\n\n".join((TIMED[0], timings.strip(), machine("python bench/reproduce.py").strip(), TIMED[1])),
    }
    groups = (Group("solver time", remark="different solvers and machines; see the table"),)
    return Section("figure_8", "Figure 8: time to solve the split", groups, values)


def _solved(data: Published, model: str, size: int, nodes: int, backend: Backend) -> Solution:
    """Which blocks the figure leaves out is not known: here those at the ends."""
    known = data.profile(model)
    first = min(1, len(known.node) - size)
    return solve(known.problem(first, first + size, nodes_of(nodes)), backend)


def _same(one: Sequence[Solution], other: Sequence[Solution]) -> None:
    for a, b in zip(one, other, strict=True):
        if not (a.optimal and b.optimal and abs(a.value - b.value) <= 1e-9 * a.value):
            raise SystemExit(f"{a.backend} has {a.value} ({a.proof}), {b.backend} has {b.value} ({b.proof})")


def equation_7(_: Published) -> Section:
    """Tries every assignment of a few layers: which does the printed constraint forbid?"""
    rows = []
    for layers, nodes in SMALL:
        every = [one for one in product(range(nodes), repeat=layers) if len(set(one)) == nodes]
        gaps = [one for one in every if not contiguous(one)]
        printed = sum(printed_form(one) for one in gaps)
        wrong = sum(contiguous(one) != coded_form(one) for one in every)
        rows.append((layers, nodes, len(every), len(gaps), printed, wrong))
    head = ("S*", "N", "assignments", "with gaps", "of these, allowed by eq. (7)", "errors of the form in the code")
    remark = "vacuous: allows every assignment with gaps; the code's form is right"
    groups = (Group("eq. (7) as printed", remark=remark),)
    return Section("equation_7", "Equation 7: parts without gaps", groups, {"table": table(head, rows)})


def contiguous(one: Assignment) -> bool:
    """Whether every node has one run of layers."""
    return sum(a != b for a, b in pairwise(one)) == len(set(one)) - 1


def _rows(one: Assignment) -> Iterator[list[int]]:
    """x_i1 to x_iS of every node i."""
    return ([int(owner == node) for owner in one] for node in set(one))


def printed_form(one: Assignment) -> bool:
    """Eq. (7) of MP-SL, character by character, for all nodes and all j."""
    return all(
        sum(x[j] * (x[k - 1] - 2 * x[j] - x[k]) for k in range(1, j + 1)) <= 0
        for x in _rows(one)
        for j in range(len(x))
    )


def coded_form(one: Assignment) -> bool:
    """The same as the authors' code has it: for every k by itself, no sum."""
    return all(x[j] * (x[k - 1] - x[k]) <= 0 for x in _rows(one) for j in range(len(x)) for k in range(1, j))
