"""What messages cost the roles that send and receive them: seconds in which they do not compute, and of processors.

    receive (its share of the bytes)  ->  forward or backward  ->  send        for every micro-batch, at both cuts

Measured on each device through sockets to itself (`zmpsl.message_trial`); where that was not, messages cost the way
alone, as in `LOOPBACK`. Imitated slowness of a device does not count here, for it does not slow down messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from zmpsl.planner.cost import Chain, Owners, PartTime, Transfers
from zmpsl.planner.measured import LOOPBACK, Measured
from zmpsl.profiles import MessageCost

__all__ = ["handled", "message_work_s"]

FREE = MessageCost()
GUESSED = MessageCost(processor_s=LOOPBACK.latency_s, processor_s_per_byte=1 / LOOPBACK.bytes_per_s)


def handled(
    measured: Measured, chain: Chain, owners: Owners, transfers: Transfers, order: Sequence[str]
) -> tuple[Chain, Owners]:
    """Adds what a batch's messages take to the seconds of nodes and owners, without a codec.

    Args:
        measured: What was measured.
        chain: Of the split, with the seconds of computing.
        owners: Likewise.
        transfers: Its bytes at every cut, of a whole batch.
        order: Names of the nodes, in hop order.
    """
    m, nodes = measured.micro_batches, {node.name: node.profile.messages or FREE for node in measured.nodes}
    cuts = transfers.forward_bytes
    parts = tuple(
        PartTime(
            part.forward_s + nodes[name].receiving_s(m, cuts[hop]) + nodes[name].sending_s(m, cuts[hop + 1]),
            part.backward_s + nodes[name].receiving_s(m, cuts[hop + 1]) + nodes[name].sending_s(m, cuts[hop]),
            part.update_s,
        )
        for hop, (name, part) in enumerate(zip(order, chain.parts, strict=True))
    )
    cost = measured.owner.messages or FREE
    first = cost.sending_s(m, cuts[0]), cost.receiving_s(m, cuts[0])
    last = cost.receiving_s(m, cuts[-1]), cost.sending_s(m, cuts[-1])
    each = owners.each()
    owners = msgspec.structs.replace(
        owners,
        first=tuple(_longer(owner.first, *first) for owner in each),
        last=tuple(_longer(owner.last, *last) for owner in each),
    )
    return msgspec.structs.replace(chain, parts=parts), owners


def message_work_s(measured: Measured, transfers: Transfers, order: Sequence[str]) -> dict[str, float]:
    """Gives the processor's seconds for a batch's messages, both ends of a message sharing it; by node, and "owner"."""
    m, nodes = measured.micro_batches, {node.name: node.profile.messages or GUESSED for node in measured.nodes}
    cuts = transfers.forward_bytes
    # Each role sends and receives as much at each of its two cuts: one end of two messages each is one whole each.
    work = {name: nodes[name].working_s(2 * m, cuts[hop] + cuts[hop + 1]) for hop, name in enumerate(order)}
    return {**work, "owner": (measured.owner.messages or GUESSED).working_s(2 * m, cuts[0] + cuts[-1])}


def _longer(part: PartTime, forward_s: float, backward_s: float) -> PartTime:
    return PartTime(part.forward_s + forward_s, part.backward_s + backward_s, part.update_s)
