"""The manager's driver: one ROUTER socket, one loop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import zmq
from msgspec import structs

from zmpsl.descriptors import Descriptors
from zmpsl.errors import JobError, JoinError, NetworkError, RemoteProtocolError, ZmpslError, error_for
from zmpsl.keys import LOOPBACK, Security
from zmpsl.loops.life import Life, State, complain
from zmpsl.messages import Join, Ping, Probe, Probed, Refused, ToManager, Unheard
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.manager import Manager
from zmpsl.security import MAX_REJECTED, Guard
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlServer
from zmpsl.transport.curve import Gate, check_pair
from zmpsl.transport.envelope import LostError

__all__ = ["ManagerNode"]

# How long the manager waits, after the end, for members to say that they leave.
FAREWELL_S = 3.0
# How often the allow-list and the failed handshakes are looked at; a key that was just added waits that long.
WATCH_EVERY_S = 0.5


class ManagerNode(Life):
    """The manager in its own loop, on a real socket. Use like `zmpsl.loops.member.Node`.

    Args:
        manager: The role.
        bind: Where to bind.
        advertise: Host to tell instead of the bound one.
        security: How links are protected; with a key, `allowed` names the list of who may take part.

    Attributes:
        turned: Called after each turn of the loop, ten times a second and more often, with the time in seconds.

    Raises:
        NetworkError: The address cannot be bound.
        JobError: The address needs keys, or `security` that says it does without; or the allow-list is damaged.
    """

    def __init__(
        self,
        manager: Manager,
        bind: str = "tcp://127.0.0.1:*",
        advertise: str | None = None,
        *,
        security: Security = LOOPBACK,
    ) -> None:
        check_address(bind, security.may_leave, bind=True)
        check_pair(security)
        super().__init__()
        self.manager = manager
        self.turned: Callable[[float], None] = lambda _now: None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._guard: Guard | None = None
        self._watched_at = 0.0
        self._rejections: Counter[str] = Counter()
        self._handshakes = self._lost = 0
        try:
            if security.key is not None:
                if security.allowed is None:
                    raise JobError("a manager with a key needs the list of who may take part (Security.allowed)")
                self._guard = Guard(security.allowed, Gate(self._context))
                manager.rates = self._guard.rates
            self._server = ControlServer(self._context, bind, advertise, security)
        except (NetworkError, JobError):
            self._context.term()
            raise
        self.endpoint = self._server.endpoint
        self._descriptors = Descriptors()
        self._poller = zmq.Poller()
        self._poller.register(self._server.socket, zmq.POLLIN)

    # Members need some time to say that they leave.
    STOP_S = 10.0

    @property
    def rejected(self) -> int:
        """Messages that were not used: malformed, or making no sense from their sender."""
        return self._server.rejected + self.manager.rejected

    def run(self) -> None:
        """Works until the run is over.

        Raises:
            ZmpslError: The run failed.
        """
        self.state = State.RUNNING
        try:
            while self.manager.exit is None:
                self._turn()
                if self._asked_to_stop.is_set():
                    self._perform(self.manager.finish(130, "interrupted"))
            self.state = State.DRAINING
            deadline = time.monotonic() + FAREWELL_S
            while len(self.manager.roster) and time.monotonic() < deadline:
                self._turn()
        except ZmpslError as error:
            self._perform(self.manager.finish(error.exit_code, str(error)))
            raise
        except Exception as error:
            self._perform(self.manager.finish(1, f"the manager failed: {type(error).__name__}: {error}"))
            raise
        finally:
            self._close()
        if self.manager.exit.exit_code not in (0, 130):
            raise error_for(self.manager.exit.exit_code, self.manager.exit.text)

    def _thread_name(self) -> str:
        return "zmpsl manager"

    def _turn(self) -> None:
        self._poller.poll(100)
        while True:
            try:
                received = self._server.receive()
                if received is None:
                    break
                self._hear(*received)
            except RemoteProtocolError as error:
                complain(self.rejected, error)
                if not isinstance(error, LostError):
                    self._blame(error)
            self._tell_losses()
        now = time.monotonic()
        if now - self._watched_at >= WATCH_EVERY_S:
            self._watched_at = now
            self._watch()
        self._perform(self.manager.tick(now))
        self.turned(now)

    def _hear(self, who: bytes, message: ToManager) -> None:
        """Holds a message against the key it came with, and passes it on."""
        if isinstance(message, Join):
            message = structs.replace(message, public="")
        if self._guard is not None:
            seat = self.manager.roster.get(who)
            user, holder = self._server.user, seat.join.public if seat else ""
            try:
                message = self._guard.check(user, holder, message, self._held(who, user))
            except JoinError as error:
                self.manager.board.notice(f"refused {type(message).__name__}: {error}")
                self._server.send(who, Refused(exit_code=error.exit_code, text=str(error)))
                return
            except RemoteProtocolError:
                self._server.rejected += 1
                raise
        if isinstance(message, Probe):
            self._server.send(who, Probed(data=message.data))
            return
        self._perform(self.manager.hear(who, message))

    def _held(self, who: bytes, user: str) -> Iterator[str]:
        """Gives a key once per place that others hold with it: not who asks, nor whose connection is gone.

        A process that was killed must not keep the one that follows it out, and who was cut off is itself there again.
        """
        for seat in self.manager.roster:
            if seat.identity != who and seat.join.public == user:
                self._perform(iter([Tell(seat.identity, Ping())]))
                if seat.unreachable_since is None:
                    yield user

    def _tell_losses(self) -> None:
        """Asks those of whom something was lost on the way to join again, in the order in which it was found out."""
        while self._server.losses:
            who, number = self._server.losses.popleft()
            seat = self.manager.roster.get(who)
            if seat is not None:
                self._lost += 1
                if self._lost & (self._lost - 1) == 0:
                    self.manager.board.notice(f"a message of {seat} was lost on the way ({self._lost} so far)")
            self._server.send(who, Unheard(number=number))

    def _blame(self, error: RemoteProtocolError) -> None:
        """Counts what a member said and nobody may say; sends it away when it goes too far."""
        seat = self.manager.roster.get(self._server.who)
        if seat is None or seat.join.public != self._server.user:  # not its doing: somebody else took its name
            return
        # By key where there are keys: before there is a job, places may have any names.
        name = seat.join.public or seat.place
        self._rejections[name] += 1
        if self._rejections[name] >= MAX_REJECTED:
            del self._rejections[name]
            self._perform(self.manager.expel(seat.place, f"said {MAX_REJECTED} things nobody may say: {error}"))

    def _watch(self) -> None:
        """Looks at failed handshakes, and at the allow-list."""
        board = self.manager.board
        if text := self._descriptors.look():
            board.notice(text)
        for failure in self._server.failures():
            self._handshakes += 1
            if self._handshakes & (self._handshakes - 1) == 0:
                board.notice(f"a handshake failed ({self._handshakes} so far): {failure}")
        if self._guard is None:
            return
        for text in self._guard.strangers():
            board.notice(text)
        try:
            revoked = dict(self._guard.refresh())
        except JobError as error:
            board.notice(f"the allow-list stays as it was: {error}")
            return
        self._perform(self.manager.restrict(self._guard.rates))
        for seat in self.manager.roster:
            if seat.join.public in revoked:
                why = f"was sent away: the key of {revoked[seat.join.public]} has been revoked"
                self._perform(self.manager.expel(seat.place, why))

    def _perform(self, actions: Iterator[Action]) -> None:
        for action in actions:
            if not isinstance(action, Tell):
                continue
            if self._server.send(action.to, action.message):
                self.manager.reachable(action.to)
            else:
                self._perform(self.manager.unreachable(action.to, time.monotonic()))

    def _close(self) -> None:
        if self.state is not State.CLOSED:
            self.state = State.CLOSED
            self._server.close(0.5)
            self._context.term()
