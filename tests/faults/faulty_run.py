"""A run in memory on which faults fall, drawn from a seed: every role dies, links lose, repeat and delay messages.

The same roles, plan, wire format and credits as over sockets. A crash also falls inside the commit: before or after
each file is written. So many faults fall; then none do any more, and the run must come to its end. After every move
the bounds hold: a node's pool is within its room, an outbox within its credit.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from zmpsl.checkpoint import Record, read_record
from zmpsl.errors import LocalProtocolError, RemoteProtocolError, error_for
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun, _Bounded, _Place
from zmpsl.plan import AGGREGATOR, node_name, owner_name
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.transport.outbox import Outbox

__all__ = ["FAULTS", "Crash", "FaultyRun"]

# Functions that write to the disk, and the module that calls them: where a crash is worst.
WRITES = [
    *(("zmpsl.roles.manager", name) for name in ("write_index", "write_record")),
    ("zmpsl.roles.publishing", "write_record"),
    *((f"zmpsl.roles.{role}", "save_parts") for role in ("compute", "aggregator")),
]
FAULTS = (
    "crash", "two crash", "freeze", "crash manager", "crash in a write",
    "cut link", "lose some", "repeat one", "one comes late", "stall", "cut control", "repeat control",
)  # fmt: skip
LIMIT = 400_000
TICK = 0.15  # share of the moves that only let time pass
PATIENCE = 400  # moves that a frozen role or a stalled connection lasts, and until a broken connection is noticed


class Crash(BaseException):
    """A process ends here; nothing of ours catches it."""


class FaultyRun(MemoryRun):
    """A run with faults.

    Args:
        job: The job.
        seed: Of the schedule and of the faults.
        runs: Folder for the checkpoints.
        faults: How many fall.
        every: On average so many moves lie between two.
        loses: Place of a role that dies and does not come back.
        loses_in: Round in which it dies.
        back_after: Moves after which it does come back; 0 for never.
        standby: Number of stand-by nodes.
        rooms: Bytes that each compute node has for its part, by hop; no limit where empty.
        credit_bytes: Credit per owner and link, instead of the job's: less than a job may say.

    Attributes:
        fallen: What happened, in words.
        commits: What managers of the run committed: by round, the digests, the cuts, and the owners that took part.
    """

    def __init__(
        self, job: Job, seed: int, runs: Path, faults: int = 5, every: int = 120, loses: str = "", loses_in: int = 0,
        back_after: int = 0, standby: int = 0, rooms: Sequence[int] = (), credit_bytes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(job, seed, runs, rooms=rooms)
        self.job, self.runs, self.rooms, self.credit_bytes = job, runs, rooms, credit_bytes
        names = [AGGREGATOR, *map(node_name, range(job.nodes)), *map(owner_name, range(job.owners))]
        for place, name in zip(self._places.values(), names, strict=True):
            place.station.member.place = name  # as `zmpsl run` starts them: a place is for life
        self._number = count(len(names))
        for _ in range(standby):
            self._add(ComputeNode(runs, "standby"))
        self.fallen: list[str] = []
        self.commits: dict[int, tuple[dict[str, str], tuple[int, ...], tuple[int, ...]]] = {}
        self._left, self._every = faults, every
        self._loses, self._loses_in, self._back_after = loses, loses_in, back_after
        self._armed = 0  # a crash falls inside the armed-th write from now
        self._now = 0.0
        self._moved = 0
        self._order = count()
        self._later: list[tuple[int, int, Callable[[], None]]] = []
        self._still: dict[tuple[bytes, str], int] = {}  # roles and connections that do nothing, and until when
        self._past: deque[tuple[bytes, str, tuple[bytes, bytes]]] = deque(maxlen=300)  # what has travelled

    def run(self) -> None:
        """Runs to the end."""
        with self._patched():
            for place in list(self._places.values()):
                self._perform(place, place.station.member.start(f"memory://{place.identity.hex()}"))
            for self._moved in range(LIMIT):
                if self.manager.exit is not None:
                    break
                victim = self._victim()
                if victim is not None:
                    self._loses = ""
                    self._crash(victim, self._back_after)
                elif self._left and not self.random.randrange(self._every):
                    self._left -= 1
                    self._fault(self.random.choice(FAULTS))
                else:
                    self._step()
            else:
                raise LocalProtocolError(f"no end after {LIMIT} moves; {self.manager.phase} {self.fallen}")
        if self.manager.exit.exit_code:
            raise error_for(self.manager.exit.exit_code, f"{self.manager.exit.text} {self.fallen}")

    # -- moves --------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        while self._later and self._later[0][0] <= self._moved:
            heapq.heappop(self._later)[2]()
        if self.random.random() < TICK:
            self._tick()
            return
        for place in self.random.sample(list(self._places.values()), len(self._places)):
            moves = [move for move in self._moves(place) if not self._is_still(place, move)]
            if moves:
                self._one(*self.random.choice(moves))
                return
        self._tick()

    def _one(self, what: str, place: _Place, arg: str) -> None:
        try:
            self._move(what, place, arg)
        except RemoteProtocolError:
            pass  # of a plan that is void; counted, not used
        except Crash:
            if what == "hear":
                self._crash_manager()
            else:
                self._crash(place)
        self._check(place)

    def _move(self, what: str, place: _Place, arg: str) -> None:
        if what == "hear":
            self._by_manager(self.manager.hear(place.identity, place.said.popleft()))  # type: ignore[arg-type]
        elif what == "leave":
            self._travel(place, arg)
        else:
            super()._move(what, place, arg)

    def _travel(self, place: _Place, peer: str) -> None:
        """A message goes where the plan says that the peer is; if nobody is there, it is lost."""
        message = place.station.outboxes[peer].next()
        plan = place.station.member.plan
        if message is None or plan is None:
            return
        endpoint = next(each.endpoint for each in plan.peers if each.name == peer)
        to = bytes.fromhex(endpoint.removeprefix("memory://"))
        link = f"{place.station.member.place} {place.identity.hex()}"
        body = message[0], b"" if message[1] is None else bytes(message[1])
        self._past.append((to, link, body))
        if (receiver := self._at(to)) is not None:
            receiver.arriving.setdefault(link, deque()).append(body)

    def _tick(self) -> None:
        self._now += 0.06
        for place in self.random.sample(list(self._places.values()), min(1, len(self._places))):
            if self._still.get((place.identity, ""), 0) <= self._moved:
                self._perform(place, place.station.member.tick(self._now))
        try:
            self._by_manager(self.manager.tick(self._now))
        except Crash:
            self._crash_manager()

    def _by_manager(self, actions: Iterator[Action]) -> None:
        for action in actions:
            if not isinstance(action, Tell):
                continue
            if (place := self._at(action.to)) is not None:
                place.told.append(action.message)
                self.manager.reachable(action.to)
            else:
                self._by_manager(self.manager.unreachable(action.to, self._now))

    def _check(self, place: _Place) -> None:
        """Bounds that hold at any time; and a role that was sent away starts anew."""
        if place.stop is not None and self.manager.exit is None:
            self._crash(place)
            return
        pool = getattr(getattr(place.station.member, "engine", None), "pool", None)
        if pool is not None:
            assert pool.held <= pool.capacity, self.fallen
            assert pool._room is None or pool.reserved_bytes <= pool._room, self.fallen
        for outbox in place.station.outboxes.values():
            for used in outbox._used.values():  # one tensor that is larger than all credit may travel alone
                assert 0 <= used <= max(outbox._credit_bytes, LARGEST), self.fallen

    def _is_still(self, place: _Place, move: tuple[str, _Place, str]) -> bool:
        what, _, arg = move
        if not self._still or what == "hear":
            return False
        until = max(self._still.get((place.identity, each), 0) for each in ("", arg if what == "arrive" else ""))
        return until > self._moved

    def _at(self, identity: bytes) -> _Place | None:
        return self._places.get(int.from_bytes(identity, "big"))

    def _victim(self) -> _Place | None:
        if not self._loses or self.manager.phase is not Phase.TRAINING or self.manager.round != self._loses_in:
            return None
        return next((place for place in self._places.values() if place.station.member.place == self._loses), None)

    def _add(self, member: Member) -> _Place:
        number = next(self._number)
        self._places[number] = place = _Place(member, number)
        return place

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self, kind: str) -> None:
        places = [place for place in self._places.values() if place.station.member.place]
        if not places:
            return  # all are dead already
        place = self.random.choice(places)
        soon = self._moved + self.random.randrange(1, PATIENCE)
        match kind:
            case "crash":
                self._crash(place)
            case "two crash":
                for each in self.random.sample(places, min(2, len(places))):
                    self._crash(each)
            case "freeze":
                self._note(f"{place.station.member.place} frozen")
                self._still[place.identity, ""] = soon
            case "crash manager":
                self._crash_manager()
            case "crash in a write":
                self._armed = self.random.randrange(1, 6)
            case "cut control":
                self._cut_control(place)
            case "repeat control":
                queues = [(each, queue) for each in places for queue in (each.told, each.said) if queue]
                if not queues:
                    self._left += 1  # the next time then
                    return
                place, queue = self.random.choice(queues)
                self._note(f"{type(queue[0]).__name__} repeated, between manager and {place.station.member.place}")
                queue.append(queue[0])
            case _:
                self._link_fault(kind, place, soon)

    def _link_fault(self, kind: str, place: _Place, soon: int) -> None:
        if kind == "one comes late" and self._past:
            to, link, message = self.random.choice(list(self._past))
            if (receiver := self._at(to)) is not None:
                self._note(f"a message of {link} came late")
                receiver.arriving.setdefault(link, deque()).append(message)
            return
        links = [link for link, queue in place.arriving.items() if queue]
        if not links:
            self._left += 1  # the next time then
            return
        link = self.random.choice(links)
        queue = place.arriving[link]
        self._note(f"{kind}: {link} > {place.station.member.place}")
        at = self.random.randrange(len(queue))
        match kind:
            case "cut link":
                queue.clear()
                self._notice(link, place.station.member.place)()
            case "lose some":
                for _ in range(self.random.randrange(1, len(queue) - at + 1)):
                    del queue[at]
                heapq.heappush(self._later, (soon, next(self._order), self._notice(link, place.station.member.place)))
            case "repeat one":
                queue.insert(self.random.randrange(at, len(queue)) + 1, queue[at])
            case "stall":
                self._still[place.identity, link] = soon

    def _notice(self, link: str, peer: str) -> Callable[[], None]:
        """Gives what happens when the sender notices that its connection broke, though it may be there again."""
        sender = self._at(bytes.fromhex(link.rpartition(" ")[2]))
        plan = None if sender is None else sender.station.member.plan

        def noticed() -> None:
            if sender is not None and plan is not None and sender.station.member.plan is plan:
                self._perform(sender, sender.station.member.broken(peer))

        return noticed

    def _note(self, text: str) -> None:
        self.fallen.append(f"{self._moved}: {text}")

    def _crash(self, place: _Place, back_after: int | None = None) -> None:
        """A role dies; it comes back soon, unless told otherwise. What it has sent may still arrive."""
        name, number = place.station.member.place, int.from_bytes(place.identity, "big")
        if self._places.pop(number, None) is None or not name:
            return
        self._note(f"{name} killed")
        back = self.random.randrange(1, 60) if back_after is None else back_after
        if back:
            heapq.heappush(self._later, (self._moved + back, next(self._order), lambda: self._come_back(name)))
        for other in self._places.values():
            for link in list(other.arriving):
                if link.endswith(f" {place.identity.hex()}") and self.random.random() < 0.5:
                    del other.arriving[link]
            if name in other.station.outboxes:
                self._perform(other, other.station.member.broken(name))

    def _come_back(self, name: str) -> None:
        if any(place.station.member.place == name for place in self._places.values()):
            return  # a stand-by node has it
        member: Member
        if name == AGGREGATOR:
            member = Aggregator(self.runs, name)
        elif name.startswith("owner"):
            member = DataOwner(self.runs, name)
        elif name.startswith("node") and self.rooms:
            member = _Bounded(self.rooms[int(name.removeprefix("node-"))], self.runs, name)
        else:
            member = ComputeNode(self.runs, name if name.startswith("node") else "standby")
        place = self._add(member)
        self._perform(place, member.start(f"memory://{place.identity.hex()}"))

    def _cut_control(self, place: _Place) -> None:
        self._note(f"control of {place.station.member.place} cut")
        place.said.clear()
        place.told.clear()
        self._perform(place, place.station.member.rejoin())

    def _crash_manager(self) -> None:
        self._note(f"manager killed in {self.manager.phase.value} round {self.manager.round}")
        folder = self.runs / "memory"
        self.manager.board.close()
        record = read_record(folder) if (folder / "record.json").exists() else None
        self.manager = Manager(self.runs, record.job if record is not None else self.job, "memory", record)
        for place in list(self._places.values()):
            place.told.clear()
            self._perform(place, place.station.member.rejoin())

    # -- the disk -----------------------------------------------------------------------------------------------------

    def _written(self, record: Record) -> None:
        """A record is on disk: what it says of a round is never to change, and rounds only grow."""
        last, plan = record.last, self.manager.plan
        assert last >= max(self.commits, default=-1), self.fallen
        if last < 0 or plan is None:
            return
        told = dict(record.committed[last])
        if last not in self.commits:
            self.commits[last] = told, record.bounds, plan.active
        assert self.commits[last][0] == told, self.fallen

    def _patched(self) -> Any:
        """The functions that write, each a place to crash before or after."""

        def wrapped(real: Callable[..., None]) -> Callable[..., None]:
            def write(*arguments: Any) -> None:
                self._armed -= 1
                if self._armed == 0 and self.random.random() < 0.5:
                    self._note(f"crash before {real.__name__}")
                    raise Crash
                real(*arguments)
                if real.__name__ == "write_record":
                    self._written(arguments[1])
                if self._armed == 0:
                    self._note(f"crash after {real.__name__}")
                    raise Crash

            return write

        stack = ExitStack()
        for module, name in WRITES:
            stack.enter_context(patch(f"{module}.{name}", wrapped(getattr(import_module(module), name))))
        stack.enter_context(
            patch("zmpsl.roles.publishing.dump_job", lambda _: "")
        )  # nobody reads it, and it takes long
        stack.enter_context(
            patch(
                "zmpsl.loops.station.Outbox",
                lambda sender, pack, size, sealed: Outbox(sender, pack, self.credit_bytes or size, sealed=sealed),
            )
        )
        return stack


LARGEST = 1 << 16  # no tensor of the small models in these tests is larger
