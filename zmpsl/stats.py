"""What a role counts of its work in a round, and of what it sent on its links."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from zmpsl.pool.spill import SpillStats

__all__ = ["LinkStats", "Stats"]

Text = Annotated[str, Meta(max_length=4000)]
Name = Annotated[str, Meta(max_length=64)]


class LinkStats(Struct, frozen=True, kw_only=True):
    """What was sent on one kind of link: seconds, bytes, and tensors by codec.

    `packed_bytes` leaves out headers; `chosen` is what `codec: auto` packs with now, empty elsewhere. `bytes_per_s` and
    `latency_s` are the link's as measured so far, on links between hosts and where `auto` chooses; 0 where unknown.
    """

    raw_bytes: int = 0
    packed_bytes: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    codecs: dict[Name, int] = {}
    chosen: Text = ""
    bytes_per_s: float = 0.0
    latency_s: float = 0.0

    def plus(self, other: LinkStats, sign: int = 1) -> LinkStats:
        """Gives the sum, or the difference with sign -1; what is chosen now is ours, or else the other's."""
        codecs = dict(self.codecs)
        for name, tensors in other.codecs.items():
            codecs[name] = codecs.get(name, 0) + sign * tensors
        return LinkStats(
            raw_bytes=self.raw_bytes + sign * other.raw_bytes,
            packed_bytes=self.packed_bytes + sign * other.packed_bytes,
            encode_s=self.encode_s + sign * other.encode_s,
            decode_s=self.decode_s + sign * other.decode_s,
            codecs={name: tensors for name, tensors in codecs.items() if tensors},
            chosen=self.chosen or other.chosen,
            bytes_per_s=self.bytes_per_s or other.bytes_per_s,
            latency_s=self.latency_s or other.latency_s,
        )


class Stats(Struct, frozen=True, kw_only=True):
    """What a role has done in one round so far. Seconds and bytes; counts are exact."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    update_s: float = 0.0
    round_s: float = 0.0
    tasks: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    rejected: int = 0
    links: dict[Name, LinkStats] = {}
    spill: SpillStats = SpillStats()
    aside: SpillStats = SpillStats()
