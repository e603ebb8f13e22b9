"""What eqs. (3) and (4) leave out: a node does both directions, and few owners do not fill a pipe. And figure 10."""

from __future__ import annotations

from msgspec.structs import replace
from report import table

from mpsl.page import Check, Group, Panel, Plot, Section, Series, percent
from mpsl.published import SENDS, SLOW, Published
from zmpsl.planner.cost import pace, paper_time
from zmpsl.planner.simulate import simulate
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers

__all__ = ["equation_3", "equation_4", "figure_10"]

FEW = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)
CUTS = {4: (2, 26, 35), 5: (2, 16, 26, 35)}
# Two nodes, the first slow forward and the second slow backward, in seconds.
CROSSED = Chain((PartTime(1.0, 0.3), PartTime(0.2, 1.1)))
MIXES = ((30, 0), (20, 10), (15, 15), (10, 20), (0, 30))
SLOWER = 7.25 / 3.15  # the paper's seconds per batch of d2 over d1
TEXT_S = (0.062, 0.08)  # how much the model's epoch changes from all d1 to all d2, P = 4, 5


def equation_3(data: Published) -> Section:
    """The pace of a full pipe, by eq. (3), by the busiest node, and played."""
    nothing = PartTime(0.0, 0.0)
    crossed = Owners(20, nothing, nothing, SLOW, batches=100)
    cases = [("f = (1, 0.2), b = (0.3, 1.1) s", CROSSED, crossed, Transfers((0.0,) * 3, (0.0,) * 3))]
    for parts, cuts in CUTS.items():
        known = data.profile("resnet101")
        cases.append((f"ResNet P = {parts}", known.chain(cuts), known.owners(40, cuts), known.transfers(cuts)))
    rows, checks = [], []
    for name, chain, owners, transfers in cases:
        check = Check(paper_time(chain, owners, transfers).full_s, simulate(chain, owners, transfers).pace_s)
        beta = pace(chain, owners, transfers).pace_s
        checks.append(check)
        rows.append((name, f"{check.paper:.3f}", f"{beta:.3f}", f"{check.ours:.3f}", percent(check.difference)))
    head = ("chain", "eq. (3) s", "beta s", "simulated s per batch", "simulated to eq. (3)")
    remark = "eq. (3) adds maxima of different nodes"
    groups = (
        Group("seconds per batch, the paper's chains", tuple(checks[1:]), 0.01),
        Group("seconds per batch, nodes slow in different directions", (checks[0],), 0.01, remark=remark),
    )
    values = {"table": table(head, rows), "crossed": checks[0].paper / checks[0].ours}
    return Section("equation_3", "Equation 3: the pace of a full pipe", groups, values)


def equation_4(data: Published) -> Section:
    """Epochs with few owners: by eq. (4), by the lower bound, and played."""
    known, cuts = data.profile("resnet101"), CUTS[5]
    chain, transfers = known.chain(cuts), known.transfers(cuts)
    rows, formula, bound, played = [], [], [], []
    for count in FEW:
        owners = known.owners(count, cuts)
        formula.append(paper_time(chain, owners, transfers).all_batches_s / 60)
        bound.append(pace(chain, owners, transfers).bound_s / 60)
        played.append(simulate(chain, owners, transfers).epoch_s / 60)
        last = (formula[-1], bound[-1], played[-1], played[-1] / formula[-1])
        rows.append((count, *(f"{one:.2f}" for one in last)))
    found = pace(chain, known.owners(1, cuts), transfers)
    checks = Check.each(formula, played)
    enough = [count >= found.owners_to_fill for count in FEW]
    groups = (
        Group(
            f"minutes, K below K_min = {found.owners_to_fill:.1f}",
            tuple(one for one, full in zip(checks, enough, strict=True) if not full), 0.02, remark="eq. (4) is too low",
        ),
        Group("minutes, K from 10 to 20", tuple(one for one, k in zip(checks, FEW, strict=True) if k >= 10), 0.02),
    )  # fmt: skip
    head = ("K", "eq. (4) min", "lower bound min", "simulated min", "simulated / eq. (4)")
    values = {
        "table": table(head, rows),
        "pace": found,
        "round_trip": found.round_trip_s[0],
        "one": played[0] / formula[0],
    }
    series = (
        Series("eq. (4)", FEW, formula),
        Series("simulated", FEW, played),
        Series("lower bound", FEW, bound, dashed=True),
    )
    alt = "Minutes per epoch over K: eq. (4) goes to zero for few owners, simulation and bound do not"
    plot = Plot("equation-4", alt, (Panel("ResNet, P = 5", "owners K", "minutes per epoch", series),))
    return Section("equation_4", "Equation 4: few owners", groups, values, plot)


def figure_10(data: Published) -> Section:
    """30 owners of two kinds."""
    rows, panels, checks, changes, formula = [], [], [], [], []
    names = [f"({fast}, {slow})" for fast, slow in MIXES]
    for parts, cuts in CUTS.items():
        marks = [_measured(data, parts, fast, slow) for fast, slow in MIXES]
        times = [_times(data, cuts, fast, slow) for fast, slow in MIXES]
        played = [one / 60 for one, _ in times]
        checks += Check.each(marks, played)
        changes.append(60 * (max(played) - min(played)))
        formula.append(times[-1][1] - times[0][1])
        for what, line in (("measured median, paper", marks), ("simulated, ours", played)):
            rows.append((f"P = {parts}", what, *(f"{one:.2f}" for one in line)))
        series = (Series("simulated", names, played), Series("measured, paper", names, marks, paper=True))
        panels.append(Panel(f"ResNet, P = {parts}", "owners (d1, d2)", "minutes per epoch", series))
    kinds = data.rows("emulation_rpi_stats.csv", commit="1009610..beef666")
    emulated = [float(row["first_part_fwd_ms"]) + float(row["first_part_bwd_ms"]) for row in kinds]
    remark = "the text's seconds do not fit its own factor"
    groups = (
        Group("measured medians, simulated", tuple(checks), 0.02),
        Group("change of eq. (5) from all d1 to all d2, s", Check.each(TEXT_S, formula), 0.1, remark=remark),
    )
    values = {
        "table": table(("", "minutes", *names), rows),
        "slower": SLOWER,
        "changes": max(changes),
        "formula": max(formula),
        "emulated": abs(emulated[0] - emulated[1]) / 1000,
    }
    alt = "Minutes per epoch for five mixes of owners: flat, the simulation on the measured medians"
    return Section("figure_10", "Figure 10: owners of two kinds", groups, values, Plot("figure-10", alt, tuple(panels)))


def _measured(data: Published, parts: int, fast: int, slow: int) -> float:
    """Minutes, the median of the paper's box plot."""
    name = "edgesys_fig4__paper_fig10_resnet101_K30.csv"
    return float(data.rows(name, P=str(parts), d1_d2=f"({fast},{slow})")[0]["median_min"])


def _times(data: Published, cuts: tuple[int, ...], fast: int, slow: int) -> tuple[float, float]:
    """Seconds of an epoch with so many owners of each kind: simulated, and by eq. (5)."""
    known = data.profile("resnet101")
    chain, transfers = known.chain(cuts), known.transfers(cuts)
    base = known.owners(fast + slow, cuts)
    rows = [(one.first, one.last) for one in base.each()]
    rows[fast:] = [(_slower(first), _slower(last)) for first, last in rows[fast:]]
    owners = replace(base, first=tuple(first for first, _ in rows), last=tuple(last for _, last in rows))
    return simulate(chain, owners, transfers).epoch_s, paper_time(chain, owners, transfers, SENDS).total_s


def _slower(part: PartTime) -> PartTime:
    return PartTime(SLOWER * part.forward_s, SLOWER * part.backward_s, SLOWER * part.update_s)
