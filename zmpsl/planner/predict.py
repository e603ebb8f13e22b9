"""What a split is expected to do: seconds per round, and how busy every node will be.

A round is played (`simulate`), or, where SimPy is missing, bounded in closed form. Roles that share a machine cannot
be faster than its cores: their processor seconds divided by the cores are a second bound.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence

from msgspec import Struct

from zmpsl.planner.cost import pace
from zmpsl.planner.handling import handled, message_work_s
from zmpsl.planner.measured import Measured, chain_of, own_s, owners_of, transfers_of
from zmpsl.planner.simulate import simulate
from zmpsl.planner.terms import Chain, Owners, Transfers, transfer_s

__all__ = ["Prediction", "owners_to_fill", "predict"]

# Batches per owner that are played; a longer round goes on at the pace it has reached by then.
MOST_PLAYED = 60
MOST_EVENTS = 60_000


class Prediction(Struct, frozen=True):
    """A split's expected round.

    Attributes:
        round_s: Seconds of training, without averaging.
        average_s: Seconds until the last node and the aggregator have averaged.
        exchange_s: Seconds of an owner's parts on their way to the aggregator and back.
        store_s: Seconds until all parts, and the record of the round, are on disk.
        busy_s: Seconds each node works, by name.
        pace_s: Least seconds between two batches of a full pipe.
        bottleneck: What sets it.
        round_trip_s: One batch alone in the pipe.
        owners_to_fill: Owners needed to fill the pipe, K_min.
        micro_batches_to_fill: Micro-batches with which the job's owners fill it: the job's, or else the least number;
            None where none is enough.
    """

    round_s: float
    average_s: float
    busy_s: dict[str, float]
    pace_s: float
    bottleneck: str
    round_trip_s: float
    owners_to_fill: float
    micro_batches_to_fill: int | None
    exchange_s: float = 0.0
    store_s: float = 0.0

    @property
    def whole_s(self) -> float:
        """Seconds of a round from its beginning until it is committed."""
        return self.round_s + self.exchange_s + self.average_s + self.store_s

    @property
    def busy(self) -> dict[str, float]:
        """Share of the round that each node works, 0 to 1."""
        return {name: min(1.0, busy / self.round_s) if self.round_s else 0.0 for name, busy in self.busy_s.items()}


def predict(
    measured: Measured,
    bounds: Sequence[int],
    order: Sequence[str],
    batches: tuple[int, ...],
    hosts: Mapping[str, Sequence[str]] | None = None,
    in_flight: int | None = None,
) -> Prediction:
    """Predicts a round.

    Args:
        measured: What was measured.
        bounds: Of all P parts, P + 1 block numbers.
        order: Names of the nodes, in hop order.
        batches: Batches of each owner in one round, over all local epochs.
        hosts: Which roles share a machine: lists of node names, and of "owner" as often as owners are there.
        in_flight: Most owners that train at a time; None for all.

    Raises:
        JobError: The split does not fit what was measured.
    """
    flow = pace(*_flow(measured, bounds, order, batches), measured.micro_batches)
    chain, transfers, total = chain_of(measured, bounds, order), transfers_of(measured, bounds), sum(batches)
    seconds = _play_s(measured, bounds, order, batches, in_flight)
    busy = {name: total * part.all_s for name, part in zip(order, chain.parts, strict=True)}
    work = _processor_s(measured, bounds, order, batches)
    for names in (hosts or {}).values():
        cores = min(p.cores for p in (measured.owner, *(node.profile for node in measured.nodes)))
        seconds = max(seconds, math.fsum(work[name] for name in names) / cores)
    return Prediction(
        seconds,
        _average_s(measured, transfers.part_bytes, order, bool(hosts)),
        busy,
        flow.pace_s,
        _named(flow.bottleneck, order),
        max(flow.round_trip_s),
        flow.owners_to_fill,
        flow.micro_batches,
        max(
            transfer_s(transfers.owner_bytes, one.uplink) + transfer_s(transfers.owner_bytes, one.downlink)
            for one in owners_of(measured, batches).each()
        ),
        _store_s(measured, bounds, order, bool(hosts)),
    )


def owners_to_fill(measured: Measured, bounds: Sequence[int], order: Sequence[str]) -> float:
    """Gives K_min of a split, the owners that fill the pipe with whole batches, by Little's law.

    Args:
        measured: What was measured.
        bounds: Of all P parts, P + 1 block numbers.
        order: Names of the nodes, in hop order.
    """
    return pace(*_flow(measured, bounds, order, 1)).owners_to_fill


def batch_s(measured: Measured, bounds: Sequence[int], order: Sequence[str], in_flight: int) -> float:
    """Gives the seconds from one batch to the next with so many owners in flight: the pace, while they fill the pipe.

    Args:
        measured: What was measured.
        bounds: Of all P parts, P + 1 block numbers.
        order: Names of the nodes, in hop order.
        in_flight: Owners that train at a time.
    """
    flow = pace(*_flow(measured, bounds, order, 1), measured.micro_batches)
    return flow.pace_s * max(1.0, flow.owners_to_fill / in_flight)


def _flow(
    measured: Measured, bounds: Sequence[int], order: Sequence[str], batches: int | tuple[int, ...]
) -> tuple[Chain, Owners, Transfers]:
    """Gives chain and owners with all that keeps them from the next batch, messages too."""
    transfers = transfers_of(measured, bounds)
    chain, owners = chain_of(measured, bounds, order), owners_of(measured, batches)
    return *handled(measured, chain, owners, transfers, order), transfers


def _named(bottleneck: str, order: Sequence[str]) -> str:
    kind, _, hop = bottleneck.partition(" ")
    return order[int(hop)] if kind == "node" else f"link {order[int(hop)]}>{order[int(hop) + 1]}"


def _average_s(measured: Measured, part_bytes: Sequence[float], order: Sequence[str], shared: bool) -> float:
    """Every node averages its own replicas, the aggregator the owners' ends: at once, or on the cores they share."""
    nodes, count = {node.name: node.profile for node in measured.nodes}, measured.job.owners
    ends = (measured.owner, part_bytes[0] + part_bytes[-1])
    each = [
        size * (count * profile.add_s_per_byte + profile.mean_s_per_byte)
        for profile, size in [*((nodes[name], size) for name, size in zip(order, part_bytes[1:-1], strict=True)), ends]
    ]
    return max(max(each), math.fsum(each) / measured.owner.cores) if shared else max(each)


def _store_s(measured: Measured, bounds: Sequence[int], order: Sequence[str], shared: bool) -> float:
    """Every node stores its part and the aggregator two, at once or on one disk; then the manager index and record."""
    optimizer = measured.job.optimizer.state == "average"
    nodes = {node.name: node.profile for node in measured.nodes}
    roles = [(nodes[name], [hop]) for hop, name in enumerate(order, 1)]
    roles.append((measured.owner, [0, len(bounds) - 2]))  # where the aggregator is, nobody measures
    fixed, each = [], []
    for profile, parts in roles:
        blocks = [measured.block(index) for part in parts for index in range(bounds[part], bounds[part + 1])]
        size = sum(block.state_bytes + optimizer * block.optimizer_bytes for block in blocks)
        fixed.append(len(parts) * (1 + optimizer) * profile.store_s)
        each.append(size * profile.store_s_per_byte)
    parts_s = max(fixed) + math.fsum(each) if shared else max(map(sum, zip(fixed, each, strict=True)))
    return parts_s + 2 * measured.owner.store_s


def _play_s(
    measured: Measured, bounds: Sequence[int], order: Sequence[str], batches: tuple[int, ...], in_flight: int | None
) -> float:
    if importlib.util.find_spec("simpy") is None:
        flow = pace(*_flow(measured, bounds, order, batches), measured.micro_batches)
        alone = math.fsum(one * trip for one, trip in zip(batches, flow.round_trip_s, strict=True))
        return max(flow.bound_s, alone / (in_flight or len(batches)))
    m = measured.micro_batches

    def play(each: tuple[int, ...]) -> float:
        flow = _flow(measured, bounds, order, each)
        return simulate(*flow, micro_batches=m, backward_first=True, in_flight=in_flight).epoch_s

    events = measured.job.owners * m * 4 * (len(order) + 2)
    most = max(2, min(MOST_PLAYED, MOST_EVENTS // max(1, events)))
    if max(batches) <= most:
        return play(batches)
    # Two shorter rounds tell how much each further batch takes.
    share = [min(1.0, most / max(batches)), min(1.0, most / max(batches)) / 2]
    rounds = [tuple(max(1, round(part * one)) for one in batches) for part in share]
    long, short = (play(each) for each in rounds)
    more = sum(rounds[0]) - sum(rounds[1])
    return long + (sum(batches) - sum(rounds[0])) * (long - short) / more if more else long


def _processor_s(
    measured: Measured, bounds: Sequence[int], order: Sequence[str], batches: tuple[int, ...]
) -> dict[str, float]:
    """Seconds of a processor that each node, and an owner on average, need in a round; messages are copied too."""
    chain, transfers = chain_of(measured, bounds, order), transfers_of(measured, bounds)
    nodes, total = {node.name: node.profile for node in measured.nodes}, sum(batches)
    work, messages, emulate = {}, message_work_s(measured, transfers, order), measured.job.emulate
    for hop, name in enumerate(order):
        kind = emulate.node(hop)
        here = kind is None or kind.compute == "real"  # else the profile is of another processor
        compute = chain.parts[hop].all_s / nodes[name].slow_down if here else 0.0
        work[name] = total * (compute + messages[name])
    compute = own_s(measured) if all(kind.compute == "real" for kind in emulate.owners) else 0.0
    work["owner"] = total / measured.job.owners * (compute + messages["owner"])
    return work
