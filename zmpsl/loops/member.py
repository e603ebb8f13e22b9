"""The drivers: one poll loop per role between sockets and the role's own code. One thread, never a blocking send.

    sockets -> waiting tasks, most urgent first -> role -> actions -> outboxes -> sockets

libzmq's own thread moves the bytes meanwhile. Gradients go before activations, so activations are freed early.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import zmq

from zmpsl.descriptors import Descriptors
from zmpsl.errors import JoinError, NetworkError, PeerLostError, RemoteProtocolError, ZmpslError, error_for
from zmpsl.job.network import Network
from zmpsl.keys import LOOPBACK, Security
from zmpsl.loops.held_back import HeldBack
from zmpsl.loops.life import Life, State, complain
from zmpsl.loops.link_watch import SHAKY_S, LinkWatch
from zmpsl.loops.station import Station
from zmpsl.messages import Accuse, Leave, Publish
from zmpsl.roles.actions import Action, Connect, Disconnect, Say, Send, Stop
from zmpsl.roles.member import Member
from zmpsl.security import MAX_REJECTED, Border
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlClient
from zmpsl.transport.curve import Gate, check_pair
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.sockets import many_sockets
from zmpsl.transport.task import Task
from zmpsl.transport.wire import Header

__all__ = ["Node"]

log = logging.getLogger("zmpsl")

ASK = "does the manager's allow-list have it, and is manager.pub from that manager? `zmpsl doctor` looks at both"


class Node(Life):
    """A member in its own loop: compute node, data owner or aggregator, on real sockets.

    Use `run` to work in this thread until the run is over, or `start` ... `close` (also as a context manager) to work
    in a thread named after the role. Each node has its own zmq context; it installs no signal handlers.

    Args:
        member: The role.
        manager: The manager's address.
        bind: Where to bind the PULL socket.
        advertise: Host to tell peers instead of the bound one.
        security: How links are protected.
        reach_s: How long to wait for the manager to be there at first.
        context: A zmq context that others use too; one of its own where not given.

    Raises:
        NetworkError: The address cannot be bound.
        JobError: An address needs keys, or `security` that says it does without.
    """

    idle_s, check_every_s = 0.1, 0.25

    def __init__(
        self, member: Member, manager: str, bind: str = "tcp://127.0.0.1:*", advertise: str | None = None,
        *, security: Security = LOOPBACK, reach_s: float = 60.0, context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:  # fmt: skip
        check_address(manager, security.may_leave)
        check_address(bind, security.may_leave, bind=True)
        check_pair(security)
        super().__init__()
        self.member = member
        self._network = Network()
        self._reach_s = reach_s
        self._patience_s = self._network.lost_after_s
        self._shares = context is not None
        self._context = many_sockets() if context is None else context
        self._security = security
        self._descriptors = Descriptors()
        self._border = Border(Gate(self._context) if security.key is not None else None)
        self._shaky_since = time.monotonic()
        self._watch = LinkWatch()
        try:
            self._inbox = Inbox(self._context, bind, self._network.max_tensor_bytes, advertise, security)
        except NetworkError:
            if not self._shares:
                self._context.term()
            raise
        self._inbox.vouch = self._border.vouch
        self._control = ControlClient(self._context, manager, security)
        self._links: dict[str, Link] = {}
        self._station = Station(member)
        self._inbox.admit = member.admit
        self._inbox.unpack = self._station.unpack
        self._poller = zmq.Poller()
        self._poller.register(self._control.socket, zmq.POLLIN)
        self._blocked: set[str] = set()
        self._held_back = HeldBack()
        self._stop: Stop | None = None
        self._troubled_at: float | None = None
        self._checked_at = 0.0
        self._away_since = time.monotonic()
        self._met = False  # whether the manager was ever there
        member.traffic = self._traffic  # type: ignore[method-assign]

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Address of the PULL socket, as told to peers."""
        return self._inbox.endpoint

    @property
    def rejected(self) -> int:
        """Messages that were not used: malformed, or not for us."""
        return self._inbox.rejected + self._control.rejected + self._station.strays

    def run(self) -> None:
        """Works until the run is over.

        Raises:
            ZmpslError: The run failed, or this role could not go on; the class tells which way.
        """
        self.state = State.RUNNING
        try:
            self._perform(self.member.start(self.endpoint))
            while self._stop is None:
                self._turn()
                if self._asked_to_stop.is_set():
                    self._stop = Stop(130, f"{self.member.place or self.member.role} was asked to stop")
            self.state = State.DRAINING
            self._drain(1.0)
        finally:
            self._close()
        if self.error is not None:
            raise self.error
        if self._stop.exit_code not in (0, 130):
            raise error_for(self._stop.exit_code, self._stop.text)

    def _thread_name(self) -> str:
        return f"zmpsl {self.member.role} {self.member.place}".strip()

    # -- one turn of the loop -----------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Tells whether there was anything to do."""
        work = self._guard(self._next_work) if self._troubled_at is None else None
        timeout_s = self.idle_s if work is None else 0.0
        if work is None:
            for name in self._station.give_back_credit():
                self._flush(name)
        if (due := self._held_back.next_at()) is not None:
            timeout_s = min(timeout_s, max(0.0, due - time.monotonic()))
        ready = dict(self._poller.poll(int(timeout_s * 1000)))
        now = time.monotonic()
        if self._control.socket in ready and self._read_control():
            work = None  # it was of a plan that is void now
        if self._inbox.socket in ready:
            self._read_inbox()
        self._resume(ready)
        for action in self._held_back.due(now):
            self._push(action)
        self._work(work)
        self._perform(self.member.tick(now))
        if now - self._checked_at >= self.check_every_s:
            self._checked_at = now
            self._check(now)
        return bool(ready) or work is not None

    def _next_work(self) -> Iterator[Action] | None:
        return self._station.next_work()

    def _work(self, work: Iterator[Action] | None) -> None:
        self._perform(work)

    def _read_control(self) -> bool:
        """Hears the manager; True when the plan became void."""
        plan = self.member.plan
        while True:
            try:
                message = self._control.receive()
            except RemoteProtocolError as error:
                complain(self.rejected, error)
                continue
            if message is None or self._stop is not None:
                return plan is not None and plan is not self.member.plan
            if isinstance(message, Publish):  # before we build: peers may be quicker, and connect
                self._border.admit(message.plan)
            self._perform(self._guard(lambda m=message: self.member.hear(m)))  # type: ignore[misc]

    def _read_inbox(self) -> None:
        # Bounded, so that a flood cannot keep us from working; but what came in one frame is taken whole, for polling
        # would not tell of the rest.
        messages = count()
        while next(messages) < 256 or self._inbox.midway:
            try:
                self._border.begin()
                if (received := self._inbox.receive()) is None:
                    return
                self._take(*received)
            except RemoteProtocolError as error:
                complain(self.rejected, error)
                self._perform(self._station.lost(error))
                accused = self._border.blame(self._inbox.user)
                if accused is not None:
                    text = f"{MAX_REJECTED} messages that nobody may send, the last one: {error}"
                    self._control.send(Accuse(place=accused, text=text[:3900]))

    def _take(self, header: Header, task: Task | None) -> None:
        granted = self._station.take(header, task)
        if granted is not None:
            self._flush(granted)

    def _check(self, now: float) -> None:
        """Looks after connections and deadlines, four times a second."""
        if self._control.lost() | (self._control.watch() and self._met):
            self._perform(self.member.rejoin())
        if self._control.connected:
            self._away_since, self._met = now, True
        self._check_handshake(now)
        if (away_s := now - self._away_since) > (self._patience_s if self._met else self._reach_s):
            self._fail(
                PeerLostError(f"the manager at {self._control.endpoint} has been out of reach for {away_s:.1f} s")
            )
        if text := self._descriptors.look():
            log.warning(text)
        self._check_links(now)
        if self._troubled_at is not None and now - self._troubled_at > self._network.lost_after_s:
            # The manager should have ended the run by now; do not wait for ever.
            self._fail(self.error or PeerLostError("the manager did not answer"))

    def _check_links(self, now: float) -> None:
        try:
            for name, text in self._watch.look(self.member.place, self._links, self._control.connected, now):
                self._perform(self.member.broken(name, text))
        except PeerLostError as error:
            self._trouble(error)
        for name, link in self._links.items():
            self._station.measured(name, link.delivered)

    def _check_handshake(self, now: float) -> None:
        """Tells when the manager does not let us in."""
        self._border.tell_strangers()
        manager, endpoint = self._control, self._control.endpoint
        if manager.refused:
            self._fail(JoinError(f"the manager at {endpoint} refused our key {self._named_key()}; {ASK}"))
        if not manager.failure or self._met:
            self._shaky_since = now
        elif manager.hopeless or now - self._shaky_since > SHAKY_S:
            self._fail(NetworkError(f"no handshake with the manager at {endpoint}: {manager.failure}; {ASK}"))

    def _named_key(self) -> str:
        key = self._security.key
        return "" if key is None else f"({key.name}, {key.public})"

    # -- carrying out actions -----------------------------------------------------------------------------------------

    def _guard(self, what: Callable[[], Iterator[Action] | None]) -> Iterator[Action] | None:
        try:
            return what()
        except Exception as error:
            self._trouble(error)
            return None

    def _perform(self, actions: Iterator[Action] | None) -> None:
        if actions is None:
            return
        try:
            for action in actions:
                self._act(action)
        except Exception as error:
            self._trouble(error)

    def _act(self, action: Action) -> None:
        match action:
            case Send():
                if jitter_s := self._network.jitter_s:
                    self._held_back.put(action, time.monotonic(), jitter_s)
                else:
                    self._push(action)
            case Say():
                self._control.send(action.message)
            case Connect():
                self._connect(action)
            case Disconnect():
                self._disconnect()
            case Stop():
                self._stop = action

    def _connect(self, action: Connect) -> None:
        job = action.plan.job
        self._network = job.network
        # A run that may lose roles may lose its manager too.
        self._patience_s = job.recover.manager_wait_s if job.recover.wait_s else job.network.lost_after_s
        self._watch.begin(job.recover)
        self._inbox.limit = job.network.max_tensor_bytes
        self._inbox.pool.keep(action.keep_bytes)
        self._station.connect(action)
        # Not before: a peer that has its plan already may send before ours is here, and that must wait, not be lost.
        self._poller.register(self._inbox.socket, zmq.POLLIN)
        keys = {peer.name: peer.public for peer in action.plan.peers}
        for name, endpoint in action.peers.items():
            outbox = self._station.outboxes[name]
            self._links[name] = self._link(self._context, name, endpoint, outbox, self._security, keys[name])

    def _link(self, *arguments: Any) -> Link:
        return Link(*arguments)

    def _disconnect(self) -> None:
        self._poller.unregister(self._inbox.socket)
        for name in self._blocked:
            self._poller.unregister(self._links[name].socket)
        for link in self._links.values():
            link.close()
        self._blocked.clear()
        self._links.clear()
        self._held_back.clear()
        self._station.disconnect()
        self._inbox.forget()

    def _flush(self, name: str) -> None:
        """Sends what waits for a peer; not while its socket is full: then it waits and leaves in fewer frames."""
        if name not in self._blocked:
            link = self._links[name]
            link.flush()
            if link.blocked:
                self._blocked.add(name)
                self._poller.register(link.socket, zmq.POLLOUT)

    def _resume(self, ready: dict[zmq.Socket[bytes], int]) -> None:
        """Goes on with the peers whose sockets have room again."""
        for name in [name for name in self._blocked if self._links[name].socket in ready]:
            self._blocked.discard(name)
            self._poller.unregister(self._links[name].socket)
            self._flush(name)

    def _push(self, action: Send) -> None:
        self._station.send(action)
        self._flush(action.to)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _trouble(self, error: Exception) -> None:
        if self._troubled_at is not None or self._stop is not None:
            return
        who = self.member.place or self.member.role
        code = error.exit_code if isinstance(error, ZmpslError) else 1
        if not isinstance(error, ZmpslError):
            log.exception("%s failed", who)
            error = ZmpslError(f"{who}: {type(error).__name__}: {error}")
        self.error = error
        self._troubled_at = time.monotonic()
        self._station.clear()
        for action in self.member.trouble(error, code):
            self._act(action)

    def _fail(self, error: BaseException) -> None:
        if self._stop is None:
            self.error = error
            self._stop = Stop(getattr(error, "exit_code", 1), str(error))

    def _drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while any(link.outbox or link.blocked for link in self._links.values()) and time.monotonic() < deadline:
            self._resume(dict(self._poller.poll(10)))
            for name in self._links:
                self._flush(name)

    def _close(self) -> None:
        if self.state is State.CLOSED:
            return
        self.state = State.CLOSED
        self._control.send(Leave())
        for link in self._links.values():
            link.close(0.2)
        self._inbox.close()
        self._control.close(0.5)
        if not self._shares:
            self._context.term()

    def _traffic(self) -> tuple[int, int, int]:
        return sum(link.sent_bytes for link in self._links.values()), self._inbox.received_bytes, self.rejected
