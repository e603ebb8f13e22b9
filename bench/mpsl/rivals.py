"""Figure 13: slower owners and slower links, in SplitNN and in MP-SL."""

from __future__ import annotations

import math

from mpsl.page import Check, Group, Panel, Plot, Section, Series, percent
from mpsl.published import MODELS, SENDS, VGG_OWNER_BYTES, Cuts, Published
from msgspec.structs import replace
from report import table

from zmpsl.planner.cost import Aggregator, Owners, PartTime, paper_time, splitnn_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.simulate import simulate

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
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SLOW_SHARE = 0.7
FACTORS = (1, 2, 4, 8)
CLAIMS = {"resnet101": 0.12, "vgg19": 0.56}


def figure_13a(data: Published) -> Section:
    """More and more of 300 owners are of the slow kind."""
    rows, series, ends = [], {model: [] for model in MODELS}, {}
    for model in MODELS:
        for name, line in [("SplitNN", 3), *((f"MP-SL P = {parts}", parts) for parts in (3, 4, 5))]:
            times = [_mixed(data, model, line, share, name == "SplitNN") for share in SHARES]
            growth = [100 * (one / times[0] - 1) for one in times]
            ends[model, name] = growth[-1] / 100
            series[model].append(Series(name, [100 * one for one in SHARES], growth))
            rows.append((MODELS[model], name, f"{times[0] / 3600:.2f}", *(f"+{one:.1f} %" for one in growth[1:])))
    split = tuple(Check(30, 100 * ends[model, "SplitNN"]) for model in MODELS)
    multihop = max(value for (_, name), value in ends.items() if name[-1] in "45")
    return Section(
        "Figure 13a: slower owners",
        f"By how much an epoch of {COUNT} owners grows when more of them are d2 instead of d1. The profile has no complete"
        f" d2, so an owner's parts take the paper's {D1_S} and {D2_S} s per batch. SplitNN by the paper's formula (owners one"
        " after the other, no local epochs), MP-SL simulated; cuts from the authors' scripts.",
        table(("model", "scheme", "hours, all d1", *(f"{100 * one:.0f} % d2" for one in SHARES[1:])), rows) + "\n{plot}",
        f"The shape is confirmed. SplitNN pays for every slow owner ({percent(split[0].ours / 100, 0)} for ResNet,"
        f" {percent(split[1].ours / 100, 0)} for VGG, the paper says 30 %), as each is waited for. MP-SL hides them"
        f" (at most {percent(multihop, 2)} with P = 4, 5) because 300 owners fill the pipe many times over.",
        (
            Group("SplitNN, all d2, growth in %", split, 0.1, remark="same shape; the paper does not give the cuts or the model"),
            Group("MP-SL, P = 4, 5", remark=f"paper: negligible; ours: at most {percent(multihop, 2)}"),
        ),
        Plot("figure-13a", "Growth of the epoch over the share of slow owners: SplitNN rises, MP-SL stays at zero",
             tuple(Panel(MODELS[model], "% of owners that are d2", "% longer", tuple(series[model])) for model in MODELS)),
    )  # fmt: skip


def _owners(data: Published, model: str, cuts: Cuts, share: float) -> Owners:
    """300 owners, the last of them d2, whose seconds per batch are the paper's; a quarter of it is forward."""
    slow = round(share * COUNT)
    firsts = (PartTime(D1_S / 4, 3 * D1_S / 4),) * (COUNT - slow) + (PartTime(D2_S / 4, 3 * D2_S / 4),) * slow
    return replace(data.profile(model).owners(COUNT, cuts), first=firsts, last=PartTime(0.0, 0.0))


def _mixed(data: Published, model: str, parts: int, share: float, splitnn: bool) -> float:
    """Seconds of an epoch with this share of slow owners."""
    known, cuts = data.profile(model), CUTS[model][parts]
    chain, transfers, owners = known.chain(cuts), known.transfers(cuts), _owners(data, model, cuts, share)
    return splitnn_time(chain, owners, transfers) if splitnn else simulate(chain, owners, transfers).epoch_s


def figure_13b(data: Published) -> Section:
    """70 % of 300 owners have links that are up to eight times slower."""
    rows, series, claims, printed, needed = [], {model: [] for model in MODELS}, [], {}, {}
    for model in MODELS:
        times = [_linked(data, model, 3, factor, True) for factor in FACTORS]
        needed[model] = _rate(data, model)
        claims.append(Check(100 * CLAIMS[model], 100 * (times[-1] / times[0] - 1)))
        lines = [("SplitNN", times)]
        for parts in (3, 4, 5):
            lines.append((f"MP-SL P = {parts}", [_linked(data, model, parts, factor, False) for factor in FACTORS]))
        printed[model] = [_linked(data, model, 5, factor, False, Aggregator()) for factor in (1, 8)]
        for name, line in lines:
            growth = [100 * (one / line[0] - 1) for one in line]
            series[model].append(Series(name, FACTORS, growth))
            rows.append((MODELS[model], name, f"{line[0] / 3600:.2f}", *(f"+{one:.1f} %" for one in growth[1:])))
    whole = (_linked(data, "resnet101", 3, 8, False, owner_bytes=WHOLE_RESNET) / _linked(data, "resnet101", 3, 1, False, owner_bytes=WHOLE_RESNET)) - 1  # fmt: skip
    aggregate = printed["vgg19"][1] / printed["vgg19"][0] - 1
    return Section(
        "Figure 13b: slower links",
        f"By how much an epoch of {COUNT} owners grows when {100 * SLOW_SHARE:.0f} % of them have a link 2, 4 or 8 times slower"
        " than 8 Mbit/s. Owners compute as the profile of d1 says; MP-SL is simulated, with aggregation, whose results"
        " leave at the rate between nodes as in the authors' scripts.",
        table(("model", "scheme", "hours, equal links", *(f"{one}x slower" for one in FACTORS[1:])), rows) + "\n{plot}\n\n"
        "For SplitNN the paper has +12 % (ResNet) and +56 % (VGG). At 8 Mbit/s transfers are most of an owner's time, and"
        f" the growth is several times that. The paper's values come out at about {needed['resnet101']:.0f} and {needed['vgg19']:.0f} Mbit/s."
        ' "P = 1" in the text must mean P = 3.'
        f" Its at most 6 % there is the aggregation of the whole ResNet ({percent(whole)} with the 171 MB of the scripts)."
        " The 0 % of the longer chains holds for batches. But with eq. (5) as printed, the results of VGG leave to all owners one"
        f" after the other over their own links: then 8 times slower links make an epoch with P = 5 {percent(aggregate, 0)} longer.",
        "The order is confirmed, the numbers are not: MP-SL hides slow links and SplitNN does not, at 8 Mbit/s far more clearly"
        " than the paper says. Its SplitNN values need another rate than the one it gives. MP-SL's aggregation is not"
        " hidden; large first and last parts (VGG's fc layers at the owner) make it the longest part of an epoch on slow links.",
        (
            Group("SplitNN, 8x slower, growth in %", tuple(claims), 0.1, remark="not at 8 Mbit/s"),
            Group("MP-SL, P = 3, ResNet, growth in %", (Check(6, 100 * whole),), 0.3, remark="the paper says at most 6 %"),
        ),
        Plot("figure-13b", "Growth of the epoch over the slowdown of links: SplitNN rises steeply",
             tuple(Panel(MODELS[model], "slowdown of 70 % of the links", "% longer", tuple(series[model])) for model in MODELS)),
    )  # fmt: skip


def _linked(
    data: Published, model: str, parts: int, factor: float, splitnn: bool, aggregator: Aggregator = SENDS,
    owner_bytes: float | None = None,
) -> float:  # fmt: skip
    """Seconds of an epoch, aggregation included, with 70 % of the links this much slower."""
    known, cuts = data.profile(model), CUTS[model][parts]
    chain, transfers = known.chain(cuts), known.transfers(cuts, owner_bytes or OWNER_BYTES[model])
    owners = known.owners(COUNT, cuts)
    slow = round(SLOW_SHARE * COUNT)
    link = owners.uplink
    assert isinstance(link, NodeLink)
    links = (link,) * (COUNT - slow) + (NodeLink(link.bytes_per_s / factor),) * slow
    owners = replace(owners, uplink=links)
    if splitnn:
        return splitnn_time(chain, owners, replace(transfers, part_bytes=()))
    return simulate(chain, owners, transfers).epoch_s + paper_time(chain, owners, transfers, aggregator).aggregate_s


def _rate(data: Published, model: str) -> float:
    """Mbit/s at which SplitNN with 8 times slower links grows as the paper says: compute w, transfers c at that rate.

    0.7 * 7 * c / (w + c) is the growth; c falls with the rate.
    """
    times = [_linked(data, model, 3, factor, True) for factor in (1, 2)]
    transfers = (times[1] - times[0]) / SLOW_SHARE
    compute = times[0] - transfers
    share = CLAIMS[model] / (SLOW_SHARE * (FACTORS[-1] - 1))
    return 8 * transfers / (compute * share / (1 - share)) if math.isfinite(compute) else math.nan
