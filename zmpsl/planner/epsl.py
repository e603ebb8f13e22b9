"""How long a round of EPSL takes: a shared server model, and a share of the gradients folded over the owners.

Source: EPSL (2303.15991), in seconds per batch in place of FLOPs; the exact terms are reconstructed.
"""

from __future__ import annotations

import math

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.terms import Owners, PartTime, at_least_zero, check_link, check_part, transfer_s

__all__ = ["Epsl", "EpslTime", "epsl_time"]


class Epsl(Struct, frozen=True):
    """One round (one batch of each owner) of EPSL: a shared server model, a share `phi` of gradients aggregated.

    Attributes:
        server: Seconds of the whole server model for one owner's batch.
        last_backward_s: The part of `server.backward_s` that the last layer takes, before gradients are aggregated.
        batch_size: b.
        phi: Share of rows folded over the owners; 0 is parallel SL.
        smashed_bytes: Per sample, up.
        gradient_bytes: Per sample, down.
        server_link: The server's own link, which carries one copy per owner; None is never the narrower one.
        multicast: Whether one copy of the aggregated rows reaches all owners.
    """

    server: PartTime
    last_backward_s: float
    batch_size: int
    phi: float
    smashed_bytes: float
    gradient_bytes: float
    server_link: NodeLink | None = None
    multicast: bool = False

    def __post_init__(self) -> None:
        check_part("server", self.server)
        for field in ("last_backward_s", "smashed_bytes", "gradient_bytes"):
            at_least_zero(f"epsl: {field}", getattr(self, field))
        if self.last_backward_s > self.server.backward_s:
            more = f"{self.last_backward_s} s, more than the {self.server.backward_s} s of the whole server"
            raise JobError(f"epsl: last_backward_s is {more}")
        if self.batch_size < 1 or not 0 <= self.phi <= 1:
            raise JobError(f"epsl: batch_size is {self.batch_size}, phi is {self.phi}; needed are >= 1 and 0 to 1")
        if self.server_link is not None:
            check_link("epsl: server_link", self.server_link)


class EpslTime(Struct, frozen=True):
    """Terms of EPSL's round in seconds, and the rows that go backward through the server."""

    upload_s: float
    forward_s: float
    backward_s: float
    broadcast_s: float
    download_s: float
    total_s: float
    rows: int


def epsl_time(owners: Owners, round_: Epsl) -> EpslTime:
    """Gives max_i (T_i^F + T_i^U) + T_s^F + T_s^B + T^DB + max_i (T_i^D + T_i^B) for C owners; `Owners.last` is unused.

    q = ceil(phi * b) rows are folded, so q + C * (b - q) go back; the last layer sees all C * b, the update is one.
    Without multicast the server's link carries q rows C times. Source: EPSL's latency model, in seconds per batch in
    place of FLOPs; its exact terms are reconstructed.
    """
    each, b = owners.each(), round_.batch_size
    # The product is rounded first: 0.1 * 30 is 3.0000000000000004 and means three rows.
    folded = math.ceil(round(round_.phi * b, 9))
    rows = folded + len(each) * (b - folded)
    upload = max(o.first.forward_s + transfer_s(b * round_.smashed_bytes, o.uplink) for o in each)
    forward = len(each) * round_.server.forward_s
    rest = round_.server.backward_s - round_.last_backward_s
    backward = len(each) * round_.last_backward_s + rows / b * rest + round_.server.update_s
    broadcast = 0.0
    if folded:
        size = folded * round_.gradient_bytes
        broadcast = max(transfer_s(size, o.downlink) for o in each)
        if round_.server_link is not None:
            copies = 1 if round_.multicast else len(each)
            broadcast = max(broadcast, transfer_s(copies * size, round_.server_link))
    own = (b - folded) * round_.gradient_bytes
    download = max((transfer_s(own, o.downlink) if folded < b else 0.0) + o.first.back_s for o in each)
    total = upload + forward + backward + broadcast + download
    return EpslTime(upload, forward, backward, broadcast, download, total, rows)
