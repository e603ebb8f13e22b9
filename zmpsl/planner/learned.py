"""What rounds told of links and codecs: figures that predictions and cuts use from then on.

A link between two hosts is measured by the kernel of its sender while the run uses it; what a codec makes of tensors,
and what it takes, is counted at both ends. Links within a host are left as profiles have them: there the kernel tells
how busy the receiver was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import astuple

from zmpsl.plan import node_name
from zmpsl.planner.problem import NodeLink
from zmpsl.stats import LinkStats, Stats

__all__ = ["Learned", "Packing", "learn"]

ENOUGH_BYTES = 1 << 16
SAME = 0.1  # figures differ by this share from round to round for no reason
# Beyond is nothing that can be: a codec keeps what it cannot make smaller.
MOST_RATIO = 1.1
MOST_S_PER_BYTE = 1e-3
LEAST_RATE = 1.0
MOST_LATENCY_S = 60.0


Figures = TypeVar("Figures", NodeLink, "Packing")


class Packing(Struct, frozen=True):
    """What a codec does on one link: bytes sent per byte of a tensor, and seconds of both ends per such byte."""

    ratio: float = 1.0
    encode_s_per_byte: float = 0.0
    decode_s_per_byte: float = 0.0


class Learned(Struct, frozen=True):
    """What is known of the links of a chain.

    Attributes:
        nodes: The link of a compute node to the node before it, by host.
        owners: The link of an owner to the nodes, by place.
        packing: By link and direction, as `owner>node-0`.
    """

    nodes: dict[str, NodeLink] = {}
    owners: dict[str, NodeLink] = {}
    packing: dict[str, Packing] = {}

    def moved(self) -> Learned:
        """Gives what holds wherever the model is cut: links, but not what the codecs made of other tensors."""
        return Learned(self.nodes, self.owners)


def learn(before: Learned, stats: Mapping[str, Stats], hosts: Mapping[str, str], nodes: int) -> Learned:
    """Takes in what members told at the end of a round; nobody vouches for it, so figures that cannot be are left out.

    Args:
        before: What was known.
        stats: By place.
        hosts: Host of each owner and compute node, by place.
        nodes: Number of compute nodes.
    """
    chain = [node_name(hop) for hop in range(nodes)]
    if not set(chain) <= set(hosts):
        return before
    between, uplinks, packing = dict(before.nodes), dict(before.owners), dict(before.packing)
    for back, node in pairwise(chain):
        found = _known(stats, (back, f"{back}>{node}"), (node, f"{node}>{back}"))
        if found is not None and hosts[back] != hosts[node]:
            _renew(between, hosts[node], found)
    ends = {hosts[chain[0]], hosts[chain[-1]]}
    for place in hosts:
        if place.startswith("owner") and hosts[place] not in ends:
            found = _known(stats, (place, f"owner>{chain[0]}"), (place, f"owner>{chain[-1]}"))
            if found is not None:
                _renew(uplinks, place, found)
    for name, each in _packings(stats, ["owner", *chain, "owner"]).items():
        _renew(packing, name, each)
    return Learned(between, uplinks, packing)


def _renew(known: dict[str, Figures], name: str, news: Figures) -> None:
    """Takes figures that are new or differ by more than they always do."""
    pairs = zip(astuple(known[name]), astuple(news), strict=True) if name in known else ()
    if name not in known or any(abs(new - old) > SAME * old for old, new in pairs):
        known[name] = news


def _known(stats: Mapping[str, Stats], *ends: tuple[str, str]) -> NodeLink | None:
    """Gives the slower of both directions; None where neither was measured."""
    found = [stats[place].links[name] for place, name in ends if place in stats and name in stats[place].links]
    rates = [one.bytes_per_s for one in found if LEAST_RATE <= one.bytes_per_s < math.inf]
    latencies = [one.latency_s for one in found if 0 <= one.latency_s <= MOST_LATENCY_S]
    return NodeLink(min(rates), max(latencies, default=0.0)) if rates else None


def _packings(stats: Mapping[str, Stats], places: list[str]) -> dict[str, Packing]:
    """Adds up both ends of every link of the chain."""
    found = {}
    for name in {f"{a}>{b}" for one, two in pairwise(places) for a, b in ((one, two), (two, one))}:
        total = LinkStats()
        for place in sorted(stats):
            total = total.plus(stats[place].links.get(name, LinkStats()))
        if total.raw_bytes < ENOUGH_BYTES or set(total.codecs) <= {"none"}:
            continue
        ratio, *seconds = (one / total.raw_bytes for one in (total.packed_bytes, total.encode_s, total.decode_s))
        if 0 < ratio <= MOST_RATIO and all(0 <= one <= MOST_S_PER_BYTE for one in seconds):
            found[name] = Packing(ratio, *seconds)
    return found
