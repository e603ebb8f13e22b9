"""Who holds a replica on a compute node, and who waits for one. Reserve first, build then; never above the room.

    owner's state   event     next state
    FREE            wait      WAITING       it wants a replica, there is no room yet
    FREE, WAITING   reserve   RESERVED      its bytes are set aside
    RESERVED        build     TRAINING      the replica exists
    TRAINING        fold      FOLDED        its work is in the sum: counts once, for the rest of the round
    not FOLDED      set aside ASIDE         its replica is on disk, or was never built: others may have its place
    ASIDE           take up   WAITING       it may come back, as soon as there is room
    not FOLDED      drop      FREE          left out of the round
    FOLDED          begin     FREE          the next round

The replica of an owner that was folded or set aside is kept as a spare, with the memory of its weights and
optimiser state, and becomes the next owner's.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

from zmpsl.errors import JobError, RemoteProtocolError
from zmpsl.pool.account import PartMemory, fitting
from zmpsl.pool.budget import readable

__all__ = ["TRANSITIONS", "ReplicaPool", "State"]

R = TypeVar("R")


class State(Enum):
    """Where an owner stands on this node in this round."""

    FREE = "free"
    WAITING = "waiting"
    RESERVED = "reserved"
    TRAINING = "training"
    FOLDED = "folded"
    ASIDE = "set aside"


TRANSITIONS: dict[tuple[State, str], State] = {
    (State.FREE, "wait"): State.WAITING,
    (State.FREE, "reserve"): State.RESERVED,
    (State.WAITING, "reserve"): State.RESERVED,
    (State.RESERVED, "build"): State.TRAINING,
    (State.TRAINING, "fold"): State.FOLDED,
    (State.FREE, "set aside"): State.ASIDE,
    (State.WAITING, "set aside"): State.ASIDE,
    (State.RESERVED, "set aside"): State.ASIDE,
    (State.TRAINING, "set aside"): State.ASIDE,
    (State.ASIDE, "take up"): State.WAITING,
    (State.FREE, "drop"): State.FREE,
    (State.WAITING, "drop"): State.FREE,
    (State.RESERVED, "drop"): State.FREE,
    (State.TRAINING, "drop"): State.FREE,
    (State.ASIDE, "drop"): State.FREE,
    (State.FOLDED, "begin"): State.FREE,
}


class ReplicaPool(Generic[R]):
    """The replicas of one node, bounded by its room.

    Args:
        memory: What the part costs.
        room: Bytes there are; None is no limit.
        owners: Most owners that can ever be in flight.
        place: Names the node in messages.

    Attributes:
        memory: What the part costs, as known by now.
        capacity: Most owners that may hold memory.
        waits: How often an owner had to wait.
        peak_bytes: The most that was ever set aside.

    Raises:
        JobError: Not even one replica fits.
    """

    def __init__(self, memory: PartMemory, room: int | None, owners: int, place: str = "node") -> None:
        self._owners = owners
        self._room = room
        self._place = place
        self._states: dict[int, State] = {}
        self._replicas: dict[int, R] = {}
        self._promised: dict[int, R] = {}  # spares set aside for owners whose replica is not built yet
        self._spares: list[R] = []
        self.waits = 0
        self.peak_bytes = 0
        self.resize(memory)

    @property
    def in_use(self) -> int:
        """Owners that hold memory: reserved or training."""
        return self._count(State.RESERVED) + self._count(State.TRAINING)

    @property
    def held(self) -> int:
        """Replicas whose memory is set aside: in use, or spare."""
        return self.in_use + len(self._spares)

    @property
    def reserved_bytes(self) -> int:
        """What is set aside now, base and sum included."""
        return self.memory.need(self.held)

    @property
    def kept_bytes(self) -> int:
        """What receive buffers may keep."""
        return self.memory.kept(self.capacity)

    @property
    def waiting(self) -> list[int]:
        """Owners that wait for room, in the order they came."""
        return [owner for owner, state in self._states.items() if state is State.WAITING]

    def state(self, owner: int) -> State:
        """Tells where an owner stands."""
        return self._states.get(owner, State.FREE)

    def resize(self, memory: PartMemory) -> None:
        """Takes a new account of the part's costs; spares that no longer fit are given up.

        Raises:
            JobError: Not even one replica fits.
        """
        self.memory = memory
        self.capacity = fitting(memory, self._room, self._owners)
        if self.capacity < 1:
            raise JobError(
                f"{self._place}: one replica needs {readable(memory.need(1))}, there is room for"
                f" {readable(self._room or 0)}; give the node more memory, use smaller or more micro-batches, or cut"
                " the model into more parts"
            )
        while self._spares and self.held > self.capacity:
            self._spares.pop()

    def admit(self, owner: int) -> bool:
        """Reserves memory for an owner that has none yet; False while there is no room, or it has been set aside.

        An owner that has been folded is not turned away here: `get` refuses it.
        """
        state = self.state(owner)
        if state is State.ASIDE:
            return False
        if state not in (State.FREE, State.WAITING):
            return True
        if self.in_use >= self.capacity:
            if state is State.FREE:
                self._move(owner, "wait")
                self.waits += 1
            return False
        self._move(owner, "reserve")
        if self._spares:
            self._promised[owner] = self._spares.pop()
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        return True

    def get(self, owner: int, build: Callable[[int, R | None], R] | None = None) -> R:
        """Gives an owner's replica.

        Args:
            owner: Whose.
            build: Makes it if it was only reserved; gets the owner, and a spare replica to make it of or None. It is
                not kept: pool and builder would hold each other's memory.

        Raises:
            RemoteProtocolError: There is none, nothing is reserved for it, or it was folded.
        """
        if build is not None and self.state(owner) is State.RESERVED:
            self._move(owner, "build")
            self._replicas[owner] = build(owner, self._promised.pop(owner, None))
        replica = self._replicas.get(owner)
        if replica is None:
            raise RemoteProtocolError(f"{self._place}: owner {owner} is {self.state(owner).value}, it has no replica")
        return replica

    def fold(self, owner: int) -> R:
        """Ends an owner's work of this round; its replica can be read until the next `admit`.

        Raises:
            RemoteProtocolError: It has no replica, or was folded already.
        """
        self._move(owner, "fold")
        replica = self._replicas.pop(owner)
        self._keep(replica)
        return replica

    def set_aside(self, owner: int) -> None:
        """Gives an owner's place away; whatever its replica held must be elsewhere by now.

        Raises:
            RemoteProtocolError: It was folded, or set aside already.
        """
        self._move(owner, "set aside")
        self._free(owner)

    def take_up(self, owner: int) -> None:
        """Lets an owner that was set aside be admitted again.

        Raises:
            RemoteProtocolError: It was not.
        """
        self._move(owner, "take up")

    def drop(self, owner: int) -> None:
        """Leaves an owner out of the round; its replica counts nothing."""
        self._move(owner, "drop")
        self._free(owner)

    def begin(self) -> None:
        """Starts a round: whoever was not folded is dropped."""
        for owner, state in list(self._states.items()):
            if state is State.FOLDED:
                self._move(owner, "begin")
            else:
                self.drop(owner)
        self._states.clear()

    def _free(self, owner: int) -> None:
        for holders in (self._replicas, self._promised):
            if owner in holders:
                self._keep(holders.pop(owner))

    def _keep(self, replica: R) -> None:
        if self.held < self.capacity:
            self._spares.append(replica)

    def _count(self, state: State) -> int:
        return sum(each is state for each in self._states.values())

    def _move(self, owner: int, event: str) -> None:
        before = self.state(owner)
        after = TRANSITIONS.get((before, event))
        if after is None:
            raise RemoteProtocolError(f"{self._place}: cannot {event} owner {owner}, it is {before.value}")
        self._states[owner] = after
