"""Two hosts on one: network namespaces joined by a line that loses, delays and reorders packets, or falls silent.

    line = Line(Weather(loss=0.02, delay_s=0.01))      packets of the seed's choice are lost
    enter(line.far)                                     this thread is at FAR now, and what it starts
    line.weather.silent = True                          every packet is lost; no connection is told

Below TCP, unlike bench/proxy.py: what is lost is sent again by the kernel, for as long as it has patience. A TUN device
at each end hands its packets to a thread of this process. Linux and root; nothing outlives the process.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from harmed import Site, places_of
from striking import Blow, Field

from zmpsl.job import Job

__all__ = ["FAR", "NEAR", "Line", "TwoHosts", "Weather", "enter", "silences", "why_not"]

NEAR, FAR = "10.78.0.1", "10.78.0.2"
DEVICE = b"line0"
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
IFF_UP_RUNNING = 0x41
PACKET, IN_ONE_GO, LOOK_S = 2048, 64, 0.05


@dataclass
class Weather:
    """What happens to packets; may be changed while the line works, from any thread.

    Attributes:
        loss: Share of packets that are lost, each by itself.
        delay_s: How long each is on its way.
        jitter_s: Up to so much longer; those that are sent later may arrive before.
        bytes_per_s: Rate of each direction, 0 for none.
        queue: Packets that may wait for that, or be on their way, per direction; the next is lost.
        silent: All are lost.
        one_way: With `silent`, only those `there`, to the far end, or only those `back`; both where empty.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float = 0.0
    queue: int = 200
    silent: bool = False
    one_way: Literal["", "there", "back"] = ""


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def enter(world: str) -> None:
    """Makes this thread, and all that it starts, be at one end of a line: an end's path as `Line` gives it."""
    descriptor = os.open(world, os.O_RDONLY)
    try:
        _call("setns", descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


def why_not() -> str:
    """Why there can be no line here, empty where there can."""
    try:
        Line(Weather()).close()
    except (OSError, AttributeError) as error:
        return f"two network namespaces joined by TUN devices need Linux, root and /dev/net/tun: {error}"
    return ""


def _elsewhere(what: Callable[[], Any]) -> Any:
    """Does something in a thread of its own, so that this one stays in its namespace."""
    done: list[Any] = []

    def work() -> None:
        try:
            done.append(what())
        except OSError as error:
            done.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(done[0], OSError):
        raise done[0]
    return done[0]


def _new_host(address: str) -> tuple[int, int]:
    """Makes a namespace with one device; gives descriptors of both."""
    _call("unshare", CLONE_NEWNET)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, number in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.0")):
            spoken = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(number))
            fcntl.ioctl(control, request, struct.pack("16s16s8x", DEVICE, spoken))
        for name in (DEVICE, b"lo"):
            flags = struct.unpack("16xH22x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16s24x", name)))[0]
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | IFF_UP_RUNNING))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY), device


@dataclass
class _Way:
    """One direction."""

    source: int
    sink: int
    towards: bool
    free_at: float = 0.0
    waiting: int = 0


class Line:
    """A line between two new namespaces; works in a thread of its own until closed.

    Args:
        weather: What happens on it.
        seed: Of the packets that are lost and late.

    Attributes:
        near: Path of the one end's namespace, at NEAR.
        far: Of the other, at FAR.
        counts: Packets that went through, that were lost, and that arrived before one sent earlier.

    Raises:
        OSError: Not root, not Linux, or no TUN devices.
    """

    def __init__(self, weather: Weather, seed: int = 0) -> None:
        self.weather = weather
        self.counts = {"packets": 0, "lost": 0, "overtaken": 0}
        self._random = random.Random(seed)
        self._under_way: list[tuple[float, int, _Way, bytes]] = []
        self._order = count()
        self._over = threading.Event()
        self._open: list[int] = []
        for address in (NEAR, FAR):
            self._open += _elsewhere(lambda address=address: _new_host(address))
        near, one, far, other = self._open
        self.near, self.far = (f"/proc/{os.getpid()}/fd/{each}" for each in (near, far))
        self._ways = {one: _Way(one, other, True), other: _Way(other, one, False)}
        self._last = {True: -1, False: -1}
        self._thread = threading.Thread(target=self._work, name="line", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it; the namespaces go with the last process in them."""
        self._over.set()
        self._thread.join(10)
        for each in self._open:
            os.close(each)

    def _work(self) -> None:
        while not self._over.is_set():
            left_s = self._under_way[0][0] - time.monotonic() if self._under_way else LOOK_S
            for source in select.select(list(self._ways), [], [], min(LOOK_S, max(0.0, left_s)))[0]:
                with suppress(BlockingIOError):
                    for _ in range(IN_ONE_GO):
                        self._take(self._ways[source], os.read(source, PACKET))
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                self._deliver(*heapq.heappop(self._under_way)[1:])

    def _take(self, way: _Way, packet: bytes) -> None:
        weather, now = self.weather, time.monotonic()
        silent = weather.silent and weather.one_way != ("back" if way.towards else "there")
        full = weather.bytes_per_s and way.waiting >= weather.queue
        if silent or full or self._random.random() < weather.loss:
            self.counts["lost"] += 1
            return
        due = now
        if weather.bytes_per_s:
            way.free_at = max(way.free_at, now) + len(packet) / weather.bytes_per_s
            due = way.free_at
        due += weather.delay_s + self._random.random() * weather.jitter_s
        way.waiting += 1
        heapq.heappush(self._under_way, (due, next(self._order), way, packet))

    def _deliver(self, number: int, way: _Way, packet: bytes) -> None:
        way.waiting -= 1
        self.counts["packets"] += 1
        self.counts["overtaken"] += number < self._last[way.towards]
        self._last[way.towards] = max(number, self._last[way.towards])
        with suppress(OSError):  # the device's queue is full: lost, as on any line
            os.write(way.sink, packet)


@dataclass
class TwoHosts(Site):
    """Where runs take place on two hosts: some roles at the far end of a line, the manager and all others near.

    Attributes:
        line: Between them.
        away: The places at its far end.
    """

    job: Job
    line: Line
    away: frozenset[str] = frozenset({"node-1", "owner-1"})
    keys: Any = None
    replaced: bool = True
    clocks: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.harms, self.proxies, self.processes = {}, {}, None
        self._ports = dict(zip(("manager", *places_of(self.job)), count(20_000), strict=False))

    def address(self, place: str) -> tuple[str, str]:
        host = FAR if place in self.away else NEAR
        return f"tcp://{host}:{self._ports[place]}", host

    def way(self, place: str) -> str:
        return self.address("manager")[0]

    def world(self, place: str) -> str:
        return self.line.far if place in self.away else self.line.near

    def heal(self) -> None:
        self.line.weather.silent = False

    def close(self) -> None:
        self.line.close()


def silences(seconds: float, one_way: Literal["", "there", "back"] = "") -> Blow:
    """No packet goes through for so long, and nobody is told."""

    def strike(ground: Field) -> None:
        weather = ground.site.line.weather  # type: ignore[attr-defined]
        weather.one_way, weather.silent = one_way, True
        ground.over.wait(seconds)
        ground.site.heal()

    return Blow(strike, seconds)
