"""The two ends of a hop: Inbox (PULL) and Link (PUSH). What all sockets have in common is in sockets.py.

One PULL per role, one PUSH per peer, each PUSH connected once to exactly one PULL. No send ever blocks: what the
socket does not take stays in the outbox until it reports room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import zmq
from zmq.utils.monitor import recv_monitor_message

from zmpsl.codecs import NONE
from zmpsl.errors import RemoteProtocolError
from zmpsl.keys import LOOPBACK, Security
from zmpsl.transport.assembly import Assembly
from zmpsl.transport.buffers import BufferPool
from zmpsl.transport.curve import DATA, FAILED, protect_client, protect_server, why_failed
from zmpsl.transport.damage import DamagedError
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.packing import Unpacker
from zmpsl.transport.sockets import advertised, bind, configure, monitor
from zmpsl.transport.task import Task
from zmpsl.transport.tcp_info import Reading, delivered, unheard_s
from zmpsl.transport.wire import HEADER_BYTES, INLINE, MAX_MESSAGE, Header, Message, check_chunk, parse, split

__all__ = ["Inbox", "Link"]

# Messages libzmq may hold per connection; each is at most 1 MiB. With fewer, small tensors stop and start all the time;
# with more, large ones no longer fit the processor's caches.
HIGH_WATER_MARKS = (16, 8)  # receiving, sending
# Heartbeats are sent, so that the kernel learns whether the other host answers (link_watch), but no connection is cut
# for want of one: a role that computes does not read, and what it has not read stands before the heartbeats.
HEARTBEAT_TIMEOUT_S = 0
# Below this a copy costs less than the wake-up of pyzmq's collector thread that tells when libzmq let go of the memory.
ZERO_COPY_FROM = 1 << 18
# As plain integers: operations on pyzmq's enumerations cost a microsecond.
DONTWAIT, DONTWAIT_MORE, RCVMORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE), int(zmq.RCVMORE)
SOURCE = int(zmq.SRCFD)  # of a received frame: the descriptor of its connection
# Small messages that wait leave together in frames of this size; larger ones would save little more.
BUNDLE = 8 * (HEADER_BYTES + INLINE)


def _source_of(frame: zmq.Frame) -> int:
    """Gives the descriptor of the connection a frame came over, -1 for one without a handshake, as in ZMTP 1.0."""
    try:
        return int(frame.get(SOURCE))
    except zmq.ZMQError:
        return -1


class Inbox:
    """The PULL socket of a role: messages in, whole tasks out.

    Args:
        context: The role's own zmq context.
        address: Where to bind, such as `tcp://127.0.0.1:*`.
        max_tensor_bytes: Tensors that claim more are refused.
        advertise: Host to tell to peers instead of the bound one.
        security: Our key, where links are protected; then a gate must be there.

    Attributes:
        user: Public key of who sent the last message, empty without protection. A key gets only so far as `vouch`
            lets it, which raises RemoteProtocolError when this key does not speak for the task's sender.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, max_tensor_bytes: int,
        advertise: str | None = None, security: Security = LOOPBACK,
    ) -> None:  # fmt: skip
        self.socket = context.socket(zmq.PULL)
        configure(self.socket, MAX_MESSAGE, HIGH_WATER_MARKS, HEARTBEAT_TIMEOUT_S)
        protect_server(self.socket, security, DATA)
        self._protected = security.key is not None
        self.user = ""
        self.vouch: Callable[[Task, str], None] = lambda _task, _user: None
        bind(self.socket, address)
        self.endpoint = advertised(self.socket, advertise)
        self.pool = BufferPool()
        self.limit = max_tensor_bytes
        self.received_bytes = 0
        self.rejected = 0
        self._assembly = Assembly(self.pool)
        self._rest: deque[tuple[Header, memoryview]] = deque()  # the rest of a frame, and what each is the chunk of
        self._source = -1  # connection of the frame that was read last
        self._spoke: dict[int, Task] = {}  # by connection, the last task of which something came that was in order
        self.admit: Callable[[Task], None] = lambda _task: None
        self.unpack = Unpacker(lambda _task: None)

    @property
    def midway(self) -> bool:
        """True while messages of a frame that has come are still to be received; polling the socket tells nothing."""
        return bool(self._rest)

    def receive(self) -> tuple[Header, Task | None] | None:
        """Takes one message if there is one.

        Returns:
            None when nothing waits; else the header (credit counts in every message) and the task when it is whole.

        Raises:
            RemoteProtocolError: The message is not what the protocol allows, or not for us. It is gone, and counted.
            DamagedError: It was changed on the way; the same holds.
        """
        try:
            if self._rest:
                return self._next()
            frame = self.socket.recv(DONTWAIT, copy=False)
            if self._protected:
                self.user = str(frame.get("User-Id"))
            else:
                self._source = _source_of(frame)
            try:
                return self._first(frame.buffer, frame.more)
            finally:
                # Never leave the rest of a message for the next one.
                while frame.more and self.socket.getsockopt(RCVMORE):
                    self.socket.recv()
        except zmq.Again:
            return None
        except RemoteProtocolError:
            self.rejected += 1
            raise

    def _first(self, frame: memoryview, more: bool) -> tuple[Header, Task | None]:
        """Reads a message that has just come. Nothing of a frame is used before all its headers have been checked."""
        try:
            found = [(parse(frame, self.limit), frame)] if more else split(frame, self.limit)
        except RemoteProtocolError as error:
            raise self._changed(error) from error
        if more:
            header = found[0][0]
            if header.size <= INLINE:
                raise DamagedError(f"{header.task}: a chunk of {header.size} bytes in a frame of its own", header.task)
            self.received_bytes += HEADER_BYTES + header.size
            return self._take(header, None)
        self._rest.extend(found)
        self.received_bytes += len(frame)
        return self._next()

    def _changed(self, error: RemoteProtocolError) -> RemoteProtocolError:
        """What cannot be read, over a connection over which a peer has spoken, was changed on the way: it is lost."""
        before = self._spoke.get(self._source) if self._source >= 0 else None
        if before is None or isinstance(error, DamagedError):
            return error
        return DamagedError(f"{error}; on this connection {before} came before", before)

    def _next(self) -> tuple[Header, Task | None]:
        header, chunk = self._rest.popleft()
        return self._take(header, chunk)

    def _take(self, header: Header, chunk: memoryview | None) -> tuple[Header, Task | None]:
        self.vouch(header.task, self.user)
        if header.dtype is None:
            self._spoke[self._source] = header.task
            return header, header.task
        self.admit(header.task)
        try:
            self._fill(header, chunk)
        except RemoteProtocolError as error:
            self._assembly.drop(header)
            self._rest.clear()
            raise self._changed(error) from error
        except MemoryError as error:
            raise RemoteProtocolError(f"{header.task}: no memory for {header.total} bytes") from error
        self._spoke[self._source] = header.task
        return header, self._assembly.finish(header)

    def _fill(self, header: Header, chunk: memoryview | None) -> None:
        """Puts a chunk where it belongs: the one given, or the frame that comes next."""
        place = self._assembly.place(header)
        if chunk is None and header.codec == NONE.number and not header.masked:
            size = self.socket.recv_into(place.data)
        elif chunk is None:
            chunk = self.socket.recv(copy=False).buffer
            size = len(chunk)
        else:
            check_chunk(header, chunk)
            self.unpack(header, chunk, place)
            return
        if self.socket.getsockopt(RCVMORE):
            raise DamagedError(f"{header.task}: more frames than a header and a chunk", header.task)
        if size != header.size:  # recv_into truncates in silence
            text = f"chunk has {size} bytes, its header says {header.size}"
            raise DamagedError(f"{header.task}: {text}", header.task)
        check_chunk(header, place.data if chunk is None else chunk)
        if chunk is not None:
            self.unpack(header, chunk, place)

    def forget(self) -> None:
        """Gives up tensors of which the rest will not come."""
        self._assembly.clear()
        self._rest.clear()
        self._spoke.clear()

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
        security: Our key, where links are protected.
        public: The peer's public key, then.

    Attributes:
        failure: Why the last handshake failed, empty when it did not.
        up: There is a connection.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], name: str, endpoint: str, outbox: Outbox,
        security: Security = LOOPBACK, public: str = "",
    ) -> None:  # fmt: skip
        self.name = name
        self.failure = ""
        self.up = self._given_up = False
        self.outbox = outbox
        self.sent_bytes = 0
        self.socket = context.socket(zmq.PUSH)
        configure(self.socket, MAX_MESSAGE, HIGH_WATER_MARKS, HEARTBEAT_TIMEOUT_S)
        protect_client(self.socket, security, public)
        events = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self.monitor = monitor(self.socket, FAILED | events)
        self.socket.connect(endpoint)
        self._unsent: Message | None = None
        self._descriptor = -1

    @property
    def blocked(self) -> bool:
        """True when a message waits for room in the socket."""
        return self._unsent is not None

    def send(self, task: Task) -> None:
        """Queues a task and sends what the socket takes at once; not while it is known to be full."""
        self.outbox.push(task)
        if self._unsent is None:
            self.flush()

    def flush(self) -> None:
        """Sends until the outbox is empty or the socket is full. Never blocks."""
        while (frames := self._unsent or self._load()) is not None:
            if not self._send(*frames):
                self._unsent = frames
                return
            self._unsent = None

    def _load(self) -> Message | None:
        """Gives the frames to send next, None when there are none.

        Small messages that wait leave in one frame: what it costs libzmq, its threads and the receiver's loop is much
        the same for one frame of any size. Where nothing waits, a message leaves alone and at once.
        """
        message = self.outbox.next()
        if message is None or (message[1] is not None and len(message[1]) > INLINE):
            return message
        parts: list[memoryview | bytes] = []
        room = BUNDLE
        try:
            while message is not None:
                header, chunk = message
                parts.append(header)
                room -= HEADER_BYTES
                if chunk is not None:
                    parts.append(chunk)
                    room -= len(chunk)
                message = self.outbox.next(min(room - HEADER_BYTES, INLINE)) if self.outbox else None
        finally:  # also when a task cannot travel: those before it do
            self._unsent = b"".join(parts), None
        return self._unsent

    def _send(self, first: bytes, chunk: memoryview | bytes | None) -> bool:
        try:
            self.socket.send(first, DONTWAIT if chunk is None else DONTWAIT_MORE)
        except zmq.Again:
            return False
        self.sent_bytes += len(first)
        if chunk is not None:
            # The second frame of a message is always taken. copy=False: libzmq reads the tensor's own memory and holds
            # a reference to it until it has.
            self.socket.send(chunk, 0, copy=len(chunk) < ZERO_COPY_FROM)
            self.sent_bytes += len(chunk)
        return True

    def broken(self) -> bool:
        """Tells whether the connection was lost since the last call; a handshake that failed is none (`failure`)."""
        lost = False
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            if event["event"] == zmq.EVENT_CONNECTED:
                self._descriptor = event["value"]
            elif event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.up, self._given_up, self.failure = True, False, ""
            elif event["event"] & FAILED:
                self._descriptor = -1
                self.failure = why_failed(event["event"], event["value"])
            else:
                self._descriptor = -1  # the system may give the number to something else
                lost |= self.up
                self.up = False
        return lost

    def cut_off(self, limit_s: float) -> bool:
        """Tells, once per connection, that the other host has answered nothing for so long although it should have."""
        if not self.up or self._given_up or self._descriptor < 0:
            return False
        self._given_up = unheard_s(self._descriptor) > limit_s
        return self._given_up

    def delivered(self) -> Reading | None:
        """Gives what the kernel knows of the connection, None where it does not tell."""
        return delivered(self._descriptor) if self._descriptor >= 0 else None

    def close(self, linger_s: float = 0.0) -> None:
        """Closes the socket after at most `linger_s` seconds for what it still holds."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)  # or context.term would wait for it for ever
        self.socket.close(linger=int(linger_s * 1000))
