"""The manager and places in flight: who is let in, and who must give way because it has stalled."""

from __future__ import annotations

from collections.abc import Iterator

from zmpsl.messages import Aside, Begin, FromManager, SetAside, TakeUp
from zmpsl.plan import owner_name
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.asides import Stage
from zmpsl.roles.manager_state import Phase
from zmpsl.roles.publishing import Publishing

__all__ = ["Yielding"]


class Yielding(Publishing):
    """The part of the manager that deals with places in flight."""

    def set_aside(self, place: str) -> Iterator[Action]:
        """Asks all nodes to write an owner's replica to disk; when all have, its place goes to who waits."""
        self._asides.leave(place)
        yield from self._tell_nodes(SetAside(round=self.round, owner=_index(place)))

    def _give_places(self, now: float) -> Iterator[Action]:
        """Has owners that have stalled give way to those that wait, where there is not memory for both."""
        training = self._training
        flying = training.flying if self.phase is Phase.TRAINING else ()
        stalled = self._stalls.look(now, {place: self.board.batches_of(place) for place in flying})
        if training.limit < training.most:  # there is: whoever waits is let in when the chain is not full
            return
        more = training.waiting - len(self._asides.at(Stage.LEAVING))
        for place in self._asides.may_leave(stalled)[: max(0, more)]:
            self.board.notice(
                f"{place} has trained no batch for {self._stalls.limit_s:.0f} s (recover.stalled_s): it gives way to an"
                " owner that waits, until it goes on"
            )
            yield from self.set_aside(place)

    def _has_trained(self, place: str) -> Iterator[Action]:
        if self._asides.trained(place) is Stage.QUEUED:
            yield from self._let_in(self._training.queue(place))
        elif self._asides.finished(place):
            yield from self._let_in(self._training.done(place))

    def _hear_aside(self, node: str, message: Aside) -> Iterator[Action]:
        place = owner_name(message.owner)
        stage = self._asides.hear(node, place, message.state)
        if message.state == "failed":
            self.board.notice(f"{place} keeps its place: {node} cannot set it aside, {message.text}")
        if stage is Stage.AWAY:
            yield from self._let_in(self._training.leave(place))
            if self._asides.wants_back(place):
                stage = Stage.QUEUED
        if stage is Stage.QUEUED:
            yield from self._let_in(self._training.queue(place))
        elif stage is Stage.BACK:
            yield from self._tell_nodes(TakeUp(round=self.round, owner=message.owner))
        if self._asides.over(place):
            yield from self._let_in(self._training.done(place))

    def _fill_the_chain(self, now: float) -> Iterator[Action]:
        """Lets more owners in while the busiest node has to wait for them."""
        training = self._training
        if self.phase is not Phase.TRAINING or training.limit == training.most or not training.waiting:
            self._filling.restart()
        elif self._filling.waits(now, *self.board.work, training.limit):
            before, begin = training.limit, training.widen()
            self.board.notice(f"the busiest node has to wait: {training.limit} owners train at a time, not {before}")
            yield from self._let_in(begin)

    def _let_in(self, turn: list[str]) -> Iterator[Action]:
        """Lets owners go on that were set aside, and others begin."""
        back = [place for place in turn if self._asides.take_up(place)]
        for place in back:
            yield from self._tell_nodes(TakeUp(round=self.round, owner=_index(place)))
        yield from self._tell_owners([place for place in turn if place not in back], Begin(round=self.round))

    def _tell_nodes(self, message: SetAside | TakeUp) -> Iterator[Action]:
        for seat in self.roster:
            if seat.planned and seat.join.role == "compute":
                yield Tell(seat.identity, message)

    def _tell_owners(self, turn: list[str], message: FromManager, *, all_others: bool = False) -> Iterator[Action]:
        for seat in self.roster:
            if seat.place in turn or (all_others and seat.planned and seat.join.role != "owner"):
                yield Tell(seat.identity, message)


def _index(place: str) -> int:
    return int(place.rpartition("-")[2])
