"""zmpsl's own side of bench/hop.py: Inbox, Link and Outbox in a poll loop, as roles drive them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

import zmq
from peers import TIMEOUT_S, Tensor

from zmpsl.codecs import by_name
from zmpsl.job.network import Network
from zmpsl.keys import Security
from zmpsl.transport.allocator import keep_freed_memory
from zmpsl.transport.curve import DATA, Gate, new_pair
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task

__all__ = ["Zmpsl"]

IDLE_MS, PER_READ = 100, 256  # as in zmpsl.loops.member
# Tensors the sender queues per turn of its loop until it is out of credit, whether the socket is full or not.
PER_TURN = 16


class Zmpsl:
    """One side of a hop.

    The receiver uses a tensor up by letting go of it: its credit returns to the sender, its buffer to the pool.
    With `keys`, links are protected, and the address has the public key behind it; without, chunks are `sealed` by a
    checksum unless told otherwise.
    """

    def __init__(self, receiver: bool, codec: str, host: str, *, keys: bool = False, sealed: bool = True) -> None:
        network = Network()
        self._security = Security(key=new_pair("bench", "compute"), manager="0" * 64) if keys else Security(open=True)
        keep_freed_memory()  # as every role in a process of its own
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = Gate(self._context) if keys else None
        self._inbox = Inbox(self._context, f"tcp://{host}:*", network.max_tensor_bytes, security=self._security)
        self.address = self._inbox.endpoint
        if self._security.key is not None:
            self.address += f" {self._security.key.public}"
        packer = by_name(codec)
        self._outbox = Outbox(int(receiver), lambda _task: packer, network.credit_bytes, sealed=sealed and not keys)
        self._poller = zmq.Poller()
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        self._watched = False
        self._batches = count()

    def connect(self, peer: str) -> None:
        endpoint, _, public = peer.partition(" ")
        if self._gate is not None:
            self._gate.allow(DATA, frozenset({public}), final=False)
        self._link = Link(self._context, "peer", endpoint, self._outbox, self._security, public)

    def send(self, tensor: Tensor, n: int) -> None:
        left = n

        def more() -> bool:
            nonlocal left
            if self._outbox.held > 1:  # out of credit
                return False
            for _ in range(min(PER_TURN, left)):
                left -= 1
                self._link.send(self._forward(tensor))
            return left > 0

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
        if self._gate is not None:
            self._gate.join()

    def _forward(self, tensor: Tensor) -> Task:
        return Task(Op.FORWARD, 1, 0, 0, batch=next(self._batches) % (1 << 32), tensor=tensor)

    def _until(self, op: Op, n: int, more: Callable[[], bool] = lambda: False) -> Tensor:
        """Turns the loop until n tasks of that kind have come; gives the last one's tensor."""
        tensor = None
        deadline = time.monotonic() + TIMEOUT_S
        while n > 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{n} {op.name} tasks did not come within {TIMEOUT_S} s")
            for task in self._turn(busy=more()):
                if task.op is op:
                    n -= 1
                    tensor = task.tensor
                    self._outbox.owe(task.owner, task.nbytes)
        return tensor  # type: ignore[return-value]

    def _turn(self, *, busy: bool = False) -> Iterator[Task]:
        """One turn of the loop: gives the tasks that came."""
        if self._link.blocked != self._watched:  # POLLOUT only while a message waits for room
            self._watched = self._link.blocked
            if self._watched:
                self._poller.register(self._link.socket, zmq.POLLOUT)
            else:
                self._poller.unregister(self._link.socket)
        ready = dict(self._poller.poll(0 if busy else IDLE_MS))
        if not ready and not busy:
            self._outbox.give_back_all()
        if self._inbox.socket in ready:
            yield from self._read()
        if not self._link.blocked or self._link.socket in ready:
            self._link.flush()

    def _read(self) -> Iterator[Task]:
        messages = count()
        while next(messages) < PER_READ or self._inbox.midway:
            received = self._inbox.receive()
            if received is None:
                return
            header, task = received
            if header.credit:
                self._outbox.grant(header.task.owner, header.credit)
            if task is not None:
                yield task

    def _flushed(self) -> None:
        """Turns the loop until the outbox is empty; nothing is expected to come."""
        deadline = time.monotonic() + TIMEOUT_S
        while (self._outbox or self._link.blocked) and time.monotonic() < deadline:
            for _ in self._turn():
                pass
