"""Owners that stall while others wait: whose place is given away, and who has it again. The manager's notes.

    in flight --SetAside--> leaving ----all nodes have set it aside----> away ---a task came---> queued
        ^                      |                                                                   |
        +------TakeUp----------+--one node could not                                               |
        +------TakeUp----------------------------------------------------a place is free-----------+

An owner has its place on all nodes or on none: it keeps it while it is leaving, and has it again before any node takes
it up. Its CLOSE may be all that is left; then it keeps the place until every node has added its work to the sum, for
else the next owner could get the place on one node and it on another, and each would wait for the other for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from zmpsl.errors import RemoteProtocolError

__all__ = ["Asides", "Stage", "Stalls"]


class Stalls:
    """Watches who trains no batch for too long.

    Args:
        setting: The job's `recover.stalled_s`.
        owners: How many there are; many in one process tell less often how far they are.
    """

    LEAST_S, LEAST_S_PER_OWNER, TIMES, AT_FIRST_S = 10.0, 0.05, 10, 120.0

    def __init__(self, setting: float | str = "never", owners: int = 0) -> None:
        self._setting = setting
        self._least_s = self.LEAST_S + self.LEAST_S_PER_OWNER * owners
        self._seen: dict[str, tuple[int, float]] = {}
        self._took_s, self._batches = 0.0, 0

    @property
    def limit_s(self) -> float:
        """How long is too long, by what batches took so far."""
        if not isinstance(self._setting, str):
            return self._setting
        if not self._batches:
            return self.AT_FIRST_S
        return max(self._least_s, self.TIMES * self._took_s / self._batches)

    def look(self, now: float, batches: Mapping[str, int]) -> list[str]:
        """Gives who has stalled.

        Args:
            now: Seconds.
            batches: That each owner in flight has trained in this round.
        """
        for owner, done in batches.items():
            before, since = self._seen.get(owner, (done, now))
            if done > before:
                self._took_s += now - since
                self._batches += done - before
            self._seen[owner] = (done, since if done == before else now)
        self._seen = {owner: self._seen[owner] for owner in batches}
        if self._setting == "never":
            return []
        return [owner for owner, (_, since) in self._seen.items() if now - since > self.limit_s]


class Stage(Enum):
    """Where an owner stands that was asked to give up its place in this round."""

    LEAVING = "leaving"
    AWAY = "away"
    QUEUED = "queued"
    BACK = "back"


class Asides:
    """Who was asked to give up its place in this round.

    Args:
        nodes: Places of all compute nodes.

    Attributes:
        able: False once a node could not: then nobody is asked any more under this plan.
    """

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        self._nodes = frozenset(nodes)
        self.able = True
        self.restart()

    def restart(self) -> None:
        """A round begins."""
        self._stages: dict[str, Stage] = {}
        self._missing: dict[str, set[str]] = {}  # nodes that have not said yet that they set it aside
        self._open: dict[str, set[str]] = {}  # nodes that have not closed it
        self._came: set[str] = set()
        self._trained: set[str] = set()

    def stage(self, owner: str) -> Stage | None:
        """Tells where an owner stands, None where it was never asked."""
        return self._stages.get(owner)

    def at(self, *stages: Stage) -> set[str]:
        """Gives who stands there."""
        return {owner for owner, stage in self._stages.items() if stage in stages}

    def may_leave(self, owners: Iterable[str]) -> list[str]:
        """Gives those who can be asked: who is not leaving already, and has more to do than to close."""
        leaving = self.at(Stage.LEAVING)
        return [owner for owner in owners if self.able and owner not in leaving and owner not in self._trained]

    def leave(self, owner: str) -> None:
        """All nodes are asked to set an owner in flight aside."""
        self._stages[owner] = Stage.LEAVING
        self._missing[owner] = set(self._nodes)
        self._open.setdefault(owner, set(self._nodes))
        self._came.discard(owner)

    def hear(self, node: str, owner: str, state: str) -> Stage | None:
        """A node tells something of an owner that was asked.

        Returns:
            The stage it has come to by that: AWAY when its place is free, QUEUED when it wants one, BACK when it keeps
            its place; None where that changes nothing.

        Raises:
            RemoteProtocolError: That owner was never asked.
        """
        stage = self._stages.get(owner)
        if stage is None:
            raise RemoteProtocolError(f"{node} tells of {owner}, which was not to be set aside")
        if state == "came":
            self._came.add(owner)
            return self._to(owner, Stage.QUEUED) if stage is Stage.AWAY else None
        if state == "closed":
            self._open[owner].discard(node)
        if stage is not Stage.LEAVING:
            return None
        if state == "failed":
            self.able = False
            return self._to(owner, Stage.BACK)
        self._missing[owner].discard(node)
        if self._missing[owner]:
            return None
        return self._to(owner, Stage.AWAY if self._open[owner] else Stage.BACK)

    def wants_back(self, owner: str) -> bool:
        """An owner's place was given away; tells whether it wants one already, and notes that it waits for it."""
        wants = owner in self._came or owner in self._trained
        if wants:
            self._to(owner, Stage.QUEUED)
        return wants

    def take_up(self, owner: str) -> bool:
        """An owner gets a place; tells whether that is one which was set aside."""
        if self._stages.get(owner) is not Stage.QUEUED:
            return False
        self._to(owner, Stage.BACK)
        return True

    def trained(self, owner: str) -> Stage | None:
        """An owner says that it has trained its round; gives the stage it has come to by that, as `hear` does."""
        if owner in self._stages:
            self._trained.add(owner)
            if self._stages[owner] is Stage.AWAY:
                return self._to(owner, Stage.QUEUED)
        return None

    def finished(self, owner: str) -> bool:
        """Tells whether an owner that has trained needs its place no more."""
        return owner not in self._stages or self.over(owner)

    def over(self, owner: str) -> bool:
        """Tells whether an owner that was asked has trained, and its work is in the sum on every node."""
        return owner in self._trained and not self._open[owner]

    def _to(self, owner: str, stage: Stage) -> Stage:
        self._stages[owner] = stage
        return stage
