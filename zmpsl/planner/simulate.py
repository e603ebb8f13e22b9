"""How long an epoch takes, by playing it: every task of every owner, event by event, in a closed loop.

An owner has one batch in flight, as m micro-batches that all leave at once. Every processor and every direction of
every link serves one thing at a time, first come first served:

    owner     F1 -> uplink -> node F .. link .. node F -> downlink -> owner FP BP -> uplink -> node B .. node B
              -> downlink -> owner B1; after the last B1 and the update of M_1, the next batch

A node updates a replica right after its last backward of the batch, while the gradient is on its way already. This is
what the closed forms in `cost.py` are checked with: nothing here assumes that the pipe is full. Source: the protocol
of MP-SL (2402.00208) section 3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.planner.problem import NodeLink
from zmpsl.planner.terms import Chain, Owner, Owners, Transfers, check_fit

if TYPE_CHECKING:
    import simpy

__all__ = ["Simulated", "simulate"]

Then = Callable[[], None]


class Simulated(Struct, frozen=True):
    """What came out.

    Attributes:
        epoch_s: Seconds until the last task of the last owner is done, without aggregation.
        batches: r * sum B_k.
        pace_s: epoch_s / batches.
        node_busy: Share of the epoch in which each node computes, shape (N,).
        owner_finish_s: When each owner has finished its r * B_k batches, shape (K,).
    """

    epoch_s: float
    batches: int
    pace_s: float
    node_busy: tuple[float, ...]
    owner_finish_s: tuple[float, ...]


def simulate(
    chain: Chain, owners: Owners, transfers: Transfers, *, micro_batches: int = 1, backward_first: bool = False,
    in_flight: int | None = None,
) -> Simulated:  # fmt: skip
    """Plays one global epoch; the same input gives the same output, to the bit.

    Args:
        chain: Seconds of the nodes' parts, and the links between them.
        owners: Their own seconds, links, batches and local epochs, which may all differ.
        transfers: Bytes at each cut; `part_bytes` is not used.
        micro_batches: m; a piece takes 1/m of the batch's seconds and bytes, an update and a latency stay whole.
        backward_first: Whether nodes take waiting backward tasks before waiting forward tasks.
        in_flight: Most owners that train at a time; the next one begins when one has finished. None for all.

    Raises:
        JobError: SimPy is not installed, chain and transfers do not fit, or `micro_batches` is below 1.
    """
    check_fit(chain, transfers)
    if micro_batches < 1:
        raise JobError(f"micro_batches is {micro_batches}; a batch has at least 1")
    try:
        import simpy
    except ImportError as error:
        raise JobError(f"the simulation needs SimPy ({error}): pip install zmpsl[manager]") from error
    env = simpy.Environment()
    path = _Path(env, chain, transfers, micro_batches, backward_first)
    drivers = [_Driver(env, path, owner, owners.local_epochs) for owner in owners.each()]
    waiting = deque(drivers)

    def begin() -> None:
        if waiting:
            waiting.popleft().next_batch()

    for driver in drivers:
        driver.follow = begin
    for _ in range(in_flight or len(drivers)):
        begin()
    env.run()
    epoch_s, batches = float(env.now), owners.local_epochs * sum(driver.owner.batches for driver in drivers)
    busy = tuple(node.busy_s / epoch_s if epoch_s else 0.0 for node in path.nodes)
    return Simulated(epoch_s, batches, epoch_s / batches, busy, tuple(driver.finish_s for driver in drivers))


class _Station:
    """A processor or one direction of a link: one job at a time, urgent ones first, otherwise in order of arrival.

    Plain callbacks instead of SimPy's processes and resources: one event per job, a fifth of the time.
    """

    def __init__(self, env: simpy.Environment, urgent_first: bool = False) -> None:
        self.env = env
        self.urgent_first = urgent_first
        self.urgent: deque[tuple[float, float, Then]] = deque()
        self.waiting: deque[tuple[float, float, Then]] = deque()
        self.running = False
        self.busy_s = 0.0

    def add(self, seconds: float, then: Then, after_s: float = 0.0, urgent: bool = False) -> None:
        """Queues a job: `then` is called when its `seconds` are over; the station stays busy for `after_s` more."""
        queue = self.urgent if urgent and self.urgent_first else self.waiting
        queue.append((seconds, after_s, then))
        if not self.running:
            self._start()

    def _start(self) -> None:
        seconds, after_s, then = (self.urgent or self.waiting).popleft()
        self.running = True
        self.busy_s += seconds + after_s

        def done(_: object) -> None:
            then()
            if after_s:
                _later(self.env, after_s, free)
            else:
                free(None)

        def free(_: object) -> None:
            self.running = False
            if self.urgent or self.waiting:
                self._start()

        _later(self.env, seconds, done)


class _Wire:
    """One direction of a link: the rate serves one transfer at a time, the latency delays without occupying it."""

    def __init__(self, env: simpy.Environment, link: NodeLink | None) -> None:
        self.env = env
        self.link = link
        self.station = _Station(env)

    def send(self, size_bytes: float, then: Then) -> None:
        """Calls `then` when all bytes have arrived."""
        if self.link is None:
            then()
            return
        latency_s = self.link.latency_s
        arrive = (lambda: _later(self.env, latency_s, lambda _: then())) if latency_s else then
        self.station.add(size_bytes / self.link.bytes_per_s, arrive)


class _Path:
    """What all owners share: the nodes and the links between them."""

    def __init__(
        self, env: simpy.Environment, chain: Chain, transfers: Transfers, micro: int, backward_first: bool
    ) -> None:
        links: list[NodeLink | None] = [*chain.links] or [None] * (len(chain.parts) - 1)
        self.chain = chain
        self.micro = micro
        self.forward_bytes = [size / micro for size in transfers.forward_bytes]
        self.backward_bytes = [size / micro for size in transfers.backward_bytes]
        self.nodes = [_Station(env, backward_first) for _ in chain.parts]
        self.down = [_Wire(env, link) for link in links]
        self.up = [_Wire(env, link) for link in links]

    def forward(self, hop: int, then: Then) -> None:
        """Takes one micro-batch through the nodes from `hop` on; `then` is called behind the last."""

        def leave() -> None:
            if hop + 1 == len(self.nodes):
                then()
            else:
                self.down[hop].send(self.forward_bytes[hop + 1], lambda: self.forward(hop + 1, then))

        self.nodes[hop].add(self.chain.parts[hop].forward_s / self.micro, leave)

    def backward(self, hop: int, last: bool, then: Then) -> None:
        """Takes one gradient through the nodes from `hop` back; the `last` of a batch brings the updates."""

        def leave() -> None:
            if hop == 0:
                then()
            else:
                self.up[hop - 1].send(self.backward_bytes[hop], lambda: self.backward(hop - 1, last, then))

        part = self.chain.parts[hop]
        self.nodes[hop].add(part.backward_s / self.micro, leave, part.update_s if last else 0.0, urgent=True)


class _Driver:
    """One owner: its processor, its link, and how far it is."""

    def __init__(self, env: simpy.Environment, path: _Path, owner: Owner, local_epochs: int) -> None:
        self.env = env
        self.path = path
        self.owner = owner
        self.left = local_epochs * owner.batches
        self.processor = _Station(env)
        self.uplink = _Wire(env, owner.uplink)
        self.downlink = _Wire(env, owner.downlink)
        self.turned = 0
        self.returned = 0
        self.finish_s = 0.0
        self.follow: Then = _nothing

    def next_batch(self) -> None:
        """Starts the forward of M_1 for all micro-batches, or notes that the owner has finished."""
        if not self.left:
            self.finish_s = float(self.env.now)
            self.follow()
            return
        self.left -= 1
        self.turned = self.returned = 0
        for _ in range(self.path.micro):
            self.processor.add(self.owner.first.forward_s / self.path.micro, self._send_activations)

    def _send_activations(self) -> None:
        self.uplink.send(self.path.forward_bytes[0], lambda: self.path.forward(0, self._receive_activations))

    def _receive_activations(self) -> None:
        self.downlink.send(self.path.forward_bytes[-1], self._turn)

    def _turn(self) -> None:
        """Forward, loss and backward of M_P; its update runs while the gradient travels."""
        self.turned += 1
        last, part = self.turned == self.path.micro, self.owner.last
        seconds = (part.forward_s + part.backward_s) / self.path.micro
        self.processor.add(seconds, lambda: self._send_gradient(last), part.update_s if last else 0.0)

    def _send_gradient(self, last: bool) -> None:
        hop = len(self.path.nodes) - 1
        self.uplink.send(self.path.backward_bytes[-1], lambda: self.path.backward(hop, last, self._receive_gradient))

    def _receive_gradient(self) -> None:
        self.downlink.send(self.path.backward_bytes[0], self._finish_piece)

    def _finish_piece(self) -> None:
        """Backward of M_1; after the last one its update, and only then the next batch."""
        self.returned += 1
        last, part = self.returned == self.path.micro, self.owner.first
        seconds = part.backward_s / self.path.micro
        if last:
            self.processor.add(seconds + part.update_s, self.next_batch)
        else:
            self.processor.add(seconds, _nothing)


def _later(env: simpy.Environment, seconds: float, call: Callable[[object], None]) -> None:
    callbacks = env.timeout(seconds).callbacks
    if callbacks is not None:
        callbacks.append(call)


def _nothing() -> None:
    """What follows a piece that is not the batch's last, or an owner for whom nobody waits."""
