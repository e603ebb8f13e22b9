"""Many imitated devices in one thread: each role with sockets of its own, none ever sleeps, a heap of times wakes them.

    selector (sockets that have something) or heap (times that have come) -> that role's turn -> when to wake it next

A role at work is a generator of actions (zmpsl.roles.actions). What it does takes no time here, or that of the real
computation; the actions behind it wait until the device that is imitated would be done, and so does all further work.
Work that waited for a busy device begins, in its own time, when the device became free: what this thread itself takes
is not added to the seconds that are imitated.
"""

from __future__ import annotations

import heapq
import math
import selectors
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import zmq

from zmpsl.errors import RemoteProtocolError, error_for
from zmpsl.job.emulation import Emulate, NodeClass, OwnerClass
from zmpsl.loops.life import Life, State, complain
from zmpsl.loops.member import Node
from zmpsl.roles.actions import Action, Connect, Stop
from zmpsl.roles.member import PROGRESS_EVERY_S, Member
from zmpsl.transport.choice import Rate
from zmpsl.transport.link import Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.shaping import Lane, ShapedLink, lane_of
from zmpsl.transport.sockets import many_sockets
from zmpsl.transport.task import Task
from zmpsl.transport.wire import HEADER_BYTES, Header

__all__ = ["Crowd", "PacedNode"]

# The most that work may begin earlier, by its device's time, than this thread came to it.
CATCH_UP_S = 0.05
# How often a socket without room, of which no selector tells, is tried again.
FULL_S = 0.002
# How long it may take at most until we see that we are asked to stop.
LONGEST_S = 0.25
# Turns of one role before the others get theirs.
TURNS = 16
# Roles that look after their connections, or say how far they are, per second and process.
LOOKS_PER_S, WORDS_PER_S = 400, 50


class PacedNode(Node):
    """A role whose work takes as long as on the device that it imitates. It is driven by `turn`, not by `run`."""

    def __init__(self, member: Member, manager: str, context: zmq.Context[zmq.Socket[bytes]], among: int) -> None:
        super().__init__(member, manager, context=context)
        self.idle_s = 0.0  # the crowd sleeps, never a role
        self.check_every_s = max(Node.check_every_s, among / LOOKS_PER_S)
        member.progress_every_s = max(PROGRESS_EVERY_S, among / WORDS_PER_S)
        member.meter.spend = self._spend
        member.busy = self._busy  # type: ignore[method-assign]
        self._free_at = 0.0  # when the device will be, or became, free
        self._idle = True
        self._running: Iterator[Action] | None = None
        self._waiting: Action | None = None
        self._down: Lane | None = None
        self._lanes: dict[str, Lane | None] = {}
        self._arriving: deque[tuple[float, Header, Task | None]] = deque()

    @property
    def over(self) -> bool:
        """Whether the run is over for this role."""
        return self._stop is not None

    @property
    def descriptors(self) -> list[int]:
        """Those that wake it."""
        return [int(socket.getsockopt(zmq.FD)) for socket in (self._control.socket, self._inbox.socket)]

    def begin(self) -> None:
        """Asks the manager for a place."""
        self.state = State.RUNNING
        self._perform(self.member.start(self.endpoint))

    def turn(self) -> float:
        """Does what can be done now; gives when to come again, in seconds of the monotonic clock."""
        for _ in range(TURNS):
            moved = self._advance()
            moved = self._let_in() or moved
            for link in self._links.values():
                if isinstance(link, ShapedLink) and link.due is not None and link.due <= time.monotonic():
                    self._flush(link.name)
            if not (self._turn() or moved) or self._stop is not None:
                break
        else:
            return time.monotonic()
        if self.member.plan is None:
            # Nobody polls the inbox before there is a plan, and its descriptor would wake us for ever.
            self._inbox.socket.getsockopt(zmq.EVENTS)
        return self._wake_at()

    def end(self) -> None:
        """Leaves; what went wrong is in `error`."""
        self._stop = self._stop or Stop(130, f"{self.member.place or self.member.role} was asked to stop")
        self._close()
        if self.error is None and self._stop.exit_code not in (0, 130):
            self.error = error_for(self._stop.exit_code, self._stop.text)

    def _wake_at(self) -> float:
        now = time.monotonic()
        due = [self._checked_at + self.check_every_s]
        due += [self._free_at] if self._free_at > now else []
        due += [self._arriving[0][0]] if self._arriving else []
        due += [held] if (held := self._held_back.next_at()) is not None else []
        due += [now + FULL_S] if self._blocked else []
        due += [link.due for link in self._links.values() if isinstance(link, ShapedLink) and link.due is not None]
        return min(due)

    # -- work that takes its time -------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        links = [link for link in self._links.values() if isinstance(link, ShapedLink)]
        working = self._running is not None or self._free_at > time.monotonic()
        return working or bool(self._arriving) or any(link.due is not None for link in links)

    def _spend(self, wanted_s: float, _took_s: float) -> None:
        self._free_at += wanted_s

    def _next_work(self) -> Iterator[Action] | None:
        now = time.monotonic()
        if self._running is not None or self._free_at > now:
            return None
        work = self._station.next_work()
        if work is None:
            self._idle = True
        else:
            self._free_at = now if self._idle else max(self._free_at, now - CATCH_UP_S)
            self._idle = False
        return work

    def _work(self, work: Iterator[Action] | None) -> None:
        if work is not None:
            self._running = work
            self._advance()

    def _advance(self) -> bool:
        """Carries out the actions of the work under way whose time has come; tells whether there were any."""
        moved = False
        while self._running is not None:
            try:
                if self._waiting is None:
                    self._waiting = next(self._running, None)
                if self._waiting is None:
                    self._running = None
                elif self._free_at > time.monotonic():
                    break
                else:
                    action, self._waiting, moved = self._waiting, None, True
                    self._act(action)
            except Exception as error:
                self._running = self._waiting = None
                self._trouble(error)
        return moved

    # -- slow links ---------------------------------------------------------------------------------------------------

    def _connect(self, action: Connect) -> None:
        emulate, plan, place = action.plan.job.emulate, action.plan, self.member.place
        role, _, number = place.partition("-")

        def lane(kind: OwnerClass | NodeClass | None, way: str) -> Lane | None:
            return lane_of(kind, emulate.time_scale, f"{plan.job.seed} {place} {way}")

        if role == "owner":
            kind = emulate.owner(int(number))
            self._down, up = lane(kind, "down"), lane(kind, "up")
            self._lanes = dict.fromkeys(action.peers, up)
        elif role == "node":
            ends = {f"node-{int(number) - 1}": int(number), f"node-{int(number) + 1}": int(number) + 1}
            self._lanes = {peer: lane(emulate.node(hop), peer) for peer, hop in ends.items()}
        super()._connect(action)
        for peer, packer in self._station.packers.items():
            slow = _slowest(emulate, place, peer)
            if packer.adaptive and slow is not None and slow.bytes_per_s is not None:
                packer.rate = _ImitatedRate(slow.bytes_per_s * emulate.time_scale, slow.latency_s / emulate.time_scale)

    def _link(self, context: Any, name: str, endpoint: str, outbox: Outbox, *keys: Any) -> Link:
        lane = self._lanes.get(name)
        if lane is None:
            return super()._link(context, name, endpoint, outbox, *keys)
        return ShapedLink(lane, context, name, endpoint, outbox, *keys)

    def _disconnect(self) -> None:
        self._running = self._waiting = None  # work of a plan that is void
        self._free_at = 0.0
        self._arriving.clear()
        super()._disconnect()

    def _take(self, header: Header, task: Task | None) -> None:
        if self._down is None:
            super()._take(header, task)
        else:
            arrival = self._down.arrival(HEADER_BYTES + header.size, time.monotonic())
            self._arriving.append((arrival, header, task))

    def _let_in(self) -> bool:
        """Takes what has come through the lane towards us."""
        moved = False
        while self._arriving and self._arriving[0][0] <= time.monotonic():
            _, header, task = self._arriving.popleft()
            moved = True
            try:
                super()._take(header, task)
            except RemoteProtocolError as error:
                complain(self.rejected, error)
        return moved


class _ImitatedRate(Rate):
    """Of a link that is imitated: the kernel knows only how fast this host's loopback is."""

    def __init__(self, bytes_per_s: float, latency_s: float) -> None:
        super().__init__()
        self._known, self.latency_s = bytes_per_s, latency_s

    @property
    def bytes_per_s(self) -> float | None:
        """The rate."""
        return self._known

    def read(self, nbytes: int, bytes_per_s: float, lower_bound: bool, round_trip_s: float = 0.0) -> None:
        """Takes no reading."""


def _slowest(emulate: Emulate, place: str, peer: str) -> OwnerClass | NodeClass | None:
    """Gives the class whose link is between two roles, None where none is imitated.

    An owner's is between it and everybody, a node's between it and the node before.
    """
    for name in (place, peer):
        role, _, number = name.partition("-")
        if role == "owner":
            return emulate.owner(int(number))
    ends = [int(name.removeprefix("node-")) for name in (place, peer) if name.startswith("node-")]
    return emulate.node(max(ends)) if len(ends) == 2 else None


class Crowd(Life):
    """Roles of one process that imitate devices, over real sockets, in one thread.

    Args:
        members: The roles.
        manager: The manager's address.
        among: How many devices there are in the whole run: the more, the less often each says how far it is.
    """

    def __init__(self, members: Sequence[Member], manager: str, among: int = 0) -> None:
        super().__init__()
        self._context = many_sockets()
        self.nodes = [PacedNode(member, manager, self._context, max(among, len(members))) for member in members]
        self._selector = selectors.DefaultSelector()
        for number, node in enumerate(self.nodes):
            for descriptor in node.descriptors:
                self._selector.register(descriptor, selectors.EVENT_READ, number)

    def run(self) -> None:
        """Works until the run is over for everybody.

        Raises:
            ZmpslError: It failed for somebody; the first one's error.
        """
        self.state = State.RUNNING
        try:
            for node in self.nodes:
                node.begin()
            self._drive()
        finally:
            self._close()
        failed = [node.error for node in self.nodes if node.error is not None]
        if failed:
            raise failed[0]

    def _drive(self) -> None:
        due = dict.fromkeys(range(len(self.nodes)), 0.0)
        heap = [(0.0, number) for number in due]  # of each role also times that are out of date
        while due and not self._asked_to_stop.is_set():
            for number in self._woken(heap[0][0]):
                due[number] = 0.0
                heapq.heappush(heap, (0.0, number))
            now = time.monotonic()
            while heap and heap[0][0] <= now:
                at, number = heapq.heappop(heap)
                if due.get(number) != at:
                    continue
                due[number] = self.nodes[number].turn()
                heapq.heappush(heap, (due[number], number))
                if self.nodes[number].over:
                    del due[number]
                    self._leave(number)

    def _woken(self, until: float) -> set[int]:
        """Waits for a socket, or for a time; a selector knows only whole milliseconds, the rest is slept."""
        left_s = max(0.0, until - time.monotonic())
        if 0.0 < left_s < 0.001:
            time.sleep(left_s)
            left_s = 0.0
        whole_ms = math.floor(1000 * min(left_s, LONGEST_S))
        return {key.data for key, _ in self._selector.select(max(0.0, (whole_ms - 0.5) / 1000))}

    def _leave(self, number: int) -> None:
        for descriptor in self.nodes[number].descriptors:
            self._selector.unregister(descriptor)
        self.nodes[number].end()

    def _thread_name(self) -> str:
        return f"zmpsl crowd of {len(self.nodes)}"

    def _close(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._selector.close()
            for node in self.nodes:
                node.end()
            self._context.term()
