"""Readers that are busy for longer than any heartbeat: their connections stay, nothing is lost, no process aborts."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import zmq

from zmpsl.codecs import by_name
from zmpsl.transport import link as links
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.task import Op, Task

# A member that does not read while its manager speaks: in a process of its own, for libzmq may abort it.
MEMBER = """
import time, zmq
from zmpsl.messages import Leave, Ping
from zmpsl.transport import control
control.HEARTBEAT_TIMEOUT_S = 1
context = zmq.Context()
server = control.ControlServer(context, "tcp://127.0.0.1:*")
client = control.ControlClient(context, server.endpoint)
client.send(Leave())
while server.receive() is None:
    server.socket.poll(1000)
told, until = 0, time.monotonic() + 4
while time.monotonic() < until:
    while told < 3000 and server.send(server.who, Ping()):
        told += 1
    time.sleep(0.05)
heard, until = 0, time.monotonic() + 10
while heard < told and time.monotonic() < until:
    heard += client.receive() is not None
print(told, heard)
"""


def test_a_member_that_does_not_read_for_long_is_not_aborted():
    """libzmq aborts a process whose socket was full when a heartbeat cut its connection (zeromq/libzmq#3937)."""
    done = subprocess.run([sys.executable, "-c", MEMBER], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["3000", "3000"]), done.stderr


def test_heartbeats_cut_no_data_connection():
    """Who computes does not read. What it has not read fills its socket, and then heartbeats wait behind that."""
    assert links.HEARTBEAT_TIMEOUT_S == 0


@pytest.mark.all_faults
def test_a_node_that_computes_for_long_loses_nothing():
    """With heartbeats of 20 s a connection was cut, and a fifth of what was on its way lost, though both ends lived."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = Inbox(context, "tcp://127.0.0.1:*", 1 << 24)
    outbox = Outbox(1, lambda _task: by_name("none"), 64 << 20)
    link = Link(context, "node-0", inbox.endpoint, outbox)
    tensor = np.ones(1 << 18, np.float32)
    try:
        for batch in range(40):
            link.send(Task(Op.FORWARD, 1, 0, 0, batch=batch, tensor=tensor))
        until = time.monotonic() + 25
        while time.monotonic() < until:
            link.flush()
            time.sleep(0.05)
        got: list[int] = []
        until = time.monotonic() + 20
        while len(got) < 40 and time.monotonic() < until:
            link.flush()
            received = inbox.receive()
            if received is not None and received[1] is not None:
                got.append(received[1].batch)
        assert got == list(range(40))
    finally:
        link.close()
        inbox.close()
        context.term()
