"""What the time of an epoch is computed from: seconds of parts, the chain, owners, bytes; each checked.

All seconds are for one batch unless said otherwise, all rates are bytes per second. Parts are the paper's M_1 to M_P:
the owner holds the first and the last, N = P - 2 compute nodes hold the others, in `Chain`. A link's latency, which
the papers do not have, counts as time of a transfer. Sources: the symbols of MP-SL (2402.00208) and of "Estimating the
Training Time in Single- and Multi-Hop Split Federated Learning" (EdgeSys 2025).
"""

from __future__ import annotations

import math

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.solution import Solution

__all__ = [
    "Aggregator", "Chain", "Owner", "Owners", "PartTime", "Transfers", "at_least_zero", "check_fit", "check_link",
    "check_part", "transfer_s",
]  # fmt: skip


class PartTime(Struct, frozen=True):
    """Seconds of one part on its device: forward, backward and optimiser step."""

    forward_s: float
    backward_s: float
    update_s: float = 0.0

    @property
    def back_s(self) -> float:
        """The paper's procT^back: backward with the optimiser step."""
        return self.backward_s + self.update_s

    @property
    def all_s(self) -> float:
        """Seconds the device is busy for one batch."""
        return self.forward_s + self.back_s


class Chain(Struct, frozen=True):
    """The compute nodes' parts M_2 to M_{P-1} on their nodes, in path order, and the N - 1 links between the nodes.

    Without `links` transfers between nodes take no time, as in the papers. A link is full duplex and serves all owners.
    """

    parts: tuple[PartTime, ...]
    links: tuple[NodeLink, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise JobError("the chain is empty: give the seconds of at least one compute node")
        if self.links and len(self.links) != len(self.parts) - 1:
            expected = len(self.parts) - 1
            raise JobError(f"{expected + 1} compute nodes have {expected} links between them, not {len(self.links)}")
        for number, part in enumerate(self.parts):
            check_part(f"node {number}", part)
        for number, link in enumerate(self.links):
            check_link(f"the link from node {number} to {number + 1}", link)

    @classmethod
    def from_solution(cls, solution: Solution, links: tuple[NodeLink, ...] = ()) -> Chain:
        """Gives the chain of a solved split; the solution's backward seconds hold the updates already."""
        return cls(tuple(PartTime(piece.forward_s, piece.backward_s) for piece in solution.pieces), links)


class Owner(Struct, frozen=True):
    """One data owner; `batches` is B, per local epoch."""

    first: PartTime
    last: PartTime
    uplink: NodeLink
    downlink: NodeLink
    batches: int


class Owners(Struct, frozen=True):
    """The K data owners. A single value holds for all of them, a tuple of K gives one for each.

    Attributes:
        count: K.
        first: Seconds of M_1 on the owner.
        last: Seconds of M_P on the owner, loss included.
        uplink: From the owner to any node or the aggregator.
        downlink: Back; None is as the uplink. The two do not disturb each other.
        batches: B, batches of one local epoch.
        local_epochs: r.
    """

    count: int
    first: PartTime | tuple[PartTime, ...]
    last: PartTime | tuple[PartTime, ...]
    uplink: NodeLink | tuple[NodeLink, ...]
    downlink: NodeLink | tuple[NodeLink, ...] | None = None
    batches: int | tuple[int, ...] = 1
    local_epochs: int = 1

    def __post_init__(self) -> None:
        if not self.count >= 1:
            raise JobError(f"the number of owners is {self.count}; it must be at least 1")
        if not self.local_epochs >= 1:
            raise JobError(f"local_epochs is {self.local_epochs}; it must be at least 1")
        for field in ("first", "last", "uplink", "downlink", "batches"):
            value = getattr(self, field)
            many = isinstance(value, tuple)
            if many and len(value) != self.count:
                raise JobError(f"owners: {field} has {len(value)} values for {self.count} owners; give one or each")
            for number, one in enumerate(value if many else (value,)):
                _check_owner(f"owner {number}" if many else "owners", field, one)

    def each(self) -> tuple[Owner, ...]:
        """Gives every owner by itself, shape (K,)."""
        down = self.uplink if self.downlink is None else self.downlink
        columns = [self.first, self.last, self.uplink, down, self.batches]
        rows = zip(*(one if isinstance(one, tuple) else (one,) * self.count for one in columns), strict=True)
        return tuple(Owner(*row) for row in rows)


class Transfers(Struct, frozen=True):
    """Bytes that move, after the codec.

    Attributes:
        forward_bytes: Activations of one batch at each of the P - 1 cuts; cut p stands behind part p.
        backward_bytes: Gradients of one batch at each cut.
        part_bytes: State of each of the P parts, for aggregation; empty where it is not to be counted.
    """

    forward_bytes: tuple[float, ...]
    backward_bytes: tuple[float, ...]
    part_bytes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        cuts = len(self.forward_bytes)
        if cuts < 2 or len(self.backward_bytes) != cuts:
            raise JobError(
                f"transfers: forward_bytes has {cuts} cuts and backward_bytes {len(self.backward_bytes)}; both need the"
                " same number, at least 2: one before and one behind the compute nodes"
            )
        if self.part_bytes and len(self.part_bytes) != cuts + 1:
            raise JobError(f"transfers: part_bytes has {len(self.part_bytes)} parts, but {cuts} cuts make {cuts + 1}")
        for field in ("forward_bytes", "backward_bytes", "part_bytes"):
            for number, value in enumerate(getattr(self, field)):
                at_least_zero(f"transfers: {field}[{number}]", value)

    @property
    def owner_bytes(self) -> float:
        """Bytes of M_1 and M_P."""
        return self.part_bytes[0] + self.part_bytes[-1] if self.part_bytes else 0.0


class Aggregator(Struct, frozen=True):
    """Where M_1 and M_P are averaged.

    `sends_over` is the link that the K serial sends of the result take; None is each owner's downlink, as eq. (5) is
    printed. The authors' figures come out with the rate between nodes here instead.
    """

    processing_s: float = 0.0
    sends_over: NodeLink | None = None

    def __post_init__(self) -> None:
        at_least_zero("aggregator: processing_s", self.processing_s)
        if self.sends_over is not None:
            check_link("aggregator: sends_over", self.sends_over)


def transfer_s(size_bytes: float, link: NodeLink) -> float:
    """Gives the seconds of one transfer: commT = data / bw, after the link's latency."""
    return link.latency_s + size_bytes / link.bytes_per_s


def check_fit(chain: Chain, transfers: Transfers) -> None:
    """Checks that there is one cut more than compute nodes.

    Raises:
        JobError: There is not; the message has both numbers.
    """
    nodes, cuts = len(chain.parts), len(transfers.forward_bytes)
    if cuts != nodes + 1:
        raise JobError(f"{nodes} compute nodes have {nodes + 1} cuts around them, but the transfers give {cuts}")


def at_least_zero(what: str, value: float) -> None:
    """Raises a JobError that names `what` unless the number is finite and not negative."""
    if not (math.isfinite(value) and value >= 0):
        raise JobError(f"{what} is {value}; it must be a finite number of at least 0")


def check_part(where: str, part: PartTime) -> None:
    """Raises a JobError unless all seconds are finite and not negative."""
    for field in ("forward_s", "backward_s", "update_s"):
        at_least_zero(f"{where}: {field}", getattr(part, field))


def check_link(where: str, link: NodeLink) -> None:
    """Raises a JobError unless the rate is above 0 and the latency not negative, both finite."""
    if not (math.isfinite(link.bytes_per_s) and link.bytes_per_s > 0):
        raise JobError(f"{where}: bytes_per_s is {link.bytes_per_s}; it must be a finite number above 0")
    at_least_zero(f"{where}: latency_s", link.latency_s)


def _check_owner(where: str, field: str, value: PartTime | NodeLink | int | None) -> None:
    if isinstance(value, PartTime):
        check_part(f"{where}: {field} part", value)
    elif isinstance(value, NodeLink):
        check_link(f"{where}: {field}", value)
    elif value is not None and not value >= 1:
        raise JobError(f"{where}: {field} is {value}; it must be at least 1")
