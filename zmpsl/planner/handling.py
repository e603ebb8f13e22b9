"""What messages cost the roles that send and receive them: seconds in which they do not compute, and of processors.

    receive (its share of the bytes)  ->  forward or backward  ->  send        for every micro-batch, at both cuts

Measured on each device through sockets to itself (`zmpsl.trials.message`); where that was not, messages cost the way
alone, as in `LOOPBACK`. What a codec takes and spares counts once a round has told (`learned.py`). Imitated slowness of
a device does not count here, for it does not slow down messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from zmpsl.planner.learned import Packing
from zmpsl.planner.measured import LOOPBACK, Measured, packings_of
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers
from zmpsl.profiles import MessageCost

__all__ = ["handled", "message_work_s"]

FREE = MessageCost()
GUESSED = MessageCost(processor_s=LOOPBACK.latency_s, processor_s_per_byte=1 / LOOPBACK.bytes_per_s)


def handled(
    measured: Measured, chain: Chain, owners: Owners, transfers: Transfers, order: Sequence[str]
) -> tuple[Chain, Owners]:
    """Adds what a batch's messages take to the seconds of nodes and owners: copying, packing and unpacking.

    Args:
        measured: What was measured.
        chain: Of the split, with the seconds of computing.
        owners: Likewise.
        transfers: Its bytes at every cut, of a whole batch, as they are sent.
        order: Names of the nodes, in hop order.
    """
    m, nodes = measured.micro_batches, {node.name: node.profile.messages or FREE for node in measured.nodes}
    sent = _packed(measured, transfers)
    there, back = transfers.forward_bytes, transfers.backward_bytes

    def receive(cost: MessageCost, nbytes: float, packed: _Packed) -> float:
        return cost.receiving_s(m, nbytes) + packed.unpack_s

    def send(cost: MessageCost, nbytes: float, packed: _Packed) -> float:
        return cost.sending_s(m, nbytes) + packed.pack_s

    parts = tuple(
        PartTime(
            part.forward_s
            + receive(nodes[name], there[hop], sent.there[hop])
            + send(nodes[name], there[hop + 1], sent.there[hop + 1]),
            part.backward_s
            + receive(nodes[name], back[hop + 1], sent.back[hop + 1])
            + send(nodes[name], back[hop], sent.back[hop]),
            part.update_s,
        )
        for hop, (name, part) in enumerate(zip(order, chain.parts, strict=True))
    )
    cost = measured.owner.messages or FREE
    first = send(cost, there[0], sent.there[0]), receive(cost, back[0], sent.back[0])
    last = receive(cost, there[-1], sent.there[-1]), send(cost, back[-1], sent.back[-1])
    each = owners.each()
    owners = msgspec.structs.replace(
        owners,
        first=tuple(_longer(owner.first, *first) for owner in each),
        last=tuple(_longer(owner.last, *last) for owner in each),
    )
    return msgspec.structs.replace(chain, parts=parts), owners


class _Packed(NamedTuple):
    """Seconds that a batch's tensors at one cut take to be packed and unpacked, in one direction."""

    pack_s: float
    unpack_s: float


class _Sent(NamedTuple):
    there: list[_Packed]
    back: list[_Packed]


def _packed(measured: Measured, transfers: Transfers) -> _Sent:
    """Gives the seconds of packing at every cut; the tensors' own bytes are those that are sent over the ratio."""
    there, back = packings_of(measured, len(transfers.forward_bytes) - 1)

    def seconds(packings: list[Packing], sizes: Sequence[float]) -> list[_Packed]:
        raw = [size / packing.ratio if packing.ratio else 0.0 for packing, size in zip(packings, sizes, strict=True)]
        return [
            _Packed(size * packing.encode_s_per_byte, size * packing.decode_s_per_byte)
            for packing, size in zip(packings, raw, strict=True)
        ]

    return _Sent(seconds(there, transfers.forward_bytes), seconds(back, transfers.backward_bytes))


def message_work_s(measured: Measured, transfers: Transfers, order: Sequence[str]) -> dict[str, float]:
    """Gives the processor's seconds for a batch's messages, both ends of a message sharing it; by node, and "owner"."""
    m, nodes = measured.micro_batches, {node.name: node.profile.messages or GUESSED for node in measured.nodes}
    cuts = [(there + back) / 2 for there, back in zip(transfers.forward_bytes, transfers.backward_bytes, strict=True)]
    sent = _packed(measured, transfers)
    packing = [math.fsum((*one, *two)) / 2 for one, two in zip(sent.there, sent.back, strict=True)]
    # Each role sends and receives as much at each of its two cuts: one end of two messages each is one whole each.
    work = {
        name: nodes[name].working_s(2 * m, cuts[hop] + cuts[hop + 1]) + packing[hop] + packing[hop + 1]
        for hop, name in enumerate(order)
    }
    owner = measured.owner.messages or GUESSED
    return {**work, "owner": owner.working_s(2 * m, cuts[0] + cuts[-1]) + packing[0] + packing[-1]}


def _longer(part: PartTime, forward_s: float, backward_s: float) -> PartTime:
    return PartTime(part.forward_s + forward_s, part.backward_s + backward_s, part.update_s)
