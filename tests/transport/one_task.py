"""A member in place of a role, for what stands before roles."""

from __future__ import annotations

from collections.abc import Iterator

from zmpsl.errors import RemoteProtocolError
from zmpsl.roles.actions import Action
from zmpsl.transport.task import Task

__all__ = ["OneTask"]


class OneTask:
    """A member whose round ends with the first task it handles."""

    place = "aggregator"
    plan = None

    def __init__(self) -> None:
        self.handled: list[Task] = []

    def known_mask(self, *_: object) -> None: ...

    def admit(self, task: Task) -> None:
        if self.handled:
            raise RemoteProtocolError(f"round {task.round} has ended")

    def inspect(self, task: Task) -> None: ...

    def has_room(self, task: Task) -> bool:
        return True

    def wants_work(self) -> bool:
        return False

    def handle(self, task: Task) -> Iterator[Action]:
        self.handled.append(task)
        return iter(())
