"""The control plane's sockets: the manager's ROUTER and a member's DEALER.

One address, one port: members connect to the manager and to nothing else to find their place. The manager sees a lost
member because ROUTER_MANDATORY refuses to route to a connection that is gone (ZMTP heartbeats close dead ones, also
while Python computes); a member sees a lost manager in its socket's monitor.
"""

from __future__ import annotations

from contextlib import suppress
from uuid import uuid4

import zmq
from zmq.utils.monitor import recv_monitor_message

from zmpsl.errors import RemoteProtocolError
from zmpsl.messages import FromManager, Message, ToManager, decode_from_manager, decode_to_manager, encode
from zmpsl.transport.link import advertised, bind, configure

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
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, advertise: str | None = None) -> None:
        self.socket = context.socket(zmq.ROUTER)
        configure(self.socket, MAX_CONTROL_MESSAGE, (1000, 1000), HEARTBEAT_TIMEOUT_S)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        bind(self.socket, address)
        self.endpoint = advertised(self.socket, advertise)
        self.rejected = 0

    def receive(self) -> tuple[bytes, ToManager] | None:
        """Takes one message if there is one: who said it (an opaque identity), and what.

        Raises:
            RemoteProtocolError: It is no control message; gone and counted.
        """
        try:
            frames = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        try:
            if len(frames) != 2:
                raise RemoteProtocolError(f"a control message has 2 frames, this one {len(frames)}")
            return frames[0], decode_to_manager(frames[1])
        except RemoteProtocolError:
            self.rejected += 1
            raise

    def send(self, to: bytes, message: Message) -> bool:
        """Sends to one member; False when there is no open connection to it."""
        try:
            self.socket.send_multipart([to, encode(message)], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.close(linger=int(linger_s * 1000))


class ControlClient:
    """A member's end.

    Args:
        context: The member's own zmq context.
        endpoint: The manager's address.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.endpoint = endpoint
        self.socket = context.socket(zmq.DEALER)
        configure(self.socket, MAX_CONTROL_MESSAGE, (1000, 1000), HEARTBEAT_TIMEOUT_S)
        self.socket.setsockopt(zmq.IDENTITY, uuid4().bytes)
        self.monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        self.socket.connect(endpoint)
        self.connected = False
        self.rejected = 0

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
                raise RemoteProtocolError(f"a control message to a member has 1 frame, this one {len(frames)}")
            return decode_from_manager(frames[0])
        except RemoteProtocolError:
            self.rejected += 1
            raise

    def send(self, message: Message) -> None:
        """Sends to the manager; the socket keeps up to 1,000 messages while the manager is away, the rest is dropped.

        Nothing is lost for good by that: a member that comes back says so, and the round is begun again.
        """
        with suppress(zmq.Again):
            self.socket.send(encode(message), zmq.DONTWAIT)

    def watch(self) -> bool:
        """Reads the monitor; True when a connection was made since the last call. `connected` tells how it stands."""
        made = False
        while self.monitor.poll(0):
            self.connected = recv_monitor_message(self.monitor)["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED
            made |= self.connected
        return made

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)  # or context.term would wait for it for ever
        self.socket.close(linger=int(linger_s * 1000))
