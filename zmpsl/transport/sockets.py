"""What all sockets have in common: options, addresses, and the reports of what happens to their connections."""

from __future__ import annotations

import socket as stdlib_socket
from itertools import count

import zmq

from zmpsl.errors import NetworkError

__all__ = ["advertised", "bind", "configure", "many_sockets", "monitor"]

# libzmq's own limit is 1,023: a compute node could not have more than 340 owners.
MOST_SOCKETS = 1 << 15
_MONITORS = count()


def many_sockets() -> zmq.Context[zmq.Socket[bytes]]:
    """Gives a context with room for the links to thousands of owners; a link takes three sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, MOST_SOCKETS)
    return context


def configure(
    socket: zmq.Socket[bytes], max_message: int, high_water_marks: tuple[int, int], heartbeat_timeout_s: int
) -> None:
    """Sets the options that must be set before bind or connect; docs/protocol.md tells why each."""
    socket.setsockopt(zmq.LINGER, 0)
    receive, send = high_water_marks
    socket.setsockopt(zmq.RCVHWM, receive)
    socket.setsockopt(zmq.SNDHWM, send)
    socket.setsockopt(zmq.MAXMSGSIZE, max_message)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 1000 * heartbeat_timeout_s)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, 3000)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    socket.setsockopt(zmq.BACKLOG, 128)


def advertised(socket: zmq.Socket[bytes], host: str | None) -> str:
    """Gives the address peers shall use for a bound socket.

    Args:
        socket: Bound to a TCP address.
        host: Name or address to tell instead of the bound one, needed where that is 0.0.0.0.
    """
    endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    bound, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    if host is None and bound in ("0.0.0.0", "[::]"):
        host = stdlib_socket.gethostname()
    return f"tcp://{host or bound}:{port}"


def bind(socket: zmq.Socket[bytes], address: str) -> None:
    """Binds a socket.

    Raises:
        NetworkError: The address is in use, not one of this host's, or no address at all.
    """
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        hint = (
            "choose another port, or 0 for any free one"
            if error.errno == zmq.EADDRINUSE
            else "is it an address of this host?"
        )
        raise NetworkError(f"cannot bind {address}: {error.strerror}; {hint}") from error


def monitor(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Opens the socket on which libzmq reports events of another one.

    pyzmq's own get_monitor_socket has room for 2,000 reports; with more, libzmq's thread waits until they are read, and
    with it every socket of the context. A stranger who connects and hangs up makes that many in a second.
    """
    # No address twice: libzmq lets go of one only some time after its socket was closed.
    address = f"inproc://monitor-{next(_MONITORS)}"
    socket.monitor(address, events)
    reports: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    reports.setsockopt(zmq.LINGER, 0)
    reports.setsockopt(zmq.RCVHWM, 0)
    reports.connect(address)
    return reports
