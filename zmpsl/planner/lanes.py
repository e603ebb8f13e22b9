"""How long an epoch takes with several chains side by side: horizontal scaling, and its mix with multihop.

Source: MP-SL (2402.00208) section 5, whose eq. (4) holds per chain.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.cost import aggregation_time, paper_time
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.terms import Aggregator, Chain, Owners, Transfers, at_least_zero, check_fit, check_link, transfer_s

__all__ = ["Lane", "ParallelTime", "allocate", "horizontal_time", "hybrid_time"]


class Lane(Struct, frozen=True):
    """One of several chains that each serve some of the owners: speed and memory of its nodes, together.

    `memory_bytes` has one budget per node of the chain (None is no limit); empty is no limit at all.
    """

    chain: Chain
    memory_bytes: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if self.memory_bytes and len(self.memory_bytes) != len(self.chain.parts):
            have = len(self.memory_bytes)
            raise JobError(f"a lane of {len(self.chain.parts)} nodes has {have} values of memory_bytes")
        for number, budget in enumerate(self.memory_bytes):
            if budget is not None:
                at_least_zero(f"lane: memory_bytes of node {number}", budget)

    def most_owners(self, replica_bytes: Sequence[float]) -> float:
        """Gives the number of owners whose replicas fit on every node, infinite without a limit."""
        pairs = zip(self.memory_bytes, replica_bytes, strict=True) if self.memory_bytes else ()
        return min((b // need for b, need in pairs if b is not None and need > 0), default=math.inf)


class ParallelTime(Struct, frozen=True):
    """Owners per lane, seconds per lane (0 without owners), both aggregations, and the whole, all in seconds."""

    owners: tuple[int, ...]
    lane_s: tuple[float, ...]
    aggregate_s: float
    across_s: float
    total_s: float


def allocate(lanes: Sequence[Lane], owners: int, replica_bytes: Sequence[float]) -> tuple[int, ...]:
    """Gives each lane its number of owners: in proportion to its speed, as far as its own memory allows.

    Owner after owner goes to the lane that is done with it first, which makes max_i K_i * T_full,i as small as it can
    be. A lane's memory stays with its speed: sorting one without the other makes horizontal scaling look slow.

    Raises:
        JobError: The lanes hold fewer owners than there are.
    """
    room = [lane.most_owners(replica_bytes) for lane in lanes]
    if sum(room) < owners:
        raise JobError(
            f"the replicas of {owners} owners do not fit: the {len(lanes)} lanes have memory for {sum(room):.0f}"
        )
    cost = [max(p.forward_s for p in one.chain.parts) + max(p.back_s for p in one.chain.parts) for one in lanes]
    heap = [(one, number) for number, one in enumerate(cost) if room[number] >= 1]
    heapq.heapify(heap)
    counts = [0] * len(lanes)
    for _ in range(owners):
        _, number = heapq.heappop(heap)
        counts[number] += 1
        if counts[number] < room[number]:
            heapq.heappush(heap, ((counts[number] + 1) * cost[number], number))
    return tuple(counts)


def hybrid_time(
    lanes: Sequence[Lane],
    owners: Owners,
    transfers: Transfers,
    replica_bytes: Sequence[float],
    aggregator: Aggregator | None = None,
    across: NodeLink | None = None,
) -> ParallelTime:
    """Gives the epoch of several equal-cut chains side by side, each serving some owners: multihop times horizontal.

    Eq. (4) per lane with its K_i, the slowest counts. Then the parts of the lanes in use are averaged, while
    the owners' are: every lane sends its part p at once, the results leave one after the other. The paper has no
    formula for this; it is ours.

    Args:
        lanes: At least one, all with as many nodes as `transfers` has parts between the owner's.
        owners: Dealt out in their order.
        transfers: The same for all lanes.
        replica_bytes: What one owner's replica of part p needs on its node, shape (N,).
        aggregator: For the owners' parts.
        across: Link of the lanes to where their parts are averaged; None takes no time.

    Raises:
        JobError: The replicas do not fit, or lanes, transfers and replicas are of different lengths.
    """
    _check(lanes, transfers, replica_bytes)
    counts, at, seconds = allocate(lanes, owners.count, replica_bytes), 0, []
    for lane, count in zip(lanes, counts, strict=True):
        group = _some(owners, at, at + count) if count else None
        seconds.append(paper_time(lane.chain, group, transfers).all_batches_s if group else 0.0)
        at += count
    between = _across_s(sum(count > 0 for count in counts), transfers, across)
    shared = aggregation_time(owners, transfers.owner_bytes, aggregator)
    return ParallelTime(counts, tuple(seconds), shared, between, max(seconds) + max(shared, between))


def horizontal_time(
    nodes: Sequence[Lane],
    owners: Owners,
    transfers: Transfers,
    replica_bytes: float,
    aggregator: Aggregator | None = None,
    across: NodeLink | None = None,
) -> ParallelTime:
    """Gives the epoch of horizontally scaled parallel SL: every node holds all of M_2 and serves some owners.

    Arguments and errors as for `hybrid_time`, with lanes of one node. Source: MP-SL section 5.
    """
    return hybrid_time(nodes, owners, transfers, (replica_bytes,), aggregator, across)


def _check(lanes: Sequence[Lane], transfers: Transfers, replica_bytes: Sequence[float]) -> None:
    if not lanes:
        raise JobError("no lane is given; at least one chain of compute nodes must serve the owners")
    for lane in lanes:
        check_fit(lane.chain, transfers)
    if len(replica_bytes) != len(lanes[0].chain.parts):
        raise JobError(f"replica_bytes has {len(replica_bytes)} values for {len(lanes[0].chain.parts)} parts on nodes")
    for number, need in enumerate(replica_bytes):
        at_least_zero(f"replica_bytes[{number}]", need)


def _across_s(used: int, transfers: Transfers, across: NodeLink | None) -> float:
    """Seconds to average the nodes' parts of the lanes in use."""
    if used < 2 or across is None:
        return 0.0
    check_link("across", across)
    each = [transfer_s(size, across) for size in transfers.part_bytes[1:-1]]
    return max(each, default=0.0) + used * math.fsum(each)


def _some(owners: Owners, start: int, stop: int) -> Owners:
    """The owners [start, stop) as a group of their own."""
    group = owners.each()[start:stop]
    first, last = tuple(one.first for one in group), tuple(one.last for one in group)
    up, down = tuple(one.uplink for one in group), tuple(one.downlink for one in group)
    return Owners(len(group), first, last, up, down, tuple(one.batches for one in group), owners.local_epochs)
