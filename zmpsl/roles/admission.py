"""Which owners train, or evaluate, at the same time: as many as fill the chain, and every compute node has memory for.

The manager decides alone: an owner is admitted on all nodes or on none, so no two owners can ever hold what the other
one waits for. When one is done, the next is told to begin. Results do not depend on who trains at the same time.

By Little's law round trip / bottleneck owners keep the busiest node busy; more only take memory. What was measured
before the run may be wrong: owners and links differ, and change. So this is where a run begins, and while the busiest
node has to wait, though there are owners and memory, more are let in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from zmpsl.errors import JobError
from zmpsl.job.schema import Job
from zmpsl.messages import Join
from zmpsl.observe.readable import some
from zmpsl.plan import Block, Footprint, node_name, owner_name
from zmpsl.pool.account import PartMemory, fitting, part_memory
from zmpsl.pool.budget import Limits, readable, room_of

__all__ = ["Admission", "Filling", "Places", "rooms_of"]

# Forward is run again only where batches then follow one another in this share of the time: predictions are not exact.
WORTH = 0.9


class Admission:
    """Owners in flight of one kind of work.

    Args:
        owners: Place names of all.
        limit: Most of them at a time; they are all where not given.

    Attributes:
        most: That limit.
        limit: Most of them at a time now.
        to_fill: How many fill the chain; infinitely many where nothing is known.
    """

    def __init__(self, owners: Sequence[str] = (), limit: int | None = None) -> None:
        self.owners = tuple(owners)
        self.limit = self.most = len(owners) if limit is None else limit
        self.to_fill = math.inf
        self._next: deque[str] = deque()
        self._flying: set[str] = set()

    @property
    def waiting(self) -> int:
        """Owners that have not begun."""
        return len(self._next)

    @property
    def flying(self) -> frozenset[str]:
        """Who has begun and is not done."""
        return frozenset(self._flying)

    def start(self, round_: int) -> list[str]:
        """Starts a round; gives who begins. Who comes first turns with the rounds; results do not depend on it."""
        turn = round_ * self.limit % max(1, len(self.owners))
        self._next = deque(self.owners[turn:] + self.owners[:turn])
        self._flying.clear()
        return self._fill()

    def aim(self, to_fill: float, more: bool = True) -> None:
        """Takes in how many fill the chain; with `more` begins with as many and half as many again, as batches bunch.

        Owners that begin together also end together. So that the last of them are not too few to fill the chain, up to
        half as many more begin, where the owners then come out even.
        """
        self.to_fill = to_fill
        if more and math.isfinite(to_fill):
            least = min(self.most, 1 + math.ceil(1.5 * to_fill))
            some = range(least, min(self.most, least + least // 2) + 1)
            self.limit = min(some, key=lambda limit: -len(self.owners) % limit)

    def widen(self) -> list[str]:
        """Lets in half as many more, as far as they fit; gives who begins."""
        self.limit = min(self.most, self.limit + max(1, self.limit // 2))
        return self._fill()

    def done(self, owner: str) -> list[str]:
        """An owner has finished; gives who begins next."""
        self._flying.discard(owner)
        return self._fill()

    def leave(self, owner: str) -> list[str]:
        """An owner gives up its place before it is done; gives who begins next."""
        return self.done(owner)

    def queue(self, owner: str) -> list[str]:
        """An owner that gave up its place wants one again, after all who wait now; gives who goes on or begins."""
        self._next.append(owner)
        return self._fill()

    def _fill(self) -> list[str]:
        begin = []
        while self._next and len(self._flying) < self.limit:
            begin.append(self._next.popleft())
            self._flying.add(begin[-1])
        return begin


class Filling:
    """Watches whether the busiest node has to wait.

    Over a window of time, in which every owner in flight has got through some batches, it worked less than `ENOUGH`.
    """

    WINDOW_S, BATCHES, ENOUGH = 3.0, 4, 0.9

    def __init__(self) -> None:
        self._since: tuple[float, int, dict[str, float]] | None = None

    def restart(self) -> None:
        """Forgets what was seen; a round begins, or other owners do."""
        self._since = None

    def waits(self, now: float, batches: int, busy: Mapping[str, float], owners: int) -> bool:
        """Looks now and then.

        Args:
            now: Seconds.
            batches: That were trained in this round by now.
            busy: Seconds that each node has worked in this round.
            owners: In flight.
        """
        if self._since is None:
            self._since = now, batches, dict(busy)
        start, before, worked = self._since
        if now - start < self.WINDOW_S or batches - before < self.BATCHES * owners:
            return False
        self._since = None
        most = max((seconds - worked.get(node, 0.0) for node, seconds in busy.items()), default=math.inf)
        return most < self.ENOUGH * (now - start)


def rooms_of(job: Job, joins: Mapping[str, Join]) -> tuple[int | None, ...]:
    """Gives the bytes that each compute node has for its part, by hop; None where nobody knows.

    The least of: its budget, or the job's, less what its process takes; `planning.node_memory`; the device it imitates.
    """
    nodes = [joins[node_name(hop)] for hop in range(job.nodes)]
    hosts = [join.host for join in nodes]
    limits = [Limits(join.host_bytes, join.used_bytes, join.memory) for join in nodes]
    rooms = []
    for hop in range(job.nodes):
        kind = job.emulate.node(hop)
        known = [None if kind is None else kind.memory_bytes, job.planning.node_memory.get(node_name(hop))]
        if kind is None or kind.compute != "none":  # who computes nothing holds no replica here, whatever it imitates
            known.append(room_of(job.memory, limits[hop], hosts.count(hosts[hop])))
        rooms.append(min((int(room) for room in known if room is not None), default=None))
    return tuple(rooms)


class Places:
    """How many owners all nodes together have memory for.

    Args:
        job: The job.
        blocks: Of the model.
        bounds: Of the parts.
        footprints: Of the blocks, empty where not known.
        joins: By place, what those who take part said of themselves.
        batch_s: Gives seconds per batch with so many owners in flight if nodes run forward again, None if unknown.

    Attributes:
        rooms: Bytes each compute node has for its part, None where nobody knows.
        parts: What each node's part costs.
        training: Who may train at a time.
        evaluating: Who may evaluate.

    Raises:
        JobError: A node has no room for the replicas the job asks for, or not for a single one.
    """

    def __init__(
        self,
        job: Job,
        blocks: tuple[Block, ...],
        bounds: Sequence[int],
        footprints: tuple[Footprint, ...],
        joins: Mapping[str, Join],
        batch_s: Callable[[int, Collection[str]], float | None] | None = None,
    ) -> None:
        self.rooms = rooms_of(job, joins)
        self.parts = [part_memory(job, blocks, bounds, footprints, hop + 1) for hop in range(job.nodes)]
        self._bounds = bounds
        owners = [place for place in map(owner_name, range(job.owners)) if place in joins]
        least = 1 if job.owners_in_flight == "auto" else min(job.owners_in_flight, len(owners))
        most = len(owners) if job.owners_in_flight == "auto" else least
        if job.recompute == "always":
            self.parts = [replace(memory, recompute=True) for memory in self.parts]
        elif job.recompute == "auto":
            self._save_memory(least, most, batch_s or (lambda _owners, _again: None))
        fit = min(self._fitting(hop, least, most) for hop in range(job.nodes))
        self.training = Admission(owners, fit)
        self.evaluating = Admission(owners, min(self._evaluating(hop, fit, len(owners)) for hop in range(job.nodes)))

    def __str__(self) -> str:
        fit, now = self.training.most, self.training.limit
        each = [
            f"{node_name(hop)} takes {readable(memory.need(fit))} of {'?' if room is None else readable(room)}"
            for hop, (memory, room) in enumerate(zip(self.parts, self.rooms, strict=True))
        ]
        fills = f"; {now} should fill the chain, so {now} begin" if now < fit else ""
        if fit < self.training.to_fill < math.inf:
            fills = f"; {self.training.to_fill:.1f} would fill the chain, so its slowest node will have to wait"
        again = some(self.recompute)
        twice = f"; forward is run again before backward, to need less (recompute), on {again}" if again else ""
        return f"{fit} of {len(self.training.owners)} owners can train at a time: {', '.join(each)}{fills}{twice}"

    @property
    def recompute(self) -> list[str]:
        """Nodes that run forward again before backward."""
        return _again(self.parts)

    def _save_memory(self, least: int, most: int, batch_s: Callable[[int, Collection[str]], float | None]) -> None:
        """Has nodes run forward again that else could not hold enough owners, or so few that the chain is not full."""
        for hop, (memory, room) in enumerate(zip(self.parts, self.rooms, strict=True)):
            less = replace(memory, recompute=memory.repeatable)
            if room is not None and less.need(least) <= room < memory.need(least):
                self.parts[hop] = less
        while True:
            fits = [fitting(memory, room, most) for memory, room in zip(self.parts, self.rooms, strict=True)]
            fewest = min(fits)
            tried = [
                replace(memory, recompute=memory.recompute or (memory.repeatable and fit == fewest))
                for memory, fit in zip(self.parts, fits, strict=True)
            ]
            more = min(fitting(memory, room, most) for memory, room in zip(tried, self.rooms, strict=True))
            if not least <= fewest < more:
                return
            before, after = batch_s(fewest, _again(self.parts)), batch_s(more, _again(tried))
            if before is None or after is None or after > WORTH * before:
                return
            self.parts = tried

    def _fitting(self, hop: int, least: int, most: int) -> int:
        memory, room = self.parts[hop], self.rooms[hop]
        found = fitting(memory, room, most)
        if found < least and room is not None:
            raise JobError(_too_small(hop, self._bounds, memory, room, least))
        return found

    def _evaluating(self, hop: int, replicas: int, owners: int) -> int:
        memory, room = self.parts[hop], self.rooms[hop]
        if room is None or not memory.evaluation_slot:
            return owners
        left = room - memory.need_evaluating(0, replicas)
        return max(1, min(owners, left // memory.evaluation_slot))


def _again(parts: Sequence[PartMemory]) -> list[str]:
    return [node_name(hop) for hop, memory in enumerate(parts) if memory.recompute]


def _too_small(hop: int, bounds: Sequence[int], memory: PartMemory, room: int, owners: int) -> str:
    what = ", ".join(f"{name} {readable(nbytes)}" for name, nbytes in memory.rows(owners) if nbytes)
    replicas = "one owner's replica" if owners == 1 else f"the replicas of {owners} owners (owners_in_flight)"
    again = memory.repeatable and replace(memory, recompute=True).need(owners) <= room
    less = "run forward again before backward, which would fit (recompute: auto), " if again else ""
    return (
        f"{node_name(hop)}: part {hop + 1} (blocks {bounds[hop + 1]} to {bounds[hop + 2] - 1}) with {replicas} needs"
        f" {memory.need(owners)} bytes ({readable(memory.need(owners))}: {what}), but the node has {room} bytes"
        f" ({readable(room)}) for it (memory, planning.node_memory); {less}give it more, cut the model into more or"
        " other parts, or use smaller batches"
    )
