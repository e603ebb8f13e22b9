"""Who only reaches a port: with bytes that are no message, however many and however large, memory stays bounded."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest
import zmq
from bare_port import OURS, READY, Port, greeting, long_frame, mechanism
from helpers import wait_for

from zmpsl.messages import Leave
from zmpsl.transport.control import ControlClient, ControlServer


@pytest.mark.parametrize("size", [10 << 30, 1 << 40, (1 << 63) - 1, (1 << 64) - 1], ids=["10G", "1T", "2**63", "2**64"])
@pytest.mark.parametrize("flags", [0, 4], ids=["message", "command"])
def test_claims_of_huge_frames(port: Port, size: int, flags: int):
    """Hung up on before there is memory for them, whether the handshake is over or not."""
    start = greeting(mechanism(port)) + (READY if port.gate is None and not flags else b"")
    assert not port.push(start + long_frame(flags, size) + bytes(1 << 20), 64)
    port.holds()
    assert port.inbox.receive() is None
    port.serves()


def test_idle_connections(port: Port):
    """Silent ones, those that stop in the greeting, and those that stop in the handshake."""
    beginnings = [b"", greeting(mechanism(port))[:11], greeting(mechanism(port)), greeting(mechanism(port)) + b"\x04"]
    for number in range(400):
        port.connect().sendall(beginnings[number % len(beginnings)])
    port.serves()
    port.holds()


def test_handshakes_that_hold_a_frame_each(port: Port):
    """An unfinished handshake may hold no more than a frame, and is ended."""
    half = greeting(mechanism(port)) + long_frame(4, 1 << 20) + bytes(1 << 19)
    for _ in range(20):
        port.push(half)
    port.serves()
    port.holds()


def test_endless_message_of_a_stranger_with_keys():
    """Without a key nobody gets so far that a message could be endless."""
    with contextlib.ExitStack() as stack:
        port = Port(OURS, stack)
        try:
            for kind in (b"NULL", b"CURVE"):
                frames = greeting(kind) + READY + (b"\x01\x01x" * 100_000)
                assert not port.push(frames, 100)
            assert port.inbox.receive() is None
            port.holds()
            port.serves()
        finally:
            port.close()


def test_random_bytes(port: Port):
    """With keys nothing of it comes out of the socket; without, the header's check throws it away."""
    noise = random.Random(11)
    for _ in range(100):
        port.push(noise.randbytes(2000))
        port.push(b"\x01\x00" + b"\x05noise" * 300)  # ZMTP 1.0, which has no handshake
    port.serves()
    assert (port.inbox.rejected == 0) == (port.gate is not None)
    port.holds()


def test_more_failed_handshakes_than_a_monitor_holds():
    """pyzmq's own monitors hold 2,000 reports; then libzmq's thread stood still, and so did every socket with it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = ControlServer(context, "tcp://127.0.0.1:*")
    host, port = server.endpoint.removeprefix("tcp://").split(":")
    for _ in range(2200):
        with socket.create_connection((host, int(port)), timeout=10) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(80))
    client = ControlClient(context, server.endpoint)
    client.send(Leave())
    wait_for(lambda: server.receive() is not None, 20)
    assert len(server.failures()) > 2000
    client.close()
    server.close()
    context.term()
