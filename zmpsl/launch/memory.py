"""A whole run in one thread, over links in memory, with every order of events drawn from a seed.

The same roles, plan, wire format and credits as over sockets; only the sockets are missing. What happens next (which
message arrives, who works) is drawn at random, so one seed is one schedule: for tests that timing changes no result.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from zmpsl.checkpoint import Record
from zmpsl.errors import LocalProtocolError, ZmpslError, error_for
from zmpsl.job.schema import Job
from zmpsl.loops.station import Station
from zmpsl.messages import Message
from zmpsl.plan import node_name
from zmpsl.pool.budget import Limits
from zmpsl.roles.actions import Action, Connect, Disconnect, Say, Send, Stop, Tell
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.transport.assembly import Assembly
from zmpsl.transport.buffers import BufferPool
from zmpsl.transport.wire import parse

__all__ = ["MemoryRun"]


class _Place:
    """One member with its ends of the links."""

    def __init__(self, member: Member, number: int) -> None:
        self.station = Station(member)
        self.identity = number.to_bytes(2, "big")
        self.assembly = Assembly(BufferPool())
        self.told: deque[Message] = deque()
        self.said: deque[Message] = deque()
        self.arriving: dict[str, deque[tuple[bytes, bytes]]] = {}
        self.stop: Stop | None = None


class _Bounded(ComputeNode):
    """A compute node with this many bytes for its part."""

    def __init__(self, room: int, runs: Path | None, place: str) -> None:
        super().__init__(runs, place)
        self.room = room

    def limits(self) -> Limits:
        """Nothing but the part counts."""
        return Limits(own=str(self.room))


class MemoryRun:
    """A run in memory.

    Args:
        job: The job.
        seed: Of the schedule.
        runs: Folder for checkpoints and metrics; None keeps nothing.
        name: Name of the run.
        resume: Record of the run to go on with.
        capture: Keep all bytes that travel between members.
        rooms: Bytes that each compute node has for its part, by hop; no limit where empty.

    Attributes:
        members: The roles by place name, once the run is over.
        frames: All bytes that travelled between members, when `capture` was set.
    """

    def __init__(
        self,
        job: Job,
        seed: int = 0,
        runs: Path | None = None,
        name: str = "memory",
        *,
        resume: Record | None = None,
        capture: bool = False,
        rooms: Sequence[int] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.manager = Manager(runs, job, name, resume)
        kinds: list[Member] = [
            Aggregator(runs),
            *(_Bounded(rooms[hop], runs, node_name(hop)) if rooms else ComputeNode(runs) for hop in range(job.nodes)),
            *(DataOwner(runs) for _ in range(job.owners)),
        ]
        self._places = {number: _Place(member, number) for number, member in enumerate(kinds)}
        self._by_name: dict[str, _Place] = {}
        self.capture = capture
        self.frames: list[bytes] = []

    @property
    def members(self) -> dict[str, Member]:
        """The roles by place name."""
        return {place.station.member.place: place.station.member for place in self._places.values()}

    def run(self) -> None:
        """Runs to the end.

        Raises:
            ZmpslError: The run failed.
            LocalProtocolError: Nothing can happen any more, but the run is not over.
        """
        for place in self._places.values():
            self._perform(place, place.station.member.start(f"memory://{place.identity.hex()}"))
        while self.manager.exit is None:
            moves = [move for place in self._places.values() for move in self._moves(place)]
            if not moves:
                raise LocalProtocolError(
                    f"the run hangs in phase {self.manager.phase.value} of round {self.manager.round}"
                )
            what, place, arg = self.random.choice(moves)
            self._move(what, place, arg)
        if self.manager.exit.exit_code:
            raise error_for(self.manager.exit.exit_code, self.manager.exit.text)

    def _moves(self, place: _Place) -> Iterator[tuple[str, _Place, str]]:
        if place.said:
            yield "hear", place, ""
        if place.told:
            yield "tell", place, ""
        if place.station.outboxes:  # as over sockets, nothing is read before the plan is here
            yield from (("arrive", place, sender) for sender, queue in place.arriving.items() if queue)
        for peer, outbox in place.station.outboxes.items():
            if outbox:
                yield "leave", place, peer
        if place.station.member.plan is not None:
            yield from self._work(place)

    def _work(self, place: _Place) -> Iterator[tuple[str, _Place, str]]:
        if place.station.has_work():
            yield "work", place, ""
        elif place.station.owes():
            yield "credit", place, ""

    def _move(self, what: str, place: _Place, arg: str) -> None:
        station = place.station
        match what:
            case "hear":
                for action in self.manager.hear(place.identity, place.said.popleft()):  # type: ignore[arg-type]
                    if isinstance(action, Tell):
                        self._places[int.from_bytes(action.to, "big")].told.append(action.message)
            case "tell":
                self._perform(place, station.member.hear(place.told.popleft()))  # type: ignore[arg-type]
                self._by_name[station.member.place] = place
            case "leave":
                message = station.outboxes[arg].next()
                if message is not None:
                    header, chunk = message
                    body = b"" if chunk is None else bytes(chunk)
                    self._by_name[arg].arriving.setdefault(station.member.place, deque()).append((header, body))
                    if self.capture:
                        self.frames += [header, body]
            case "arrive":
                self._arrive(place, *place.arriving[arg].popleft())
            case "work":
                self._perform(place, station.next_work())
            case "credit":
                station.give_back_credit()

    def _arrive(self, place: _Place, first: bytes, body: bytes) -> None:
        header = parse(first, 1 << 40)
        task = header.task
        if header.dtype is not None:
            place.station.unpack(header, memoryview(body), place.assembly.place(header))
            finished = place.assembly.finish(header)
            place.station.take(header, finished)
        else:
            place.station.take(header, task)

    def _perform(self, place: _Place, actions: Iterator[Action] | None) -> None:
        try:
            for action in actions or ():
                match action:
                    case Send():
                        place.station.send(action)
                    case Say():
                        place.said.append(action.message)
                    case Connect():
                        place.station.connect(action)
                    case Disconnect():
                        place.station.disconnect()
                        place.assembly.clear()
                    case Stop():
                        place.stop = action
        except ZmpslError as error:
            for action in place.station.member.trouble(error, error.exit_code):
                if isinstance(action, Say):
                    place.said.append(action.message)
