"""Figures 11 and 12: what an optimal split gains over one by hand, and what more nodes bring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from report import table

from mpsl.page import Check, Group, Panel, Plot, Section, Series
from mpsl.published import MODELS, SENDS, VGG_OWNER_BYTES, Cuts, Published, nodes_of
from zmpsl.planner.cost import pace, paper_time
from zmpsl.planner.manual import greedy_split
from zmpsl.planner.problem import Objective
from zmpsl.planner.simulate import simulate
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import solve

__all__ = ["cuts_of", "figure_11", "figure_12"]

FILE = "edgesys_fig6__paper_fig11.csv"
ENDS = {"resnet101": (1, 36), "vgg19": (1, 24)}
OWNER_BYTES = {"resnet101": None, "vgg19": VGG_OWNER_BYTES}
# Where the authors' spreadsheet has its groups for so many nodes.
SHEET_COLUMN = {3: "G", 4: "K", 5: "O"}
OWNERS = (100, 150)
NODES = (3, 4, 5)
# What the text says: largest gain of the solver in %, and most that a second node saves in %.
LARGEST = {"resnet101": 8.5, "vgg19": 19.0}
SECOND = 46.0
# First and last cut; the paper does not list its own.
PAIRS = {
    "resnet101": ((1, 36), (2, 36), (3, 36), (5, 36), (10, 36), (2, 35), (5, 35)),
    "vgg19": ((1, 24), (2, 24), (4, 24), (4, 23), (2, 23), (3, 22)),
}
SHOWN = ((2, 36), (5, 36), (10, 36), (1, 24), (4, 23), (3, 22))
MORE_NODES = tuple(range(1, 8))


@dataclass(frozen=True)
class Row:
    """One setting of figure 11, in minutes: the paper's two bars, and ours of three splits."""

    model: str
    owners: int
    nodes: int
    solver: Check
    manual: Check
    greedy: float
    played: float
    fill: float

    @property
    def gain(self) -> float:
        """Over the greedy split, in %."""
        return 100 * (1 - self.solver.ours / self.greedy)


def figure_11(data: Published) -> Section:
    """Twelve settings: the solver's split, the authors' by hand, and a greedy one."""
    settings = [(model, owners, nodes) for model in MODELS for owners in OWNERS for nodes in NODES]
    rows = [_row(data, *one) for one in settings]
    resnet, vgg = ([one for one in rows if one.model == model] for model in ("resnet101", "vgg19"))
    gains = [[one.gain for one in many] for many in (resnet, vgg)]
    head = (
        "model", "K", "N", "solver, paper", "solver, ours", "simulated", "by hand, paper", "by hand, sheet",
        "by hand, greedy", "gain, paper", "gain over greedy",
    )  # fmt: skip
    values = {
        "table": table(head, [_cells(one) for one in rows]),
        "ends": ENDS,
        "gains": [(min(many), max(many)) for many in gains],
        "fill": min(one.fill for one in rows),
        "played": 100 * max(abs(one.played / one.solver.ours - 1) for one in rows),
    }
    sheet = "the sheet does not have the groups of the bars for N = 4, 5"
    checks = Check.each(LARGEST.values(), (max(many) for many in gains))
    groups = (
        Group("solver bars", tuple(one.solver for one in rows), 0.025),
        Group("bars by hand, ResNet, authors' sheet", tuple(one.manual for one in resnet), 0.025),
        Group("bars by hand, VGG, authors' sheet", tuple(one.manual for one in vgg), 0.025, remark=sheet),
        Group("largest gain, %", checks, 0.1, remark="over the greedy rule"),
    )
    alt = "Minutes per epoch over N, solver and by hand, for two models"
    plot = Plot("figure-11", alt, tuple(_panel(many) for many in (resnet, vgg)))
    return Section("figure_11", "Figure 11: the solver against splits by hand", groups, values, plot)


def cuts_of(solution: Solution) -> Cuts:
    """The cuts of a split: where each piece begins, and the end."""
    return (*(piece.first for piece in solution.pieces), solution.pieces[-1].stop)


def _row(data: Published, model: str, count: int, nodes: int) -> Row:
    known = data.profile(model)
    problem = known.problem(*ENDS[model], nodes_of(nodes))
    best, greedy = cuts_of(solve(problem)), cuts_of(greedy_split(problem))
    ours = [_minutes(data, model, count, cuts) for cuts in (best, _sheet_cuts(data, model, nodes), greedy)]
    paper = [
        float(data.rows(FILE, model=model, K=str(count), N=str(nodes), series=series)[0]["epoch_min"])
        for series in ("optimizer", "manual")
    ]
    chain, owners, transfers = known.chain(best), known.owners(count, best), known.transfers(best, OWNER_BYTES[model])
    shared = paper_time(chain, owners, transfers, SENDS).aggregate_s
    played = (simulate(chain, owners, transfers).epoch_s + shared) / 60
    fill = count / pace(chain, owners, transfers).owners_to_fill
    return Row(model, count, nodes, Check(paper[0], ours[0]), Check(paper[1], ours[1]), ours[2], played, fill)


def _cells(one: Row) -> tuple[object, ...]:
    minutes = (one.solver.paper, one.solver.ours, one.played, one.manual.paper, one.manual.ours, one.greedy)
    gains = (100 * (1 - one.solver.paper / one.manual.paper), one.gain)
    return (
        MODELS[one.model], one.owners, one.nodes, *(f"{value:.2f}" for value in minutes),
        *(f"{value:.1f} %" for value in gains),
    )  # fmt: skip


def _sheet_cuts(data: Published, model: str, number: int) -> Cuts:
    """The authors' groups: sums over rows of the sheet, row i being layer i, as in "=SUM(E2:E18)"."""
    runs = []
    for row in data.rows("vm_manual_groups_raw.csv", model=model):
        cell = re.fullmatch(r"([A-Z])(\d)", row["cell"])
        found = re.fullmatch(r"=SUM\(E(\d+):E(\d+)\)", row["formula_or_value"])
        if cell and found and cell[1] == SHEET_COLUMN[number]:
            runs.append((int(found[1]) - 1, int(found[2])))
    if len(runs) != number or any(a[1] != b[0] for a, b in pairwise(runs)):
        raise SystemExit(f"vm_manual_groups_raw.csv: {model} has {runs}, not {number} groups one after the other")
    return (*(first for first, _ in runs), runs[-1][1])


def _minutes(data: Published, model: str, count: int, cuts: Cuts) -> float:
    known = data.profile(model)
    transfers = known.transfers(cuts, OWNER_BYTES[model])
    return paper_time(known.chain(cuts), known.owners(count, cuts), transfers, SENDS).total_s / 60


def _panel(rows: Sequence[Row]) -> Panel:
    series = []
    for count in OWNERS:
        for name, kind in (("solver", "solver"), ("by hand", "manual")):
            checks = [getattr(one, kind) for one in rows if one.owners == count]
            series.append(Series(f"K = {count}, {name}", NODES, [one.ours for one in checks]))
            series.append(Series("paper", NODES, [one.paper for one in checks], paper=True))
    return Panel(MODELS[rows[0].model], "compute nodes N", "minutes per epoch", tuple(series))


def figure_12(data: Published) -> Section:
    """Seconds per batch over the number of nodes, for several cuts."""
    rows, saved, sevenfold, panels = [], {}, [], []
    for model, pairs in PAIRS.items():
        series = []
        for ends in pairs:
            full, true = _full(data, model, ends, "sum"), _full(data, model, ends, "pace")
            saved[model, ends] = 100 * (1 - full[1] / full[0])
            sevenfold.append(full[0] / full[-1])
            if ends not in SHOWN:
                continue
            series.append(Series(f"{ends} eq. (3)", MORE_NODES, full))
            series.append(Series(f"{ends} beta", MORE_NODES, true, dashed=True))
            for what, line in (("eq. (3)", full), ("beta", true)):
                rows.append((f"{MODELS[model]} {ends}", what, *(f"{one:.3f}" for one in line)))
        panels.append(Panel(MODELS[model], "compute nodes N", "seconds per batch", tuple(series)))
    claim = Check(SECOND, saved["vgg19", (4, 23)])
    low, high = min(saved.values()), max(saved.values())
    remark = "depends on the first and last cut"
    groups = (
        Group("the second node saves, VGG (4, 23), %", (claim,), 0.02),
        Group("the largest saving, %", (Check(SECOND, high),), 0.05, remark=remark),
    )
    values = {
        "table": table(("cuts", "seconds", *(f"N = {number}" for number in MORE_NODES)), rows),
        "pairs": len(saved),
        "saved": (low, high, claim.ours),
        "sevenfold": (min(sevenfold), max(sevenfold)),
    }
    alt = "Seconds per batch over N: nearly halved by the second node, then less and less"
    return Section("figure_12", "Figure 12: more nodes", groups, values, Plot("figure-12", alt, tuple(panels)))


def _full(data: Published, model: str, ends: tuple[int, int], objective: Objective) -> list[float]:
    """Seconds per batch of the best split, for each number of nodes."""
    problems = (data.profile(model).problem(*ends, nodes_of(number), objective=objective) for number in MORE_NODES)
    return [solve(problem).value for problem in problems]
