"""What becomes of a role's links: they break, nobody answers over them any more, or they never come about.

libzmq connects again for ever and says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from zmpsl.errors import PeerLostError
from zmpsl.job.network import Recover
from zmpsl.transport.link import Link

__all__ = ["SHAKY_S", "LinkWatch"]

log = logging.getLogger("zmpsl")

# A connection may fail while the other side learns of a new plan; after this it is told of. After much more, and after
# recover.wait_s, it is over.
SHAKY_S, HOPELESS_S = 3.0, 30.0
# A host that the kernel has asked again and again for so long without an answer is cut off. One whose role only does
# not read answers.
UNHEARD_S = 5.0


class LinkWatch:
    """Looks after the links of one role."""

    def __init__(self) -> None:
        self._hopeless_s = HOPELESS_S
        self._down: dict[str, float] = {}  # links that are not up, and since when
        self._told: set[str] = set()  # of them, those that were told of

    def begin(self, recover: Recover) -> None:
        """There are new links, under a plan with these settings."""
        self._hopeless_s = max(HOPELESS_S, recover.wait_s)
        self._down.clear()
        self._told.clear()

    def look(self, place: str, links: Mapping[str, Link], led: bool, now: float) -> Iterator[tuple[str, str]]:
        """Looks at all links.

        Args:
            place: Whose links they are.
            links: By peer.
            led: The manager is there; without it nobody can help, and more may be lost.
            now: The time in seconds.

        Yields:
            Peers to which the connection was lost, and how where that is to be told.

        Raises:
            PeerLostError: There has been no connection to a peer for too long.
        """
        for name, link in links.items():
            if link.broken():
                yield name, ""
            elif link.cut_off(UNHEARD_S):
                yield name, f"{place} has had no answer from the host of {name} for {UNHEARD_S:g} s"
            if link.up or not led:
                self._down.pop(name, None)
                self._told.discard(name)
                continue
            down_s = now - self._down.setdefault(name, now)
            why = f"for {down_s:.0f} s" + (f": {link.failure}" if link.failure else "")
            if down_s > self._hopeless_s:
                raise PeerLostError(f"no connection from {place} to {name} {why}")
            if down_s > SHAKY_S and name not in self._told:
                self._told.add(name)
                log.warning("no connection to %s %s", name, why)
