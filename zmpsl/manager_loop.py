"""The manager's driver: one ROUTER socket, one loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

import zmq

from zmpsl.errors import NetworkError, RemoteProtocolError, ZmpslError, error_for
from zmpsl.life import Life, State
from zmpsl.loop import complain
from zmpsl.roles.actions import Action, Tell
from zmpsl.roles.manager import Manager
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlServer

__all__ = ["ManagerNode"]

# How long the manager waits, after the end, for members to say that they leave.
FAREWELL_S = 3.0


class ManagerNode(Life):
    """The manager in its own loop, on a real socket. Use like `zmpsl.loop.Node`.

    Args:
        manager: The role.
        bind: Where to bind.
        advertise: Host to tell instead of the bound one.
        unprotected: Allows addresses other than loopback.

    Raises:
        NetworkError: The address cannot be bound.
        JobError: The address needs `unprotected`.
    """

    def __init__(
        self,
        manager: Manager,
        bind: str = "tcp://127.0.0.1:*",
        advertise: str | None = None,
        *,
        unprotected: bool = False,
    ) -> None:
        check_address(bind, unprotected, bind=True)
        super().__init__()
        self.manager = manager
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._server = ControlServer(self._context, bind, advertise)
        except NetworkError:
            self._context.destroy(linger=0)
            raise
        self.endpoint = self._server.endpoint
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
                self._perform(self.manager.hear(*received))
            except RemoteProtocolError as error:
                complain(self.rejected, error)
        self._perform(self.manager.tick(time.monotonic()))

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
