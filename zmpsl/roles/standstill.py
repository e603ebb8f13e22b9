"""Notices that a round stands still: everybody says that it has nothing to do, and no byte has moved for long.

Whatever is lost is mostly told of at once: connections break, checksums and numbers do not match. This is for what is
left, such as the last message of a batch that ZeroMQ took for one of its own because a bit of its flags was flipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zmpsl.messages import Progress

__all__ = ["Standstill"]


@dataclass
class _Idle:
    """Somebody's last words: the same from the first to the last time it was heard to say them."""

    words: tuple[float, ...]
    since: float | None = None
    until: float | None = None
    again: bool = True


class Standstill:
    """What everybody has said of its progress in this round.

    Who computes says nothing meanwhile, and who imitates that it does says that it is busy. So all stand still only in
    a time at whose beginning and end each of them has said the same, and between which each has spoken at no other.
    """

    def __init__(self) -> None:
        self._idle: dict[str, _Idle] = {}

    def restart(self) -> None:
        """Forgets what was said."""
        self._idle.clear()

    def hear(self, place: str, said: Progress) -> None:
        """Takes what a member says."""
        stats = said.stats
        words = (
            said.round, said.batches, said.loss_sum, said.samples, stats.tasks, stats.sent_bytes, stats.received_bytes,
        )  # fmt: skip
        known = self._idle.get(place)
        if said.busy:
            self._idle.pop(place, None)
        elif known is not None and known.words == words:
            known.again = True
        else:
            self._idle[place] = _Idle(words)

    def stands(self, places: Iterable[str], now: float, limit_s: float) -> bool:
        """Looks now and then.

        Args:
            places: Of everybody who takes part.
            now: Seconds.
            limit_s: How long all must have had nothing to do.
        """
        for idle in self._idle.values():
            if idle.again:
                idle.since, idle.until, idle.again = now if idle.since is None else idle.since, now, False
        said = [self._idle.get(place) for place in places]
        if not said or None in said:
            return False
        last = max(idle.since or now for idle in said if idle is not None)
        return min(idle.until or now for idle in said if idle is not None) - last >= limit_s
