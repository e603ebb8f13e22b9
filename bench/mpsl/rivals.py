"""Figure 13: slower owners and slower links, in SplitNN and in MP-SL."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace
from report import table

from mpsl.page import Check, Group, Panel, Plot, Section, Series
from mpsl.published import MODELS, SENDS, SLOW, VGG_OWNER_BYTES, Cuts, Published
from zmpsl.planner.cost import aggregation_time, pace, splitnn_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.simulate import simulate
from zmpsl.planner.terms import Aggregator, Owners, PartTime

__all__ = ["figure_13a", "figure_13b"]

COUNT = 300
# The README of the authors' scripts, "Fig 13".
CUTS: dict[str, dict[int, Cuts]] = {
    "resnet101": {3: (2, 30), 4: (2, 21, 36), 5: (2, 17, 26, 36)},
    "vgg19": {3: (12, 20), 4: (4, 12, 20), 5: (4, 11, 15, 23)},
}
OWNER_BYTES = {"resnet101": None, "vgg19": VGG_OWNER_BYTES}
WHOLE_RESNET = 171_300_000  # bytes the scripts aggregate with one node
# The paper's seconds per batch of an owner's parts.
D1_S, D2_S = 3.15, 7.25
SHARES = (0.0, 0.5, 1.0)
SLOW_SHARE = 0.7
FACTORS = (1, 2, 8)
# What the text says, in %: SplitNN with slow owners, with slow links, and MP-SL with slow links and P = 3.
OWNERS_CLAIM = 30.0
LINKS_CLAIM = {"resnet101": 12.0, "vgg19": 56.0}
SHALLOW_CLAIM = 6.0
NOTHING = PartTime(0.0, 0.0)


def figure_13a(data: Published) -> Section:
    """More and more of 300 owners are of the slow kind."""
    rows, panels, ends = [], [], {}
    for model, title in MODELS.items():
        series = []
        for name, parts in (("SplitNN", 3), *((f"MP-SL P = {parts}", parts) for parts in (3, 4, 5))):
            times = [_mixed(data, model, parts, share, name == "SplitNN") for share in SHARES]
            growth = [100 * (one / times[0] - 1) for one in times]
            ends[model, name] = growth[-1]
            series.append(Series(name, [100 * one for one in SHARES], growth))
            rows.append((title, name, f"{times[0] / 3600:.2f}", *(f"{one:+.1f} %" for one in growth[1:])))
        panels.append(Panel(title, "% of owners that are d2", "% longer", tuple(series)))
    split = {model: ends[model, "SplitNN"] for model in MODELS}
    multihop = max(value for (_, name), value in ends.items() if name[-1] in "45")
    resnet, vgg = ((Check(OWNERS_CLAIM, split[model]),) for model in ("resnet101", "vgg19"))
    groups = (
        Group("SplitNN, all d2, ResNet, growth in %", resnet, 0.05),
        Group("SplitNN, all d2, VGG, growth in %", vgg, 0.05, remark="the text does not say for which model"),
        Group("MP-SL, P = 4, 5", remark=f"paper: negligible; ours: at most {multihop:+.2f} %"),
    )
    head = ("model", "scheme", "hours, all d1", *(f"{100 * one:.0f} % d2" for one in SHARES[1:]))
    values = {"table": table(head, rows), "split": split, "multihop": multihop, "seconds": (D1_S, D2_S)}
    alt = "Growth of the epoch over the share of slow owners: SplitNN rises, MP-SL stays at zero"
    return Section("figure_13a", "Figure 13a: slower owners", groups, values, Plot("figure-13a", alt, tuple(panels)))


def _mixed(data: Published, model: str, parts: int, share: float, splitnn: bool) -> float:
    """Seconds of an epoch in which this share of owners is d2; all of an owner's seconds count as its first part's."""
    known, cuts = data.profile(model), CUTS[model][parts]
    chain, transfers, slow = known.chain(cuts), known.transfers(cuts, OWNER_BYTES[model]), round(share * COUNT)
    firsts = [PartTime(one / 2, one / 2) for one in (D1_S,) * (COUNT - slow) + (D2_S,) * slow]
    owners = replace(known.owners(COUNT, cuts), first=tuple(firsts), last=NOTHING)
    return splitnn_time(chain, owners, transfers) if splitnn else simulate(chain, owners, transfers).epoch_s


@dataclass(frozen=True)
class Slowed:
    """Seconds of MP-SL's batches and of its aggregation (as in the scripts, and as eq. (5) is printed), and K_min."""

    batches_s: float
    aggregate_s: float
    printed_s: float
    owners_to_fill: float


def figure_13b(data: Published) -> Section:
    """70 % of 300 owners have links that are up to eight times slower."""
    rows, panels, split = [], [], []
    slowed = {
        (model, parts): [_slowed(data, model, parts, factor) for factor in FACTORS]
        for model in MODELS
        for parts in (3, 4, 5)
    }
    for model, title in MODELS.items():
        times = {"SplitNN": [_splitnn(data, model, factor) for factor in FACTORS]}
        for parts in (3, 4, 5):
            times[f"MP-SL P = {parts}"] = [one.batches_s + one.aggregate_s for one in slowed[model, parts]]
        series = []
        for name, line in times.items():
            growth = [100 * (one / line[0] - 1) for one in line]
            series.append(Series(name, FACTORS, growth))
            rows.append((title, name, f"{line[0] / 3600:.2f}", *(f"{one:+.1f} %" for one in growth[1:])))
        split.append(Check(LINKS_CLAIM[model], series[0].y[-1]))
        panels.append(Panel(title, "slowdown of 70 % of the links", "% longer", tuple(series)))
    whole = 100 * _whole_resnet(slowed["resnet101", 3])
    remark = "the paper's values need a faster link than 8 Mbit/s"
    groups = (
        Group("SplitNN, 8x slower, growth in %", tuple(split), 0.1, remark=remark),
        Group("MP-SL, P = 3, ResNet, growth in %", (Check(SHALLOW_CLAIM, whole),), 0.15, remark="paper: at most 6 %"),
    )
    head = ("model", "scheme", "hours, equal links", *(f"{one}x slower" for one in FACTORS[1:]))
    values = {"table": table(head, rows), "whole": whole, **_reasons(data, slowed["vgg19", 5])}
    alt = "Growth of the epoch over the slowdown of links: SplitNN rises steeply"
    return Section("figure_13b", "Figure 13b: slower links", groups, values, Plot("figure-13b", alt, tuple(panels)))


def _reasons(data: Published, deep: list[Slowed]) -> dict[str, object]:
    """Numbers that say where the growth comes from; `deep` is VGG with P = 5."""
    first, last = deep[0], deep[-1]
    return {
        "rates": [_rate(data, model) for model in ("resnet101", "vgg19")],
        "fill": (first.owners_to_fill, last.owners_to_fill),
        "batches": 100 * (last.batches_s / first.batches_s - 1),
        "printed": 100 * ((last.batches_s + last.printed_s) / (first.batches_s + first.printed_s) - 1),
        "printed_hours": first.printed_s / 3600,
    }


def _links(factor: float) -> tuple[NodeLink, ...]:
    """Links of all owners, 70 % of them this much slower."""
    slow = round(SLOW_SHARE * COUNT)
    return (SLOW,) * (COUNT - slow) + (NodeLink(SLOW.bytes_per_s / factor),) * slow


def _slowed(data: Published, model: str, parts: int, factor: float) -> Slowed:
    known, cuts = data.profile(model), CUTS[model][parts]
    chain, transfers = known.chain(cuts), known.transfers(cuts, OWNER_BYTES[model])
    owners = replace(known.owners(COUNT, cuts), uplink=_links(factor))
    scripts, printed = (aggregation_time(owners, transfers.owner_bytes, one) for one in (SENDS, Aggregator()))
    played = simulate(chain, owners, transfers).epoch_s
    return Slowed(played, scripts, printed, pace(chain, owners, transfers).owners_to_fill)


def _whole_resnet(line: list[Slowed]) -> float:
    """Growth of the batches with one node plus aggregation of the whole model."""
    pairs = zip((line[0], line[-1]), (FACTORS[0], FACTORS[-1]), strict=True)
    equal, slow = (
        one.batches_s + aggregation_time(Owners(COUNT, NOTHING, NOTHING, _links(factor)), WHOLE_RESNET, SENDS)
        for one, factor in pairs
    )
    return slow / equal - 1


def _splitnn(data: Published, model: str, factor: float) -> float:
    """Seconds of an epoch of SplitNN with 70 % of the links this much slower."""
    known, cuts = data.profile(model), CUTS[model][3]
    owners = replace(known.owners(COUNT, cuts), uplink=_links(factor))
    return splitnn_time(known.chain(cuts), owners, known.transfers(cuts, OWNER_BYTES[model]))


def _rate(data: Published, model: str) -> float:
    """Mbit/s at which SplitNN with 8 times slower links grows as the paper says.

    With compute w and transfers c at that rate the growth is 0.7 * 7 * c / (w + c); c falls with the rate.
    """
    equal, twice = (_splitnn(data, model, factor) for factor in (1, 2))
    transfers = (twice - equal) / SLOW_SHARE
    share = LINKS_CLAIM[model] / 100 / (SLOW_SHARE * (FACTORS[-1] - 1))
    return 8e-6 * SLOW.bytes_per_s * transfers / ((equal - transfers) * share / (1 - share))
