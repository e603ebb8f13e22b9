"""Messages held back at random (`network.jitter_s`), to show that no result depends on when they arrive."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from itertools import count

from zmpsl.roles.actions import Send

__all__ = ["HeldBack"]


class HeldBack:
    """What waits until its time has come; to one peer nothing overtakes."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Send]] = []
        self._last: dict[str, float] = {}
        self._order = count()

    def put(self, action: Send, now: float, jitter_s: float) -> None:
        """Holds a message back for `jitter_s` seconds at most, or as long as the one before it."""
        due = max(self._last.get(action.to, 0.0), now + random.uniform(0.0, jitter_s))
        self._last[action.to] = due
        heapq.heappush(self._waiting, (due, next(self._order), action))

    def next_at(self) -> float | None:
        """Tells when the next one may go, None where nothing waits."""
        return self._waiting[0][0] if self._waiting else None

    def due(self, now: float) -> Iterator[Send]:
        """Gives what may go by now."""
        while self._waiting and self._waiting[0][0] <= now:
            yield heapq.heappop(self._waiting)[2]

    def clear(self) -> None:
        """Forgets everything."""
        self._waiting.clear()
        self._last.clear()
