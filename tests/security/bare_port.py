"""A port that anybody can reach: what strangers may send to it, what that may cost, and that it still serves."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path

import numpy as np
import psutil
import zmq
from helpers import wait_for

from zmpsl.codecs import NONE
from zmpsl.keys import LOOPBACK, Security
from zmpsl.transport.curve import DATA, Gate, new_pair
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import OWNER_SENDER

__all__ = ["OURS", "PEER", "READY", "Port", "greeting", "long_frame", "mechanism"]

LIMIT_BYTES = 32 << 20
# Processor time that a stranger may cost libzmq, per connection and per byte. Measured were 0.04 ms and 0.4 ns:
# to take half a core it would need ten thousand connections a second, or a fast network for itself.
SETUP_S, CONNECTION_S, BYTE_S = 0.02, 0.5e-3, 4e-9
OURS = Security(key=new_pair("node", "compute"), manager="0" * 64)
PEER = Security(key=new_pair("owner", "owner"), manager="0" * 64)


def greeting(mechanism: bytes) -> bytes:
    """The first 64 bytes of ZMTP 3.0."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"


def processor_s() -> float:
    """Processor time of libzmq's threads in this process, whatever else the machine does meanwhile."""
    tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().startswith("ZMQbg")]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def long_frame(flags: int, size: int) -> bytes:
    """The header of a frame that claims `size` bytes; 2: long, 4: command, 1: more frames follow."""
    return bytes([2 | flags]) + struct.pack(">Q", size)


class Port:
    """An inbox at a port, and what can be done to it."""

    def __init__(self, security: Security, stack: contextlib.ExitStack) -> None:
        self.security = security
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.gate = Gate(self.context) if security.key is not None else None
        if self.gate is not None and PEER.key is not None:
            self.gate.allow(DATA, frozenset({PEER.key.public}), final=False)
        self.inbox = Inbox(self.context, "tcp://127.0.0.1:*", 1 << 20, security=security)
        self._stack = stack
        self._before = psutil.Process().memory_info().rss
        self._worked_before = processor_s()
        self.came, self.sent = 0, 0  # connections and bytes of strangers

    def connect(self) -> socket.socket:
        """A bare connection."""
        host, port = self.inbox.endpoint.removeprefix("tcp://").split(":")
        peer = self._stack.enter_context(socket.create_connection((host, int(port))))
        peer.settimeout(10)
        self.came += 1
        return peer

    def push(self, data: bytes, times: int = 1) -> bool:
        """Sends on a connection of its own until all is sent or it is hung up on; tells which."""
        peer = self.connect()
        try:
            for _ in range(times):
                peer.sendall(data)
                self.sent += len(data)
        except OSError:
            return False
        return True

    def holds(self) -> None:
        """Strangers have cost little memory, and little of the processor: not by the clock, which others move too."""
        worked_s = processor_s() - self._worked_before
        assert worked_s < SETUP_S + self.came * CONNECTION_S + self.sent * BYTE_S
        assert psutil.Process().memory_info().rss - self._before < LIMIT_BYTES

    def serves(self) -> None:
        """An honest peer is heard."""
        server = self.security.key.public if self.security.key is not None else ""
        peer = PEER if server else LOOPBACK
        link = Link(
            self.context, "node-0", self.inbox.endpoint, Outbox(OWNER_SENDER, lambda _: NONE, 1 << 20), peer, server
        )
        got: list[Task] = []

        def heard() -> bool:
            link.flush()
            with contextlib.suppress(Exception):
                while (received := self.inbox.receive()) is not None:
                    got.extend(task for task in received[1:] if task is not None)
            return any(task.op is Op.PART for task in got)

        link.send(Task(Op.PART, 1, 0, 0, tensor=np.ones(1000, np.float32)))
        try:
            wait_for(heard, 20)
        finally:
            link.close()

    def close(self) -> None:
        """Ends it."""
        self.inbox.close()
        self.context.term()
        if self.gate is not None:
            self.gate.join()


def mechanism(port: Port) -> bytes:
    """What the port speaks."""
    return b"NULL" if port.gate is None else b"CURVE"
