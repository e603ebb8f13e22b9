"""The control plane's sockets: the manager's ROUTER and a member's DEALER.

One address, one port: members connect to the manager and to nothing else to find their place. The manager sees a lost
member because ROUTER_MANDATORY refuses to route to a connection that is gone (ZMTP heartbeats close dead ones, also
while Python computes); a member sees a lost manager in its socket's monitor. What is lost or changed between the two is
told by `transport.envelope`; whoever finds that out sees to it that the member joins again.
"""

from __future__ import annotations

from collections import deque
from uuid import uuid4

import zmq
from zmq.utils.monitor import recv_monitor_message

from zmpsl.errors import RemoteProtocolError
from zmpsl.keys import LOOPBACK, Security
from zmpsl.messages import (
    FromManager,
    Join,
    Message,
    ToManager,
    Unheard,
    decode_from_manager,
    decode_to_manager,
    encode,
)
from zmpsl.transport.curve import CONTROL, FAILED, protect_client, protect_server, why_failed
from zmpsl.transport.envelope import Counts, LostError, Numbers, unwrap, wrap
from zmpsl.transport.sockets import advertised, bind, configure, monitor

__all__ = ["ControlClient", "ControlServer"]

# A plan with the block list of a deep net and thousands of owners stays well below this.
MAX_CONTROL_MESSAGE = 16 << 20
HEARTBEAT_TIMEOUT_S = 4


class ControlServer:
    """The manager's end.

    Args:
        context: The manager's own zmq context.
        address: Where to bind.
        advertise: Host to tell instead of the bound one.
        security: Our key, where links are protected; then a gate must be there.

    Attributes:
        who: Who sent the last message, used or not.
        user: Its public key, empty without protection.
        losses: Of whom messages were lost, and up to which number, since somebody took it out of here.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, advertise: str | None = None,
        security: Security = LOOPBACK,
    ) -> None:  # fmt: skip
        self.who = b""
        self.user = ""
        self.losses: deque[tuple[bytes, int]] = deque()
        self._counts = Counts()
        self._protected = security.key is not None
        self.socket = context.socket(zmq.ROUTER)
        configure(self.socket, MAX_CONTROL_MESSAGE, (1000, 1000), HEARTBEAT_TIMEOUT_S)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A member knows sooner than we do that its connection broke, and then has another in the same name.
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        protect_server(self.socket, security, CONTROL)
        bind(self.socket, address)
        self.monitor = monitor(self.socket, FAILED)
        self.endpoint = advertised(self.socket, advertise)
        self.rejected = 0

    def receive(self) -> tuple[bytes, ToManager] | None:
        """Takes one message if there is one: who said it (an opaque identity), and what.

        Raises:
            RemoteProtocolError: It is no control message; gone and counted.
            LostError: It was changed on the way, or never one of ours; the same holds, and it stands in `losses`.
        """
        try:
            parts = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return None
        try:
            frames = [part.bytes for part in parts]
            self.who = frames[0]
            self.user = str(parts[1].get("User-Id")) if self._protected and len(parts) > 1 else ""
            return frames[0], self._opened(frames)
        except RemoteProtocolError:
            self.rejected += 1
            raise

    def _opened(self, frames: list[bytes]) -> ToManager:
        numbers = self._counts.of(frames[0])
        try:
            if len(frames) != 2:
                raise LostError(f"a control message has 2 frames, this one {len(frames)}")
            body, number = unwrap(frames[1])
        except LostError as error:
            if self._protected:  # then nothing is changed on the way: it was sent like that
                raise RemoteProtocolError(str(error)) from error
            self.losses.append((frames[0], numbers.damaged()))
            raise
        message = decode_to_manager(body)
        if numbers.heard(number, anew=isinstance(message, Join)):
            self.losses.append((frames[0], number))
        return message

    def failures(self) -> list[str]:
        """Why handshakes failed since the last call; whose, libzmq does not tell."""
        found = []
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            found.append(why_failed(event["event"], event["value"]))
        return found

    def send(self, to: bytes, message: Message) -> bool:
        """Sends to one member; False when there is no open connection to it."""
        numbers = self._counts.of(to)
        try:
            self.socket.send_multipart([to, wrap(encode(message), numbers.sent)], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        numbers.sent += 1
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=int(linger_s * 1000))


class ControlClient:
    """A member's end.

    Args:
        context: The member's own zmq context.
        endpoint: The manager's address.
        security: Our key and the manager's, where links are protected.

    Attributes:
        failure: Why the last handshake failed, empty when it did not.
        refused: The manager refused our key.
        hopeless: libzmq will not try again on this socket: we were refused, or the other side speaks otherwise.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, security: Security = LOOPBACK) -> None:
        self.failure = ""
        self.refused = self.hopeless = False
        self.endpoint = endpoint
        self.socket = context.socket(zmq.DEALER)
        # No limit for what comes: where that is reached, and a heartbeat cuts the connection, libzmq aborts the process
        # (zeromq/libzmq#3937). The manager says little, and to no more than 1,000 messages ahead.
        configure(self.socket, MAX_CONTROL_MESSAGE, (0, 1000), HEARTBEAT_TIMEOUT_S)
        self.socket.setsockopt(zmq.IDENTITY, uuid4().bytes)
        protect_client(self.socket, security, security.manager)
        self.monitor = monitor(self.socket, FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        self.connected = False
        self.rejected = 0
        self._numbers = Numbers()
        self._joined = 0  # number of the last Join
        self._lost = False

    def receive(self) -> FromManager | None:
        """Takes one message if there is one.

        Raises:
            RemoteProtocolError: It is no control message; gone and counted.
        """
        try:
            frames = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        try:
            if len(frames) != 1:
                raise LostError(f"a control message to a member has 1 frame, this one {len(frames)}")
            body, number = unwrap(frames[0])
            self._lost |= self._numbers.heard(number, anew=False)
            message = decode_from_manager(body)
        except RemoteProtocolError as error:
            self._lost |= isinstance(error, LostError)
            self.rejected += 1
            raise
        # What we said before we joined the last time may well be lost: nobody waits for it any more.
        self._lost |= isinstance(message, Unheard) and message.number >= self._joined
        return message

    def lost(self) -> bool:
        """Tells, once, that a message of either side was lost: then say again who we are."""
        lost, self._lost = self._lost, False
        return lost

    def send(self, message: Message) -> None:
        """Sends to the manager; the socket keeps up to 1,000 messages while the manager is away, the rest is dropped.

        Nothing is lost for good by that: a member that comes back says so, and the round is begun again.
        """
        if isinstance(message, Join):
            self._joined, self._numbers.expected = self._numbers.sent, None
        try:
            self.socket.send(wrap(encode(message), self._numbers.sent), zmq.DONTWAIT)
        except zmq.Again:
            return
        self._numbers.sent += 1

    def watch(self) -> bool:
        """Reads the monitor; True when a connection was made since the last call. `connected` tells how it stands."""
        made = False
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            self.connected = event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            made |= self.connected
            if self.connected:
                self.failure = ""
            elif event["event"] & FAILED:
                self.failure = why_failed(event["event"], event["value"])
                self.refused |= event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                self.hopeless |= event["event"] != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        return made

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)  # or context.term would wait for it for ever
        self.socket.close(linger=int(linger_s * 1000))
