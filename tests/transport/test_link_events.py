"""What a link hears of its connection: a handshake is no loss, the end of one is, and the kernel tells its rate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq
from helpers import wait_for

from zmpsl.codecs import NONE
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.sockets import monitor


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context: zmq.Context = zmq.Context()
    yield context
    context.term()


def test_a_new_connection_is_no_loss_and_a_lost_one_has_no_descriptor(context: zmq.Context) -> None:
    inbox = Inbox(context, "tcp://127.0.0.1:*", 1 << 20)
    link = Link(context, "node-0", inbox.endpoint, Outbox(1, lambda _task: NONE, 1 << 20))
    heard: list[bool] = []

    def up() -> bool:
        heard.append(link.broken())
        return link.up

    try:
        assert link.delivered() is None
        wait_for(up)
        assert not any(heard)
        assert link._descriptor >= 0
        inbox.close()
        wait_for(link.broken)
        assert link.delivered() is None
        assert not link.broken()
    finally:
        link.close()
        inbox.close()


CUT = """
import ctypes, os, socket, subprocess, sys, time
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # a network of our own, which others do not see
    sys.exit(77)
ip = lambda *words: subprocess.run(["ip", *words], check=True)
ip("link", "set", "lo", "up")
from zmpsl.transport.tcp_info import unheard_s
listener = socket.create_server(("127.0.0.1", 0))
sender = socket.create_connection(listener.getsockname())
receiver, _ = listener.accept()
sender.send(b"heard")
receiver.recv(5)
assert unheard_s(sender.fileno()) == 0
sender.setblocking(False)
try:
    while True:  # until there is no room: a program that reads nothing, on a host that answers
        sender.send(bytes(1 << 16))
except BlockingIOError:
    pass
until = time.monotonic() + 2
while time.monotonic() < until:
    assert unheard_s(sender.fileno()) == 0
    time.sleep(0.01)
receiver.setblocking(False)
try:
    while receiver.recv(1 << 16):
        time.sleep(0.0001)
except BlockingIOError:
    pass
ip("link", "set", "lo", "down")
sender.send(b"unheard")
until = time.monotonic() + 10
while unheard_s(sender.fileno()) < 1:
    assert time.monotonic() < until
    time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_kernel_tells_a_cut_link_from_a_reader_that_takes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77 or "FileNotFoundError" in done.stderr:
        pytest.skip("a network of its own takes root rights and the command `ip`")
    assert done.returncode == 0, done.stderr


def test_sockets_come_and_go_and_each_has_its_events(context: zmq.Context) -> None:
    """The address of events was a socket's place in memory, where another may lie while libzmq still ends the last.

    A node that met all its peers anew after a fault ended with "Address already in use".
    """
    for _ in range(300):
        socket = context.socket(zmq.PUSH)
        try:
            monitor(socket, zmq.EVENT_CONNECTED).close()
        finally:
            socket.close(linger=0)
