"""A run in memory on which faults fall, drawn from a seed: crashes of every role, cut links, lost control messages.

The same roles, plan, wire format and credits as over sockets. A crash also falls inside the commit: before or after
each file is written. So many faults fall; then none do any more, and the run must come to its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from zmpsl.checkpoint import read_record
from zmpsl.errors import LocalProtocolError, RemoteProtocolError, error_for
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun, _Place
from zmpsl.plan import AGGREGATOR, node_name, owner_name
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.owner import DataOwner

__all__ = ["Crash", "FaultyRun"]

# Functions that write to the disk, and the module that calls them: where a crash is worst.
WRITES = [
    *(("zmpsl.roles.manager", name) for name in ("write_index", "write_record")),
    ("zmpsl.roles.publishing", "write_record"),
    *((f"zmpsl.roles.{role}", "save_parts") for role in ("compute", "aggregator")),
]
FAULTS = ("crash", "cut link", "cut control", "crash manager", "crash in a write")
LIMIT = 400_000


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
        standby: Number of stand-by nodes.

    Attributes:
        fallen: What happened, in words.
        commits: Digests by round, as every manager of the run wrote them.
    """

    def __init__(
        self,
        job: Job,
        seed: int,
        runs: Path,
        faults: int = 5,
        every: int = 120,
        loses: str = "",
        loses_in: int = 0,
        standby: int = 0,
    ) -> None:
        super().__init__(job, seed, runs)
        self.job, self.runs = job, runs
        names = [AGGREGATOR, *map(node_name, range(job.nodes)), *map(owner_name, range(job.owners))]
        for place, name in zip(self._places.values(), names, strict=True):
            place.station.member.place = name  # as `zmpsl run` starts them: a place is for life
        for number in range(len(names), len(names) + standby):
            self._places[number] = _Place(ComputeNode(runs, "standby"), number)
        self.fallen: list[str] = []
        self.commits: list[tuple[int, dict[str, str]]] = []
        self._left, self._every = faults, every
        self._loses, self._loses_in = loses, loses_in
        self._armed = 0  # a crash falls inside the armed-th write from now
        self._now = 0.0
        self._gone: set[bytes] = set()
        self._absent: list[str] = []

    def run(self) -> None:
        """Runs to the end."""
        with self._patched():
            for place in list(self._places.values()):
                self._perform(place, place.station.member.start(f"memory://{place.identity.hex()}"))
            for _ in range(LIMIT):
                if self.manager.exit is not None:
                    break
                if self._loses and self.manager.phase is Phase.TRAINING and self.manager.round == self._loses_in:
                    self._crash(self._by_name[self._loses])
                    self._absent.clear()
                    self._loses = ""
                elif self._left and not self.random.randrange(self._every):
                    self._fault()
                else:
                    self._step()
            else:
                raise LocalProtocolError(f"no end after {LIMIT} moves; {self.manager.phase} {self.fallen}")
        if self.manager.exit.exit_code:
            raise error_for(self.manager.exit.exit_code, f"{self.manager.exit.text} {self.fallen}")

    # -- moves --------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        moves = [move for place in self._places.values() for move in self._moves(place)]
        number = self.random.randrange(len(moves) + 2)
        if self._absent and not self.random.randrange(10):
            self._come_back(self._absent.pop())
        elif number >= len(moves):
            self._tick()
        else:
            what, place, arg = moves[number]
            try:
                self._move(what, place, arg)
            except RemoteProtocolError:
                pass  # of a plan that is void; counted, not used
            except Crash:
                self._crash_inside(what, place)

    def _move(self, what: str, place: _Place, arg: str) -> None:
        if what == "hear":
            self._by_manager(self.manager.hear(place.identity, place.said.popleft()))  # type: ignore[arg-type]
        elif what == "leave" and (arg not in self._by_name or self._by_name[arg].identity in self._gone):
            place.station.outboxes[arg].next()  # into a connection that is closed
        else:
            super()._move(what, place, arg)

    def _tick(self) -> None:
        self._now += 0.06
        self._by_manager(self.manager.tick(self._now))

    def _by_manager(self, actions: Iterator[Action]) -> None:
        for action in actions:
            if not isinstance(action, Tell):
                continue
            number = int.from_bytes(action.to, "big")
            if number in self._places:
                self._places[number].told.append(action.message)
                self.manager.reachable(action.to)
            else:
                self._by_manager(self.manager.unreachable(action.to, self._now))

    # -- faults -------------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        self._left -= 1
        kind = self.random.choice(FAULTS)
        place = self.random.choice(list(self._places.values()))
        name = place.station.member.place
        match kind:
            case "crash" if name:
                self._crash(place)
            case "cut link" if any(place.arriving.values()):
                sender = self.random.choice(list(place.arriving))
                self.fallen.append(f"link {sender} > {name} cut")
                place.arriving[sender].clear()
                if sender in self._by_name:
                    self._perform(self._by_name[sender], self._by_name[sender].station.member.broken(name))
            case "cut control" if name:
                self.fallen.append(f"control of {name} cut")
                self._cut_control(place)
            case "crash manager":
                self._crash_manager()
            case "crash in a write":
                self._armed = self.random.randrange(1, 6)

    def _crash(self, place: _Place) -> None:
        name = place.station.member.place
        self.fallen.append(f"{name} killed")
        del self._places[int.from_bytes(place.identity, "big")]
        self._gone.add(place.identity)
        self._absent.append(name)
        for other in self._places.values():
            other.arriving.pop(name, None)
            if name in other.station.outboxes:
                self._perform(other, other.station.member.broken(name))

    def _come_back(self, name: str) -> None:
        kind = Aggregator if name == AGGREGATOR else ComputeNode if name.startswith("node") else DataOwner
        number = 1 + max(*self._places, *(int.from_bytes(gone, "big") for gone in self._gone), 0)
        place = self._places[number] = _Place(kind(self.runs, name), number)
        self._by_name[name] = place
        self._perform(place, place.station.member.start(f"memory://{place.identity.hex()}"))

    def _cut_control(self, place: _Place) -> None:
        place.said.clear()
        place.told.clear()
        self._perform(place, place.station.member.rejoin())

    def _crash_manager(self) -> None:
        self.fallen.append(f"manager killed in {self.manager.phase.value} round {self.manager.round}")
        folder = self.runs / "memory"
        self.manager.board.close()
        record = read_record(folder) if (folder / "record.json").exists() else None
        self.manager = Manager(self.runs, self.job, "memory", record)
        for place in list(self._places.values()):
            place.told.clear()
            self._perform(place, place.station.member.rejoin())

    def _crash_inside(self, what: str, place: _Place) -> None:
        if what in ("hear", "tick"):
            self._crash_manager()
        else:
            self._crash(place)

    def _patched(self) -> Any:
        """The functions that write, each a place to crash before or after."""

        def wrapped(real: Callable[..., None]) -> Callable[..., None]:
            def write(*arguments: Any) -> None:
                self._armed -= 1
                if self._armed == 0 and self.random.random() < 0.5:
                    self.fallen.append(f"crash before {real.__name__}")
                    raise Crash
                real(*arguments)
                if real.__name__ == "write_record":
                    record = arguments[1]
                    if record.last >= 0:
                        self.commits.append((record.last, dict(record.committed[record.last])))
                if self._armed == 0:
                    self.fallen.append(f"crash after {real.__name__}")
                    raise Crash

            return write

        stack = ExitStack()
        for module, name in WRITES:
            stack.enter_context(patch(f"{module}.{name}", wrapped(getattr(import_module(module), name))))
        return stack
