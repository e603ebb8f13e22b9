"""Who has joined the manager, and which places there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from zmpsl import __version__
from zmpsl.errors import JoinError, RemoteProtocolError
from zmpsl.job.schema import Job
from zmpsl.messages import PROTOCOL, Accuse, Aside, Described, Evaluated, Join, Prepared, Profiled, ToManager, Trained
from zmpsl.plan import AGGREGATOR, Peer, node_name, owner_name

__all__ = ["NEW", "Roster", "Seat", "check_said", "listed", "places_of"]

# A role that has just begun has no work to drop.
NEW = 1 << 62
STANDBY = "standby"
ROLES = ("owner", "compute", AGGREGATOR)


def places_of(role: str, owners: int, nodes: int) -> list[str]:
    """Gives the places of a role, in order.

    Raises:
        JoinError: There is no such role.
    """
    if role == "compute":
        return [node_name(hop) for hop in range(nodes)]
    if role == "owner":
        return [owner_name(index) for index in range(owners)]
    if role == AGGREGATOR:
        return [AGGREGATOR]
    raise JoinError(f"{role!r} is no role; known are {', '.join(ROLES)}")


def check_said(seat: Seat, message: ToManager) -> None:
    """Checks that a member of this role says such a thing, and of itself.

    Raises:
        RemoteProtocolError: It does not.
    """
    role, place = seat.join.role, seat.place
    right = {
        Described: role == "owner",
        Profiled: role != AGGREGATOR,
        Trained: role == "owner",
        Evaluated: role == "owner",
        Prepared: role != "owner" and isinstance(message, Prepared) and set(message.digests) == {place},
        Accuse: role != "owner",
        Aside: role == "compute",
    }.get(type(message), True)
    if not right:
        raise RemoteProtocolError(f"{place} says {type(message).__name__}, which is not its to say")


def listed(places: Iterable[str]) -> str:
    """Names places in a natural order, not more than eight of them."""
    names = sorted(places, key=lambda name: (name.rstrip("0123456789"), len(name), name))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


@dataclass
class Seat:
    """A member that has joined.

    Attributes:
        identity: Its address on the control plane.
        join: What it said of itself.
        place: The place it got.
        ready: It holds its base weights.
        paused: The last plan whose work it has dropped; NEW where it has worked on none.
        planned: It has a place in the current plan.
        heard_at: When it last said something, None before the manager has looked.
        unreachable_since: When its connection was found closed, None while it is open.
        key: An owner's public key for masks under the current plan.
    """

    identity: bytes
    join: Join
    place: str
    ready: bool = False
    paused: int = 0
    planned: bool = False
    heard_at: float | None = None
    unreachable_since: float | None = None
    key: bytes = b""

    @property
    def standby(self) -> bool:
        """True for a compute node that waits to take another's place."""
        return self.place.startswith(STANDBY)

    def __str__(self) -> str:
        return f"{self.place} (process {self.join.pid} on {self.join.host})"


class Roster:
    """The members by identity."""

    def __init__(self) -> None:
        self._seats: dict[bytes, Seat] = {}
        self._benched = False  # nodes have moved up, so what a process was started as may no longer be its place

    def __len__(self) -> int:
        return len(self._seats)

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats.values()))

    def get(self, identity: bytes) -> Seat | None:
        """Gives the member with that identity."""
        return self._seats.get(identity)

    def remove(self, identity: bytes) -> Seat | None:
        """Takes a member out; its place is free again."""
        return self._seats.pop(identity, None)

    def add(self, identity: bytes, join: Join, job: Job | None) -> Seat:
        """Gives a member its place.

        Raises:
            JoinError: Another version of the protocol, no such place, a place that is taken, or none left.
        """
        if join.protocol != PROTOCOL:
            raise JoinError(
                f"this manager speaks protocol {PROTOCOL} (zmpsl {__version__}), {join.role} speaks {join.protocol} "
                f"(zmpsl {join.version}); install the same version on all hosts"
            )
        if join.role == "compute" and join.place.startswith(STANDBY):
            return self._seat(identity, join, self._free_standby())
        # Before there is a job nobody knows how many places there will be; those too many are refused with the job.
        unknown = len(self) + 1
        places = places_of(join.role, *((job.owners, job.nodes) if job is not None else (unknown, unknown)))
        taken = {seat.place: seat for seat in self}
        free = next((place for place in places if place not in taken), "")
        place = join.place or free
        if join.role == "compute" and job is not None and place not in places:
            place = free if job.recover.fewer_nodes or self._benched else place  # that place has been planned away
        if join.role == "compute" and self._benched and (not place or place in taken):
            place = self._free_standby()
            return self._seat(identity, join, place)
        if not place:
            raise JoinError(f"all places for role {join.role!r} are taken: {listed(places)}")
        if place not in places and job is not None:
            raise JoinError(f"{join.role} asks for place {place!r}; this job has {listed(places)}")
        if place in taken:
            raise JoinError(
                f"place {place} is taken by process {taken[place].join.pid} on {taken[place].join.host}; "
                f"two cannot hold it"
            )
        return self._seat(identity, join, place)

    def bench(self, seat: Seat) -> None:
        """Makes a compute node a stand-by."""
        seat.place = self._free_standby()
        self.shuffled()

    def shuffled(self) -> None:
        """Notes that a place may no longer be that of the process started for it, which may stand by from now on."""
        self._benched = True

    def _free_standby(self) -> str:
        return next(name for n in range(len(self) + 1) if self.at(name := f"{STANDBY}-{n}") is None)

    def _seat(self, identity: bytes, join: Join, place: str) -> Seat:
        seat = self._seats[identity] = Seat(identity, join, place)
        return seat

    def surplus(self, job: Job) -> list[Seat]:
        """Gives the members the job has no place for."""
        placed = [seat for seat in self if not seat.standby]
        return [seat for seat in placed if seat.place not in places_of(seat.join.role, job.owners, job.nodes)]

    def missing(self, job: Job) -> set[str]:
        """Gives the places of the job that nobody has taken."""
        wanted = {place for role in ROLES for place in places_of(role, job.owners, job.nodes)}
        return wanted - {seat.place for seat in self}

    def waiting(self) -> list[Seat]:
        """Gives the stand-by nodes."""
        return [seat for seat in self if seat.standby]

    def at(self, place: str) -> Seat | None:
        """Gives the member at a place, None when the place is free."""
        return next((seat for seat in self if seat.place == place), None)

    def peer(self, place: str) -> Peer:
        """Gives address and key of the member at a place; empty ones when it is free."""
        seat = self.at(place)
        return Peer(place, seat.join.endpoint, seat.join.public) if seat is not None else Peer(place, "")
