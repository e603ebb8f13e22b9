"""zmpsl's own side of bench/hop.py: Inbox, Link and Outbox in a poll loop, as roles drive them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

import zmq
from peers import LOOPBACK, TIMEOUT_S, Tensor

from zmpsl.codecs import by_name
from zmpsl.job.schema import Network
from zmpsl.transport.allocator import keep_freed_memory
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task

__all__ = ["Zmpsl"]

IDLE_MS = 100  # as in zmpsl.loop


class Zmpsl:
    """One side of a hop.

    The receiver uses a tensor up by letting go of it: its credit returns to the sender, its buffer to the pool.
    """

    def __init__(self, receiver: bool, codec: str) -> None:
        network = Network()
        keep_freed_memory()  # as every role in a process of its own
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._inbox = Inbox(self._context, f"tcp://{LOOPBACK}:*", network.max_tensor_bytes)
        self.address = self._inbox.endpoint
        packer = by_name(codec)
        self._outbox = Outbox(int(receiver), lambda _task: packer, network.credit_bytes)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._watched = False
        self._batches = count()

    def connect(self, peer: str) -> None:
        self._link = Link(self._context, "peer", peer, self._outbox)

    def send(self, tensor: Tensor, n: int) -> None:
        left = n

        def more() -> None:
            nonlocal left
            while left and not self._link.blocked and self._outbox.held < 2:
                left -= 1
                self._link.send(self._forward(tensor))

        self._until(Op.CLOSE, 1, more)

    def receive(self, size: int, n: int) -> Tensor:
        last = self._until(Op.FORWARD, n)
        self._link.send(Task(Op.CLOSE, 1, 0, 0))
        self._flushed()
        return last

    def echo(self, tensor: Tensor) -> Tensor:
        self._link.send(self._forward(tensor))
        return self._until(Op.BACKWARD, 1)

    def reflect(self, size: int, n: int) -> None:
        for _ in range(n):
            self._link.send(Task(Op.BACKWARD, 1, 0, 0, tensor=self._until(Op.FORWARD, 1)))
        self._flushed()

    def allocations(self) -> int:
        return self._inbox.pool.allocations

    def close(self) -> None:
        self._link.close()
        self._inbox.close()
        self._context.term()

    def _forward(self, tensor: Tensor) -> Task:
        return Task(Op.FORWARD, 1, 0, 0, batch=next(self._batches) % (1 << 32), tensor=tensor)

    def _until(self, op: Op, n: int, more: Callable[[], None] = lambda: None) -> Tensor:
        """Turns the loop until n tasks of that kind have come; gives the last one's tensor."""
        tensor = None
        deadline = time.monotonic() + TIMEOUT_S
        while n > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{n} {op.name} tasks did not come within {TIMEOUT_S} s")
            more()
            for task in self._turn():
                if task.op is op:
                    n -= 1
                    tensor = task.tensor
                    self._outbox.owe(task.owner, task.nbytes)
        return tensor  # type: ignore[return-value]

    def _turn(self) -> Iterator[Task]:
        """One turn of the loop: gives the tasks that came."""
        if self._link.blocked != self._watched:  # POLLOUT only while a message waits for room
            self._watched = self._link.blocked
            if self._watched:
                self._poller.register(self._link.socket, zmq.POLLOUT)
            else:
                self._poller.unregister(self._link.socket)
        if not self._poller.poll(IDLE_MS):
            self._outbox.give_back_all()
        while (received := self._inbox.receive()) is not None:
            header, task = received
            if header.credit:
                self._outbox.grant(header.task.owner, header.credit)
                self._link.flush()
            if task is not None:
                yield task
        self._link.flush()

    def _flushed(self) -> None:
        """Turns the loop until the outbox is empty; nothing is expected to come."""
        deadline = time.monotonic() + TIMEOUT_S
        while (self._outbox or self._link.blocked) and time.monotonic() < deadline:
            for _ in self._turn():
                pass
