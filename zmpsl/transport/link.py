"""The two ends of a hop: Inbox (PULL) and Link (PUSH). With control.py and loop.py the only users of zmq.

One PULL per role, one PUSH per peer, each PUSH connected once to exactly one PULL. No send ever blocks: what the
socket does not take stays in the outbox until it reports room.
"""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from zmpsl.codecs import NONE
from zmpsl.errors import NetworkError, RemoteProtocolError
from zmpsl.transport.assembly import Assembly
from zmpsl.transport.buffers import ALIGNMENT, BufferPool
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Unpacker
from zmpsl.transport.task import Task
from zmpsl.transport.tcp_info import Reading, delivered
from zmpsl.transport.wire import HEADER_BYTES, INLINE, MAX_MESSAGE, Header, Message, parse

__all__ = ["Inbox", "Link", "configure"]

# Messages libzmq may hold per connection; each is at most 1 MiB. With fewer, small tensors stop and start all the time;
# with more, large ones no longer fit the processor's caches.
HIGH_WATER_MARKS = (16, 8)  # receiving, sending
# A heartbeat waits behind the chunk that is on the wire, so a link must carry 1 MiB in this time: 0.5 Mbit/s. A role
# that stops is noticed sooner, by the manager.
HEARTBEAT_TIMEOUT_S = 20
# Below this a copy costs less than the wake-up of pyzmq's collector thread that tells when libzmq let go of the memory.
ZERO_COPY_FROM = 1 << 18
# As plain integers: operations on pyzmq's enumerations cost a microsecond.
DONTWAIT, DONTWAIT_MORE, RCVMORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.RCVMORE)
# Where a first frame is received, so that what stands behind its header is aligned.
FRONT = -HEADER_BYTES % ALIGNMENT
# A tensor this small is copied out of the receive buffer instead of keeping 64 KiB for itself.
KEEP_FROM = 8192


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


class Inbox:
    """The PULL socket of a role: messages in, whole tasks out.

    Args:
        context: The role's own zmq context.
        address: Where to bind, such as `tcp://127.0.0.1:*`.
        max_tensor_bytes: Tensors that claim more are refused.
        advertise: Host to tell to peers instead of the bound one.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, max_tensor_bytes: int, advertise: str | None = None
    ) -> None:
        self.socket = context.socket(zmq.PULL)
        configure(self.socket, MAX_MESSAGE, HIGH_WATER_MARKS, HEARTBEAT_TIMEOUT_S)
        bind(self.socket, address)
        self.endpoint = advertised(self.socket, advertise)
        self.pool = BufferPool()
        self.limit = max_tensor_bytes
        self.received_bytes = 0
        self.rejected = 0
        self._assembly = Assembly(self.pool)
        self._new_scratch()
        self.admit: Callable[[Task], None] = lambda _task: None
        self.unpack = Unpacker(lambda _task: None)

    def receive(self) -> tuple[Header, Task | None] | None:
        """Takes one message if there is one.

        Returns:
            None when nothing waits; else the header (credit counts in every message) and the task when it is whole.

        Raises:
            RemoteProtocolError: The message is not what the protocol allows. It is gone, and counted.
        """
        try:
            size = self.socket.recv_into(self._front, flags=DONTWAIT)
        except zmq.Again:
            return None
        more = self.socket.getsockopt(RCVMORE)
        try:
            return self._read(size, bool(more))
        except RemoteProtocolError:
            self.rejected += 1
            raise
        finally:
            # Never leave the rest of a message for the next one.
            while more and self.socket.getsockopt(RCVMORE):
                self.socket.recv()

    def _read(self, size: int, more: bool) -> tuple[Header, Task | None]:
        header = parse(self._front[: min(size, HEADER_BYTES)], self.limit)
        self.received_bytes += HEADER_BYTES + header.size
        inline = header.size <= INLINE
        if size != HEADER_BYTES + (header.size if inline else 0) or more == inline:
            raise RemoteProtocolError(f"{header.task}: {size} bytes in the first frame, more frames: {more}")
        if header.dtype is None:
            return header, header.task
        self.admit(header.task)
        try:
            if inline:
                self._read_inline(header)
            else:
                self._read_chunk(header)
        except RemoteProtocolError:
            self._assembly.drop(header)
            raise
        except MemoryError as error:
            raise RemoteProtocolError(f"{header.task}: no memory for {header.total} bytes") from error
        return header, self._assembly.finish(header)

    def _read_inline(self, header: Header) -> None:
        """The chunk stands behind the header; a whole tensor stays where it was received."""
        payload = self._scratch[FRONT + HEADER_BYTES : FRONT + HEADER_BYTES + header.size]
        if header.codec == NONE.number and not header.masked and header.raw == header.total > KEEP_FROM:
            self._assembly.adopt(header, payload)
            self._new_scratch()
        else:
            self.unpack(header, payload.data, self._assembly.place(header))

    def _read_chunk(self, header: Header) -> None:
        place = self._assembly.place(header)
        packed = header.masked or header.codec != NONE.number
        if not packed:
            size = self.socket.recv_into(place.data)
        else:
            frame = self.socket.recv(copy=False)
            size = len(frame.buffer)
        if self.socket.getsockopt(RCVMORE):
            raise RemoteProtocolError(f"{header.task}: more frames than a header and a chunk")
        if size != header.size:  # recv_into truncates in silence
            raise RemoteProtocolError(f"{header.task}: chunk has {size} bytes, its header says {header.size}")
        if packed:
            self.unpack(header, frame.buffer, place)

    def _new_scratch(self) -> None:
        self._scratch = self.pool.take(FRONT + HEADER_BYTES + INLINE)
        self._front = self._scratch[FRONT:].data

    def close(self) -> None:
        """Closes the socket; what has not been received is dropped."""
        self.socket.close(linger=0)


class Link:
    """The PUSH socket to one peer, with its outbox.

    Args:
        context: The role's own zmq context.
        name: Place name of the peer.
        endpoint: Address of its PULL.
        outbox: Queue and credits.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], name: str, endpoint: str, outbox: Outbox) -> None:
        self.name = name
        self.outbox = outbox
        self.sent_bytes = 0
        self.socket = context.socket(zmq.PUSH)
        configure(self.socket, MAX_MESSAGE, HIGH_WATER_MARKS, HEARTBEAT_TIMEOUT_S)
        events = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self.monitor = self.socket.get_monitor_socket(events)
        self.socket.connect(endpoint)
        self._unsent: Message | None = None
        self._descriptor = -1

    @property
    def blocked(self) -> bool:
        """True when a message waits for room in the socket."""
        return self._unsent is not None

    def send(self, task: Task) -> None:
        """Queues a task and sends what the socket takes at once."""
        self.outbox.push(task)
        self.flush()

    def flush(self) -> None:
        """Sends until the outbox is empty or the socket is full. Never blocks."""
        while True:
            message = self._unsent or self.outbox.next()
            if message is None:
                return
            if not self._send(*message):
                self._unsent = message
                return
            self._unsent = None

    def _send(self, header: bytes, chunk: memoryview | bytes | None) -> bool:
        whole = chunk is None or len(chunk) <= INLINE
        first = header if chunk is None else b"".join((header, chunk)) if whole else header
        try:
            self.socket.send(first, DONTWAIT if whole else DONTWAIT_MORE)
        except zmq.Again:
            return False
        self.sent_bytes += len(first)
        if not whole and chunk is not None:
            # The second frame of a message is always taken. copy=False: libzmq reads the tensor's own memory and holds
            # a reference to it until it has.
            self.socket.send(chunk, 0, copy=len(chunk) < ZERO_COPY_FROM)
            self.sent_bytes += len(chunk)
        return True

    def broken(self) -> bool:
        """Tells whether the connection was lost since the last call."""
        lost = False
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            lost |= event["event"] == zmq.EVENT_DISCONNECTED
            if event["event"] == zmq.EVENT_CONNECTED:
                self._descriptor = event["value"]
            elif event["event"] == zmq.EVENT_DISCONNECTED:
                self._descriptor = -1  # the system may give the number to something else
        return lost

    def delivered(self) -> Reading | None:
        """Gives what the kernel knows of the connection, None where it does not tell."""
        return delivered(self._descriptor) if self._descriptor >= 0 else None

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)  # or context.term would wait for it for ever
        self.socket.close(linger=int(linger_s * 1000))
