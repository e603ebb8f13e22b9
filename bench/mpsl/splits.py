"""Figures 11 and 12: what an optimal split gains over one by hand, and what more nodes bring."""

from __future__ import annotations

import re

from mpsl.page import Check, Group, Panel, Plot, Section, Series, percent
from mpsl.published import MODELS, SENDS, VGG_OWNER_BYTES, Cuts, Published
from report import table

from zmpsl.planner.cost import pace, paper_time
from zmpsl.planner.manual import greedy_split
from zmpsl.planner.problem import NodeSpec, Objective
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import solve

__all__ = ["figure_11", "figure_12"]

FILE = "edgesys_fig6__paper_fig11.csv"
ENDS = {"resnet101": (1, 36), "vgg19": (1, 24)}
OWNER_BYTES = {"resnet101": None, "vgg19": VGG_OWNER_BYTES}
SHEET_COLUMN = {3: "G", 4: "K", 5: "O"}
OWNERS = (100, 150)
NODES = (3, 4, 5)
# First and last cut; the paper does not list its own.
PAIRS = {
    "resnet101": ((1, 36), (2, 36), (3, 36), (5, 36), (10, 36), (2, 35), (5, 35)),
    "vgg19": ((1, 24), (2, 24), (4, 24), (4, 23), (2, 23), (3, 22)),
}
SHOWN = {"resnet101": ((2, 36), (5, 36), (10, 36)), "vgg19": ((1, 24), (4, 23), (3, 22))}
MORE_NODES = tuple(range(1, 8))


def nodes_of(number: int) -> tuple[NodeSpec, ...]:
    """Equal nodes without a memory limit."""
    return tuple(NodeSpec(f"c{i}") for i in range(number))


def figure_11(data: Published) -> Section:
    """Twelve settings: the solver's split, the authors' by hand, and a greedy one."""
    rows, best, manual, greedy, fills = [], [], [], [], []
    for model in MODELS:
        for count in OWNERS:
            optimizer, by_hand = (
                data.minutes(FILE, "N", model=model, K=str(count), series=one) for one in ("optimizer", "manual")
            )
            for number, a, b in zip(NODES, optimizer, by_hand, strict=True):
                problem = data.profile(model).problem(*ENDS[model], nodes_of(number))
                cuts = [cuts_of(solve(problem)), sheet_cuts(data, model, number), cuts_of(greedy_split(problem))]
                ours = [_minutes(data, model, count, one) for one in cuts]
                best.append(Check(a, ours[0]))
                manual.append(Check(b, ours[1]))
                greedy.append(1 - ours[0] / ours[2])
                fills.append(_fill(data, model, count, cuts[0]))
                rows.append((MODELS[model], count, number, *(f"{one:.2f}" for one in (a, ours[0], b, *ours[1:])),
                             f"{100 * (1 - a / b):.1f} %", f"{100 * greedy[-1]:.1f} %"))  # fmt: skip
    by_model = (greedy[:6], greedy[6:])
    head = ("model", "K", "N", "solver, paper", "solver, ours", "by hand, paper", "by hand, authors' sheet", "by hand, greedy", "gain, paper", "gain over greedy")  # fmt: skip
    return Section(
        "Figure 11: the solver against splits by hand",
        "Minutes of an epoch by eq. (5). The solver's split has the least L_fwd + L_back between the first and the last cut:"
        f" blocks {ENDS['resnet101']} of ResNet, {ENDS['vgg19']} of VGG. For the split by hand there are two of ours: the"
        " groups of blocks in the authors' spreadsheet, and the rule of the paper's text, filling node after node"
        " up to an equal share of the time (a block goes where its middle lies).",
        table(head, rows) + "\n{plot}",
        f"The solver's bars are reproduced. The gain depends on how well one splits by hand: the paper gives up to 8.5 % (ResNet) and"
        f" 19 % (VGG); against the greedy rule it is {100 * min(by_model[0]):.1f} to {100 * max(by_model[0]):.1f} % and"
        f" {100 * min(by_model[1]):.1f} to {100 * max(by_model[1]):.1f} %. With VGG on four nodes the greedy split is the optimum. In"
        f" all settings the owners fill the pipe (K is at least {min(fills):.1f} times K_min), so eq. (4) holds.",
        (
            Group("solver bars", tuple(best), 0.025),
            Group("bars by hand, ResNet, authors' sheet", tuple(manual[:6]), 0.025),
            Group("bars by hand, VGG, authors' sheet", tuple(manual[6:]), 0.025, remark="the sheet does not have the groups of the bars for N = 4, 5"),
            Group("largest gain, %", tuple(Check(t, 100 * max(g)) for t, g in zip((8.5, 19), by_model, strict=True)), 0.1, remark="against the greedy rule; less to gain"),
        ),
        Plot("figure-11", "Minutes per epoch over N, solver and by hand, for two models", tuple(_panel(model, best, manual) for model in MODELS)),
    )  # fmt: skip


def cuts_of(solution: Solution) -> Cuts:
    """The cuts of a split: where each piece begins, and the end."""
    return (*(piece.first for piece in solution.pieces), solution.pieces[-1].stop)


def sheet_cuts(data: Published, model: str, number: int) -> Cuts:
    """The authors' groups: sums over rows of the sheet, row i being layer i, as in "=SUM(E2:E18)"."""
    runs = []
    for row in data.rows("vm_manual_groups_raw.csv", model=model):
        cell = re.fullmatch(r"([A-Z])(\d)", row["cell"])
        found = re.fullmatch(r"=SUM\(E(\d+):E(\d+)\)", row["formula_or_value"])
        if cell and found and cell[1] == SHEET_COLUMN[number]:
            runs.append((int(found[1]) - 1, int(found[2])))
    if len(runs) != number or any(a[1] != b[0] for a, b in zip(runs, runs[1:], strict=False)):
        raise SystemExit(f"vm_manual_groups_raw.csv: {model} has the groups {runs}, not {number} that follow on each other")
    return (*(first for first, _ in runs), runs[-1][1])


def _minutes(data: Published, model: str, count: int, cuts: Cuts) -> float:
    known = data.profile(model)
    transfers = known.transfers(cuts, OWNER_BYTES[model])
    return paper_time(known.chain(cuts), known.owners(count, cuts), transfers, SENDS).total_s / 60


def _fill(data: Published, model: str, count: int, cuts: Cuts) -> float:
    known = data.profile(model)
    return count / pace(known.chain(cuts), known.owners(count, cuts), known.transfers(cuts)).owners_to_fill


def _panel(model: str, best: list[Check], manual: list[Check]) -> Panel:
    start, series = 6 * list(MODELS).index(model), []
    for number, count in enumerate(OWNERS):
        here = slice(start + 3 * number, start + 3 * number + 3)
        for name, checks in (("solver", best[here]), ("by hand", manual[here])):
            series.append(Series(f"K = {count}, {name}", NODES, [one.ours for one in checks]))
            series.append(Series("the same, paper", NODES, [one.paper for one in checks], paper=True))
    return Panel(MODELS[model], "compute nodes N", "minutes per epoch", tuple(series))


def figure_12(data: Published) -> Section:
    """Seconds per batch over the number of nodes, for several cuts."""
    rows, gains, panels = [], {}, []
    for model, pairs in PAIRS.items():
        series = []
        for ends in pairs:
            full = [_full(data, model, ends, number, "sum") for number in MORE_NODES]
            true = [_full(data, model, ends, number, "pace") for number in MORE_NODES]
            gains[model, ends] = 1 - full[1] / full[0]
            if ends in SHOWN[model]:
                label = f"({ends[0]}, {ends[1]})"
                series += [Series(f"{label} eq. (3)", MORE_NODES, full), Series(f"{label} beta", MORE_NODES, true, dashed=True)]
                rows += [(f"{MODELS[model]} {label}", what, *(f"{one:.3f}" for one in values)) for what, values in (("eq. (3)", full), ("beta", true))]
        panels.append(Panel(MODELS[model], "compute nodes N", "seconds per batch", tuple(series)))
    claim = Check(46, 100 * gains["vgg19", (4, 23)])
    low, high = min(gains.values()), max(gains.values())
    return Section(
        "Figure 12: more nodes",
        "Seconds between two batches over the number of nodes N: L_fwd + L_back of the best split by eq. (3), and beta ="
        " max (f + b) of the best split for that. The paper's bars have no numbers; the text says that the second node"
        " saves up to 46 %.",
        table(("cuts", "seconds", *(f"N = {number}" for number in MORE_NODES)), rows) + "\n{plot}",
        f"Confirmed: over {len(gains)} pairs of first and last cut the second node saves {100 * low:.1f} to {100 * high:.1f} %,"
        f" VGG (4, 23) {claim.ours:.1f} %. From the fifth node on there is little to gain, as whole blocks become the limit.",
        (
            Group("the second node saves, VGG (4, 23), %", (claim,), 0.02),
            Group("the largest saving, %", (Check(46, 100 * high),), 0.1, remark=f"{percent(-low)} to {percent(-high)} over {len(gains)} pairs of cuts"),
        ),
        Plot("figure-12", "Seconds per batch over N: halved by the second node, flat from the fifth on", tuple(panels)),
    )  # fmt: skip


def _full(data: Published, model: str, ends: tuple[int, int], number: int, objective: Objective) -> float:
    """Seconds per batch of the best split."""
    return solve(data.profile(model).problem(*ends, nodes_of(number), objective=objective)).value

