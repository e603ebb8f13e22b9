"""Which codec makes a link fastest: the arithmetic behind `codec: auto`. No clock, no socket: times are passed in.

A tensor goes over a hop in tiles (chunks): while one travels, the next is packed and the one before is unpacked. With
n tiles of equal size, and seconds e, w, d for packing, sending and unpacking the whole tensor,

    (e + w + d) / n  +  (n - 1) / n * max(e, w, d)

pass: the first tile goes through all three stages, each further one costs what the slowest stage takes.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

__all__ = ["CANDIDATES", "FAST_BYTES_PER_S", "Chooser", "Cost", "Rate", "seconds"]

# What may be chosen within each error class, in order of preference among equals.
CANDIDATES = {
    "lossless": ("none", "bitmap", "huff"),
    "accurate": ("none", "bitmap", "huff", "bf16", "bf16-huff"),
    "slow-link": ("none", "bitmap", "bf16", "bf16-huff", "int8", "int4", "qz"),
}
# On a link like this the fastest packing gains less than it takes: nothing is even tried.
FAST_BYTES_PER_S = 1.25e9
# Below this the time goes into messages, not bytes.
SMALL_BYTES = 4096
AGAIN_S = 10.0  # a codec's figures are taken anew after this time
STAY_S = 1.0  # a choice holds at least this long
GAIN = 0.9  # and goes only for one that takes at most this share of its time
# A reading counts when so many bytes have gone since the last one; the rate is that of so many readings.
SAMPLE_BYTES = 64 << 10
READINGS = 12
ENOUGH = 3


class Cost(NamedTuple):
    """What a codec does to a tensor: bytes sent, and seconds to pack and unpack, each per byte of the tensor."""

    ratio: float
    encode_s: float
    decode_s: float


RAW = Cost(1.0, 0.0, 0.0)


class Rate:
    """A link's rate: the lower quartile of the last readings in which the link, not the sender, set the pace.

    A low one, because a buffer on the way lets short tensors through at any speed; not the lowest, because a receiver
    that is busy for once makes a fast link look slow.

    Attributes:
        latency_s: Half of the shortest way there and back; 0 before one is known.
    """

    def __init__(self) -> None:
        self._readings: deque[float] = deque(maxlen=READINGS)
        self._bytes = 0
        self.latency_s = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None before enough was measured."""
        count = len(self._readings)
        return sorted(self._readings)[count // 4] if count >= ENOUGH else None

    def read(self, nbytes: int, bytes_per_s: float, lower_bound: bool, round_trip_s: float = 0.0) -> None:
        """Takes a reading, see `zmpsl.transport.tcp_info.Reading`."""
        self.latency_s = round_trip_s / 2 or self.latency_s
        if nbytes < self._bytes:  # a new connection
            self._bytes = 0
        if nbytes - self._bytes >= SAMPLE_BYTES:
            self._bytes = nbytes
            if bytes_per_s > 0 and not lower_bound:
                self._readings.append(bytes_per_s)


def seconds(nbytes: int, cost: Cost, bytes_per_s: float, tiles: int) -> float:
    """Gives the time from the first byte packed to the last one unpacked; see above.

    Args:
        nbytes: Bytes of the tensor.
        cost: Of the codec.
        bytes_per_s: Of the link.
        tiles: Number of chunks.
    """
    stages = (nbytes * cost.encode_s, nbytes * cost.ratio / bytes_per_s, nbytes * cost.decode_s)
    return sum(stages) / tiles + (tiles - 1) / tiles * max(stages)


class Chooser:
    """The choice for one kind of tensor on one link.

    Use, for each tensor: measure what `wanted` names and `note` it, then `choose`.

    Args:
        within: Error class, one of `CANDIDATES`.
    """

    def __init__(self, within: str) -> None:
        self.name = "none"
        self._candidates = CANDIDATES[within]
        self._costs: dict[str, tuple[Cost, float]] = {"none": (RAW, float("inf"))}
        self._since = float("-inf")

    def wanted(self, now: float, bytes_per_s: float | None, nbytes: int) -> list[str]:
        """Names the codecs whose figures are missing or old; none where no choice is open."""
        if bytes_per_s is None or bytes_per_s >= FAST_BYTES_PER_S or nbytes < SMALL_BYTES:
            return []
        return [name for name in self._candidates if name not in self._costs or now - self._costs[name][1] > AGAIN_S]

    def note(self, name: str, cost: Cost, now: float) -> None:
        """Takes down what a codec did to a tensor of this kind."""
        self._costs[name] = cost, now

    def choose(self, now: float, bytes_per_s: float | None, nbytes: int, tiles: int) -> str:
        """Gives the codec for a tensor.

        Args:
            now: Time in seconds.
            bytes_per_s: Of the link; None where it is not known yet.
            nbytes: Bytes of the tensor.
            tiles: Its number of chunks.
        """
        if bytes_per_s is None or nbytes < SMALL_BYTES:
            return "none"
        if bytes_per_s >= FAST_BYTES_PER_S:
            return self._go("none", now)
        times = {
            name: seconds(nbytes, self._costs[name][0], bytes_per_s, tiles)
            for name in self._candidates
            if name in self._costs
        }
        best = min(times, key=times.__getitem__)
        if now - self._since >= STAY_S and times[best] <= GAIN * times[self.name]:
            return self._go(best, now)
        return self.name

    def _go(self, name: str, now: float) -> str:
        if name != self.name:
            self.name, self._since = name, now
        return name
