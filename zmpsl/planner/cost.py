"""How long an epoch takes, in closed form: the paper's model, the true pace of a pipe, SplitNN and FedAvg.

Units and names of the parts are those of `terms.py`. Sources: MP-SL (2402.00208) and "Estimating the Training Time in
Single- and Multi-Hop Split Federated Learning" (EdgeSys 2025), eqs. (1)-(5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from zmpsl.planner.terms import (
    Aggregator,
    Chain,
    Owner,
    Owners,
    PartTime,
    Transfers,
    at_least_zero,
    check_fit,
    transfer_s,
)

__all__ = ["Pace", "PaperTime", "aggregation_time", "fedavg_time", "pace", "paper_time", "splitnn_time"]

MOST_MICRO_BATCHES = 65_535


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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
