"""What waits to be sent to one peer, and how much may be under way: byte credits per owner. No socket in here.

Each side of a link grants the other `credit_bytes` per data owner. A sender takes them when a tensor starts to travel;
the receiver gives them back when its role has used the tensor up. They ride on the next message that goes the other
way for this owner, or in a CREDIT task of their own when nothing goes, so neither side can ever be flooded:

    sender    used[owner] + nbytes <= credit_bytes, or used[owner] == 0     (one tensor larger than all credit may go)
    receiver  holds at most that much for an owner, whatever its speed
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, Message, Packing, messages, only_message

__all__ = ["Outbox"]


class Outbox:
    """Queue and credits of one directed link.

    Args:
        sender: Our place code, put into every task.
        packing: Gives the packing of a task's tensor, when its turn has come.
        credit_bytes: Most bytes under way per owner.
        sealed: Give every chunk a checksum.
    """

    def __init__(
        self, sender: int, packing: Callable[[Task], Packing], credit_bytes: int, *, sealed: bool = False
    ) -> None:
        self._sender = sender
        self._sealed = sealed
        self._packing = packing
        self._credit_bytes = credit_bytes
        self._used: dict[int, int] = defaultdict(int)
        self._owed: dict[int, int] = defaultdict(int)
        self._held: dict[int, deque[Task]] = {}
        self._ready: deque[tuple[Task, int]] = deque()  # with the bytes of its tensor
        self._current: Iterator[Message] | None = None
        self._returning: set[int] = set()  # owners with a CREDIT task in the queue
        self.plan = 0

    def __bool__(self) -> bool:
        """True when something could be sent now."""
        return self._current is not None or bool(self._ready)

    @property
    def held(self) -> int:
        """Number of tasks that wait for credit."""
        return sum(map(len, self._held.values()))

    @property
    def owes(self) -> bool:
        """True when the peer has credit to get back."""
        return any(owner not in self._returning for owner in self._owed)

    def push(self, task: Task) -> None:
        """Queues a task; it is held back while its owner has no credit."""
        self.plan = task.plan
        waiting = self._held.get(task.owner)
        if waiting is not None:
            waiting.append(task)  # never overtakes what this owner already waits to send
        elif not self._admit(task):
            self._held[task.owner] = deque([task])

    def grant(self, owner: int, nbytes: int) -> None:
        """Takes credit back from the peer, and lets go what waited for it."""
        self._used[owner] = max(0, self._used[owner] - nbytes)
        waiting = self._held.get(owner)
        while waiting and self._admit(waiting[0]):
            waiting.popleft()
        if waiting is not None and not waiting:
            del self._held[owner]

    def owe(self, owner: int, nbytes: int) -> None:
        """Notes that the peer gets credit back: we have used up what it sent for this owner."""
        if nbytes:
            self._owed[owner] += nbytes
            if 2 * self._owed[owner] >= self._credit_bytes:
                self._give_back(owner)

    def give_back_all(self) -> None:
        """Sends all credit that is owed; called when there is nothing else to do."""
        for owner in list(self._owed):
            self._give_back(owner)

    def next(self, most: int | None = None) -> Message | None:
        """Gives the next message to put on the wire.

        Args:
            most: Gives only the message of a whole task, of at most that many bytes; what is larger stays for later.

        Returns:
            The message, None when there is none.
        """
        while True:
            if self._current is not None:
                if most is not None:
                    return None
                message = next(self._current, None)
                if message is not None:
                    return message
                self._current = None
            if not self._ready or (most is not None and self._ready[0][1] > most):
                return None
            task, nbytes = self._ready.popleft()
            credit = self._owed.pop(task.owner, 0)
            if task.op is Op.CREDIT:
                self._returning.discard(task.owner)
                if not credit:  # it rode on another task meanwhile
                    continue
            if nbytes <= CHUNK:
                return only_message(task, self._packing(task), credit, self._sender, self._sealed)
            self._current = messages(task, self._packing(task), credit, self._sender, sealed=self._sealed)

    def _admit(self, task: Task) -> bool:
        """Takes credit for a task and makes it ready to leave, if there is credit."""
        used, nbytes = self._used[task.owner], task.nbytes
        if used and used + nbytes > self._credit_bytes:
            return False
        self._used[task.owner] = used + nbytes
        self._ready.append((task, nbytes))
        return True

    def _give_back(self, owner: int) -> None:
        # The amount is filled in when it leaves, from what is owed then.
        if owner not in self._returning:
            self._returning.add(owner)
            self._ready.append((Task(Op.CREDIT, self.plan, owner, 0), 0))
