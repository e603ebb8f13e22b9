"""How long an epoch takes, in closed form: the paper's model, the true pace of a pipe, SplitNN and FedAvg.

All seconds are for one batch unless said otherwise, all rates are bytes per second. Parts are the paper's M_1 to M_P:
the owner holds the first and the last, N = P - 2 compute nodes hold the others, in `Chain`. A link's latency, which
the papers do not have, counts as time of a transfer. Sources: MP-SL (2402.00208) and "Estimating the Training Time in
Single- and Multi-Hop Split Federated Learning" (EdgeSys 2025), eqs. (1)-(5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.solution import Solution

__all__ = [
    "Aggregator", "Chain", "Owner", "Owners", "Pace", "PaperTime", "PartTime", "Transfers", "aggregation_time",
    "at_least_zero", "check_fit", "check_link", "check_part", "fedavg_time", "pace", "paper_time", "splitnn_time",
    "transfer_s",
]  # fmt: skip

MOST_MICRO_BATCHES = 65_535


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


class PaperTime(Struct, frozen=True):
    """Every term of eqs. (1)-(5), in seconds; `batches` is r * B * K, or r * sum B_k."""

    start_s: float
    empty_s: float
    forward_s: float
    backward_s: float
    full_s: float
    batches: int
    end_s: float
    all_batches_s: float
    aggregate_s: float
    total_s: float


def paper_time(chain: Chain, owners: Owners, transfers: Transfers, aggregator: Aggregator | None = None) -> PaperTime:
    """Gives the paper's estimate of one global epoch, term by term.

    It holds only where the pipe is full, and its pace T_full is right only where one node has both the longest forward
    and the longest backward; see `pace`. The owner's last part and its two transfers do not appear in it.

    Source: MP-SL eqs. (1) L_fwd, (2) L_back, (3) T_full, (4) T_batch^all, (5) T_tot; for one node eq. (4) is EdgeSys's
    T_start + r*B*K*(f_2 + b_2) + T_end.

    Raises:
        JobError: Chain and transfers do not fit each other.
    """
    check_fit(chain, transfers)
    each = owners.each()
    start = _mean([o.first.forward_s + transfer_s(transfers.forward_bytes[0], o.uplink) for o in each])
    end = _mean([o.first.back_s + transfer_s(transfers.backward_bytes[0], o.downlink) for o in each])
    empty = math.fsum(part.all_s for part in chain.parts)
    forward = max(part.forward_s for part in chain.parts)
    backward = max(part.back_s for part in chain.parts)
    batches = owners.local_epochs * sum(o.batches for o in each)
    everything = start + empty + (batches - 1) * (forward + backward) + end
    shared = aggregation_time(owners, transfers.owner_bytes, aggregator)
    return PaperTime(
        start, empty, forward, backward, forward + backward, batches, end, everything, shared, everything + shared
    )


def aggregation_time(owners: Owners, owner_bytes: float, aggregator: Aggregator | None = None) -> float:
    """Gives T_aggr: the mean upload, the averaging, and K downloads one after the other.

    The second sum has no 1/K in either paper. Source: MP-SL and EdgeSys eq. (5).
    """
    at_least_zero("bytes to aggregate", owner_bytes)
    if not owner_bytes:
        return 0.0 if aggregator is None else aggregator.processing_s
    aggregator = aggregator or Aggregator()
    each = owners.each()
    up = _mean([transfer_s(owner_bytes, o.uplink) for o in each])
    down = math.fsum(transfer_s(owner_bytes, aggregator.sends_over or o.downlink) for o in each)
    return up + aggregator.processing_s + down


class Pace(Struct, frozen=True):
    """What bounds an epoch's batches.

    Attributes:
        pace_s: beta, the least seconds between two batches of a full pipe.
        bottleneck: What sets it: "node i", or "link i" from node i to i + 1.
        round_trip_s: RTT of each owner: its batch alone in the pipe, shape (K,).
        owners_to_fill: K_min = RTT / beta, with the harmonic mean of unequal round trips.
        full: Whether the K owners can fill the pipe, K >= K_min.
        micro_batches: Pieces per batch with which they can: m, or else the least number; None where none is enough.
        bound_s: No epoch is shorter: max(r*B*K*beta, r*B*RTT).
    """

    pace_s: float
    bottleneck: str
    round_trip_s: tuple[float, ...]
    owners_to_fill: float
    full: bool
    micro_batches: int | None
    bound_s: float


def pace(chain: Chain, owners: Owners, transfers: Transfers, micro_batches: int = 1) -> Pace:
    """Gives the true pace of the pipe with one batch in flight per owner.

    A node does both directions of all owners' batches, so beta = max_i (f_i + b_i), not MP-SL's eq. (3). Updates count
    for beta; in the round trip only the first part's does, the others run while the gradient is on its way.

    With m micro-batches a batch alone takes T_m = L + R/m + (m - 1)/m * gamma, where L are the latencies, R the rest of
    the round trip and gamma the slowest stage on its way, the owner's processor and links included; the pipe is full
    when sum_k 1/T_m,k >= 1/beta. These conditions are needed; near them, batches that bunch up in a queue still cost
    some time, which `simulate` shows. Source: 2505.04368's T_f + (m - 1) * T_i, for K owners.

    Raises:
        JobError: Chain and transfers do not fit each other.
    """
    check_fit(chain, transfers)
    stages = {f"node {number}": part.all_s for number, part in enumerate(chain.parts)}
    for number, link in enumerate(chain.links):
        most = max(transfers.forward_bytes[number + 1], transfers.backward_bytes[number + 1])
        stages[f"link {number}"] = most / link.bytes_per_s
    bottleneck = max(stages, key=lambda name: stages[name])
    beta, each = stages[bottleneck], owners.each()
    trips = [_round_trip(chain, owner, transfers) for owner in each]
    slowest = [(latency, work, max(own, beta)) for latency, work, own in trips]
    round_trips = tuple(latency + _in_pieces(work, own, micro_batches) for latency, work, own in slowest)
    flow = math.fsum(1 / trip for trip in round_trips) if all(round_trips) else math.inf
    full = flow * beta >= 1 - 1e-12
    work = owners.local_epochs * sum(o.batches for o in each) * beta
    alone = max(owners.local_epochs * o.batches * trip for o, trip in zip(each, round_trips, strict=True))
    to_fill = owners.count / (flow * beta) if beta and flow else math.inf
    pieces = micro_batches if full else _pieces(slowest, beta)
    return Pace(beta, bottleneck, round_trips, to_fill, full, pieces, max(work, alone))


def _round_trip(chain: Chain, owner: Owner, transfers: Transfers) -> tuple[float, float, float]:
    """Latencies, everything else, and the owner's own slowest stage, of one batch with the pipe to itself."""
    forward, backward = transfers.forward_bytes, transfers.backward_bytes
    up = (forward[0] + backward[-1]) / owner.uplink.bytes_per_s
    down = (forward[-1] + backward[0]) / owner.downlink.bytes_per_s
    latency = 2 * (owner.uplink.latency_s + owner.downlink.latency_s + math.fsum(x.latency_s for x in chain.links))
    between = [(forward[n + 1] + backward[n + 1]) / link.bytes_per_s for n, link in enumerate(chain.links)]
    nodes = math.fsum(part.forward_s + part.backward_s for part in chain.parts)
    own = owner.first.all_s + owner.last.forward_s + owner.last.backward_s
    return latency, math.fsum([own, up, nodes, down, *between]), max(own, up, down)


def _in_pieces(work: float, own: float, m: int) -> float:
    return (work + (m - 1) * own) / m


def _pieces(trips: Sequence[tuple[float, float, float]], beta: float) -> int | None:
    """The least m with sum_k 1/T_m,k >= 1/beta; T falls with m, so halving finds it."""

    def enough(m: int) -> bool:
        return math.fsum(beta / (latency + _in_pieces(work, own, m)) for latency, work, own in trips) >= 1 - 1e-12

    low, high = 1, MOST_MICRO_BATCHES
    if not beta or not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def splitnn_time(chain: Chain, owners: Owners, transfers: Transfers) -> float:
    """Gives SplitNN's epoch: owners one after the other, B batches each without local epochs, M_1 and M_P passed on.

    The paper's 2*B*(commT^fwd + commT^back) stands for the four transfers of a batch, which may differ here. Source:
    MP-SL section 5, for P = 3; longer chains add their parts.

    Raises:
        JobError: Chain and transfers do not fit each other.
    """
    check_fit(chain, transfers)
    updates = math.fsum(part.update_s for part in chain.parts)
    total = 0.0
    for owner in owners.each():
        latency, work, _ = _round_trip(chain, owner, transfers)
        total += owner.batches * (latency + work + updates + owner.last.update_s)
        total += transfer_s(transfers.owner_bytes, owner.uplink) if transfers.owner_bytes else 0.0
    return total


def fedavg_time(
    model: PartTime | tuple[PartTime, ...], owners: Owners, model_bytes: float, aggregator: Aggregator | None = None
) -> float:
    """Gives an epoch of FedAvg with the whole model on the owners: the slowest trains, then T_aggr for all of it.

    Args:
        model: Seconds of the whole model on the owners, one value or one each; takes the place of first and last part.
        owners: Links, batches and local epochs.
        model_bytes: State of the whole model.
        aggregator: As in eq. (5).

    Raises:
        JobError: `model` is ill-shaped or a number is out of range.
    """
    rows = Owners(owners.count, model, PartTime(0, 0), owners.uplink, owners.downlink, owners.batches).each()
    train = max(owners.local_epochs * row.batches * row.first.all_s for row in rows)
    return train + aggregation_time(owners, model_bytes, aggregator)


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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


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
