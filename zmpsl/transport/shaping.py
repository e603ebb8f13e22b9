"""Slow links, imitated: every message waits as long as a link of that rate, latency and jitter would have kept it.

    outbox -> lane (one message after the other at the rate) -> latency + jitter -> socket

Bytes really travel, at the speed of the host, once their time has come. An owner has one lane each way, whoever is at
the other end; messages of one lane never overtake one another.
"""

from __future__ import annotations

import random
import time
from collections import deque
from typing import Any

from zmpsl.job.emulation import NodeClass, OwnerClass
from zmpsl.transport.link import Link
from zmpsl.transport.wire import Message

__all__ = ["Lane", "ShapedLink", "lane_of"]


class Lane:
    """One direction of a slow link.

    Args:
        bytes_per_s: Rate; None for no limit.
        latency_s: Delay of every message; it occupies nothing.
        jitter_s: Most that a message may be delayed besides.
        seed: Of the jitter.
    """

    def __init__(self, bytes_per_s: float | None, latency_s: float, jitter_s: float, seed: str) -> None:
        self._seconds_per_byte = 0.0 if bytes_per_s is None else 1 / bytes_per_s
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._last_at = 0.0

    def arrival(self, nbytes: int, now: float) -> float:
        """Gives when a message that wants to leave now will have arrived."""
        self._free_at = max(self._free_at, now) + nbytes * self._seconds_per_byte
        delay_s = self._latency_s + (self._random.uniform(0.0, self._jitter_s) if self._jitter_s else 0.0)
        self._last_at = max(self._last_at, self._free_at + delay_s)
        return self._last_at


def lane_of(kind: OwnerClass | NodeClass | None, time_scale: float, seed: str) -> Lane | None:
    """Gives one direction of the link of a class of devices; None where nothing is imitated."""
    if kind is None or (kind.bytes_per_s is None and not kind.latency_s and not kind.jitter_s):
        return None
    rate = None if kind.bytes_per_s is None else kind.bytes_per_s * time_scale
    return Lane(rate, kind.latency_s / time_scale, kind.jitter_s / time_scale, seed)


class ShapedLink(Link):
    """The PUSH socket to one peer behind a lane.

    Args:
        lane: Which; links may share it.
        arguments: As for every link.
    """

    def __init__(self, lane: Lane, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lane = lane
        self._travelling: deque[tuple[float, Message]] = deque()

    @property
    def due(self) -> float | None:
        """When the next message will have arrived, None when none is under way."""
        return self._travelling[0][0] if self._travelling else None

    def flush(self) -> None:
        """Puts all there is into the lane, and gives the socket what has come through it. Never blocks."""
        now = time.monotonic()
        while self._unsent is None and (frames := self._load()) is not None:
            self._unsent = None
            size = len(frames[0]) + (0 if frames[1] is None else len(frames[1]))
            self._travelling.append((self._lane.arrival(size, now), frames))
        while (frames := self._unsent or self._arrived(now)) is not None:
            if not self._send(*frames):
                self._unsent = frames
                return
            self._unsent = None

    def _arrived(self, now: float) -> Message | None:
        return self._travelling.popleft()[1] if self._travelling and self._travelling[0][0] <= now else None
