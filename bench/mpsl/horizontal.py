"""Figure 14: one chain of nodes against horizontal scaling, and why the paper's comparison is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from msgspec.structs import replace
from report import table

from mpsl.page import Check, Group, Panel, Plot, Section, Series, percent
from mpsl.published import BATCHES, BETWEEN, LOCAL_EPOCHS, MODELS, Cuts, Published, total
from mpsl.splits import cuts_of
from zmpsl.errors import JobError
from zmpsl.planner.cost import paper_time
from zmpsl.planner.lanes import Lane, allocate, horizontal_time
from zmpsl.planner.problem import NodeSpec
from zmpsl.planner.simulate import simulate
from zmpsl.planner.solver import solve
from zmpsl.planner.terms import Chain, PartTime

__all__ = ["figure_14"]

OWNERS = 150
ENDS: dict[str, tuple[int, int]] = {"vgg19": (3, 22), "resnet101": (2, 36)}
GIB = 2**30
# The text, N = 5: horizontal scaling takes at most so many times as long; where it wins, it is so many times as fast.
SLOWER = {"vgg19": 1.62, "resnet101": 1.4}
FASTER = {"vgg19": 1.3, "resnet101": 1.02}
REMARKS = {"vgg19": "by a slip in the scripts", "resnet101": "its lists are not published; VGG's are taken"}


@dataclass(frozen=True)
class Machines:
    """A list of virtual machines in the order in which somebody wrote it down."""

    slowdown: tuple[float, ...]
    gib: tuple[float, ...]

    @property
    def name(self) -> str:
        """Memory of each in GiB; the slowdown is 1 where it is 16, else 2."""
        return "-".join(f"{one:g}" for one in self.gib)


@dataclass(frozen=True)
class Pair:
    """Minutes of both layouts on the same machines, ours and as in the scripts; infinite where it does not fit."""

    machines: Machines
    multihop: float
    horizontal: float
    scripts_multihop: float
    scripts_horizontal: float

    @property
    def ratio(self) -> float:
        """Horizontal over multihop."""
        return self.horizontal / self.multihop

    @property
    def scripts_ratio(self) -> float:
        """The same as in the scripts."""
        return self.scripts_horizontal / self.scripts_multihop


Mixes = Mapping[tuple[str, int], Sequence[Pair]]


def figure_14(data: Published) -> Section:
    """The lists of the authors' solver log, and all mixes of table 2."""
    lists = {model: [_pair(data, model, one) for one in _logged(data)] for model in ENDS}
    mixes = {(model, n): [_pair(data, model, one) for one in _mixes(data, n)] for model in ENDS for n in (4, 5)}
    fits = {key: [one for one in many if math.isfinite(one.multihop + one.horizontal)] for key, many in mixes.items()}
    groups = []
    for model, many in lists.items():
        ratios = [one.scripts_ratio for one in many]
        checks = Check.each((SLOWER[model], 1 / FASTER[model]), (max(ratios), min(ratios)))
        name = f"{MODELS[model]}, largest and smallest ratio, owners dealt out as in the scripts"
        groups.append(Group(name, checks, 0.03, remark=REMARKS[model]))
    checks = Check.each(SLOWER.values(), (max(one.ratio for one in lists[model]) for model in SLOWER))
    remark = "horizontal scaling is not slower"
    groups.append(Group("largest ratio, memory kept with its machine", checks, 0.03, remark=remark))
    head = (
        "VM memory GiB", "multihop, scripts", "horizontal, scripts", "ratio", "multihop, ours", "horizontal, ours",
        "ratio",
    )  # fmt: skip
    ratios = [one.ratio for many in fits.values() for one in many]
    values = {
        "table": table(head, [_cells(one) for one in lists["vgg19"]]),
        "mixes": table(("model", "N", "mixes", "least ratio", "largest ratio"), _ranges(fits)),
        "range": (min(ratios), max(ratios), len(ratios)),
        **_worst(data, lists["vgg19"]),
        **_only(mixes),
        **_cost(data, fits["resnet101", 4]),
    }
    title = "Figure 14: multihop against horizontal scaling"
    return Section("figure_14", title, tuple(groups), values, _plot(lists["vgg19"], fits))


def _cells(one: Pair) -> tuple[str, ...]:
    scripts = (f"{one.scripts_multihop:.1f}", f"{one.scripts_horizontal:.1f}", f"{one.scripts_ratio:.2f}")
    return (one.machines.name, *scripts, f"{one.multihop:.1f}", f"{one.horizontal:.1f}", f"{one.ratio:.2f}")


def _ranges(fits: Mixes) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for (model, n), many in fits.items():
        ratios = [one.ratio for one in many]
        rows.append((MODELS[model], n, len(ratios), f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
    return rows


def _worst(data: Published, logged: Sequence[Pair]) -> dict[str, object]:
    """The list of the paper's claim, also simulated; and which lists are above 1 in the scripts."""
    worst = max(logged, key=lambda one: one.scripts_ratio)
    above = [one.machines.slowdown for one in logged if one.scripts_ratio > 1]
    ordered = sum(list(one) == sorted(one) for one in above)
    return {"worst": worst, "played": _played(data, worst), "above": len(above), "ordered": ordered}


def _only(mixes: Mixes) -> dict[str, object]:
    """How many mixes fit in one layout alone."""
    every = [one for many in mixes.values() for one in many]
    chain = sum(math.isfinite(one.multihop) and math.isinf(one.horizontal) for one in every)
    side = sum(math.isinf(one.multihop) and math.isfinite(one.horizontal) for one in every)
    return {"every": len(every), "only_chain": chain, "only_side": side}


def _cost(data: Published, fits: Sequence[Pair]) -> dict[str, object]:
    """The claim that ResNet on 1-1-1-3 costs 22 % less than on 1-1-1-1, at 1.2 times the time."""
    dollars = {float(row["memory_gb"]): float(row["usd_per_hour"]) for row in data.rows("vm_prices.csv")}
    found = {one.machines.name: one for one in fits}
    big, mixed = found["16-16-16-16"], found["16-16-16-4"]
    time = mixed.multihop / big.multihop
    cost = time * sum(dollars[one] for one in mixed.machines.gib) / sum(dollars[one] for one in big.machines.gib)
    return {"time": time, "cost": percent(cost - 1, 0)}


def _plot(logged: Sequence[Pair], fits: Mixes) -> Plot:
    numbers = list(range(1, len(logged) + 1))
    worst = max(numbers, key=lambda number: logged[number - 1].scripts_ratio)
    left = (
        Series("memory kept with its machine", numbers, [one.ratio for one in logged]),
        Series("as in the scripts", numbers, [one.scripts_ratio for one in logged]),
        Series("largest, paper", [worst], [SLOWER["vgg19"]], paper=True),
    )
    right = tuple(
        Series(f"{MODELS[model]}, N = {n}", list(range(1, len(many) + 1)), sorted(one.ratio for one in many))
        for (model, n), many in fits.items()
    )
    panels = (
        Panel("VGG, lists of the solver log", "list", "horizontal / multihop", left),
        Panel("All mixes of table 2", "mixes, by ratio", "horizontal / multihop", right),
    )
    return Plot("figure-14", "Ratio of the epochs: far above 1 only as the scripts deal out owners", panels)


def _logged(data: Published) -> list[Machines]:
    golden = json.loads((data.folder / "golden_split.json").read_text(encoding="utf-8"))
    return [Machines(tuple(run["slowdown"]), tuple(run["cap_gb"])) for run in golden["instances"]]


def _mixes(data: Published, number: int) -> list[Machines]:
    types = [(float(row["relative_slowdown"]), float(row["memory_gb"])) for row in data.rows("vm_prices.csv")]
    chosen = combinations_with_replacement(types, number)
    return [Machines(tuple(slow for slow, _ in one), tuple(gib for _, gib in one)) for one in chosen]


def _pair(data: Published, model: str, machines: Machines) -> Pair:
    """Both layouts; the scripts' minutes are (K - 1) r B times the seconds per batch."""
    known, ends = data.profile(model), ENDS[model]
    middle, replica = total(known.node[slice(*ends)]), math.fsum(known.counted_bytes[slice(*ends)])
    multihop = horizontal = optimum = slowest = math.inf
    try:
        cuts, chain, optimum = _chain(data, model, machines)
        multihop = paper_time(chain, known.owners(OWNERS, cuts), known.transfers(cuts, 0.0)).total_s / 60
    except JobError:
        pass  # it does not fit
    try:
        lanes = _lanes(machines.slowdown, machines.gib, middle)
        side = horizontal_time(lanes, known.owners(OWNERS, ends), known.transfers(ends, 0.0), replica, across=BETWEEN)
        horizontal = side.total_s / 60
        # The slip: speeds are sorted, memory stays as listed.
        mixed_up = tuple(sorted(machines.slowdown))
        counts = allocate(_lanes(mixed_up, machines.gib, middle), OWNERS, (replica,))
        slowest = max((count - 1) * one for count, one in zip(counts, mixed_up, strict=True)) * middle.all_s
    except JobError:
        pass  # it does not fit
    batches = LOCAL_EPOCHS * BATCHES / 60
    return Pair(machines, multihop, horizontal, (OWNERS - 1) * optimum * batches, slowest * batches)


def _chain(data: Published, model: str, machines: Machines) -> tuple[Cuts, Chain, float]:
    """The best chain of the machines: its cuts, its seconds, and L_fwd + L_back."""
    pairs = enumerate(zip(machines.slowdown, machines.gib, strict=True))
    nodes = tuple(NodeSpec(f"c{i}", slow, gib * GIB) for i, (slow, gib) in pairs)
    solution = solve(data.profile(model).problem(*ENDS[model], nodes, OWNERS))
    return cuts_of(solution), Chain.from_solution(solution), solution.value


def _lanes(slowdown: tuple[float, ...], gib: tuple[float, ...], middle: PartTime) -> list[Lane]:
    lanes = []
    for slow, one in zip(slowdown, gib, strict=True):
        part = PartTime(slow * middle.forward_s, slow * middle.backward_s, slow * middle.update_s)
        lanes.append(Lane(Chain((part,)), (one * GIB,)))
    return lanes


def _played(data: Published, pair: Pair) -> tuple[float, float]:
    """Minutes of both layouts for VGG by simulation."""
    known, ends = data.profile("vgg19"), ENDS["vgg19"]
    cuts, chain, _ = _chain(data, "vgg19", pair.machines)
    multihop = simulate(chain, known.owners(OWNERS, cuts), known.transfers(cuts)).epoch_s
    lanes = _lanes(pair.machines.slowdown, pair.machines.gib, total(known.node[slice(*ends)]))
    counts = allocate(lanes, OWNERS, (math.fsum(known.counted_bytes[slice(*ends)]),))
    side = [
        simulate(lane.chain, replace(known.owners(OWNERS, ends), count=count), known.transfers(ends)).epoch_s
        for lane, count in zip(lanes, counts, strict=True)
    ]
    return multihop / 60, max(side) / 60
