"""A port that anybody can reach hears anything. Whatever strangers send, the run ends with the weights it ends with.

Not covered: a stranger who knows the plan and speaks in a member's name; only keys can keep that one out.
"""

from __future__ import annotations

import contextlib
import random
import socket

import msgspec
import numpy as np
import pytest
import zmq
from helpers import SMALL, job, told, untold, wait_for
from hostile import SEED, Frames, forged, hostile_messages, parts_of, task_for, wire
from siege import Siege, siege, undisturbed
from zmq.utils.monitor import recv_monitor_message

from zmpsl import messages as control
from zmpsl.launch.memory import MemoryRun
from zmpsl.stats import Stats
from zmpsl.transport.envelope import wrap
from zmpsl.transport.wire import CHUNK, MAX_MESSAGE

# -- the data plane ----------------------------------------------------------------------------------------------------


def test_every_inbox_counts_and_drops_what_it_cannot_use():
    """Before the first batch each role gets every hostile message once: exactly that many are counted, none is used."""
    hostile = hostile_messages()
    with siege() as besieged:
        for endpoint in besieged.endpoints:
            push = besieged.connect(zmq.PUSH, endpoint)
            for frames in hostile:
                push.send_multipart(frames)
        nodes = besieged.run.nodes
        wait_for(lambda: all(node.rejected >= len(hostile) for node in nodes) or besieged.run.manager.drain(0), 20)
        assert {node.member.place: node.rejected for node in nodes} == dict.fromkeys(besieged.run.members, len(hostile))
        besieged.hold_out()


@pytest.mark.parametrize("shape", [(2, 3), (25, 1024)], ids=["small", "large"])
def test_frames_beyond_the_last_are_not_overlooked(shape: tuple[int, int]):
    """A message with a frame too many is not what the protocol allows, so nothing of it may be used."""
    header, chunk = parts_of(task_for(tensor=np.ones(shape, np.float32)))
    with siege() as besieged:
        node = besieged.node("node-0")
        besieged.connect(zmq.PUSH, node.endpoint).send_multipart([*wire(header, chunk), b"more"])
        wait_for(lambda: node.rejected or besieged.run.manager.drain(0), 20)
        besieged.hold_out()


def test_flood_during_training():
    """Hostile messages between those of the run, all the time, disturb neither the weights nor the end."""
    hostile = hostile_messages()
    with siege() as besieged:
        pushes = [besieged.connect(zmq.PUSH, endpoint) for endpoint in besieged.endpoints]
        before = [node.rejected for node in besieged.run.nodes]
        besieged.gate.set()
        for frames in hostile * 5:
            for push in pushes:
                with contextlib.suppress(zmq.Again):
                    push.send_multipart(frames, zmq.DONTWAIT)
        besieged.hold_out()
        assert all(node.rejected > count for node, count in zip(besieged.run.nodes, before, strict=True))


def test_message_above_the_limit_closes_only_its_own_connection():
    """libzmq hangs up on who sends a frame of more than a chunk and a header, before there is memory for it."""
    with siege() as besieged:
        for endpoint in besieged.endpoints:
            push = besieged.connect(zmq.PUSH, endpoint)
            monitor = push.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            push.send_multipart([parts_of(task_for())[0], bytes(MAX_MESSAGE + 1)])
            assert monitor.poll(10_000), "the connection was not closed"
            assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
            push.disable_monitor()
            monitor.close(linger=0)
        assert [node.rejected for node in besieged.run.nodes] == [0] * 5
        besieged.hold_out()


def test_other_protocols():
    """A browser, a port scanner and a ZeroMQ peer that stops in its greeting are none of our business."""
    noise = random.Random(SEED).randbytes(5000)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16)
    with siege() as besieged, contextlib.ExitStack() as stack:
        for endpoint in [*besieged.endpoints, besieged.run.manager.endpoint]:
            host, port = endpoint.removeprefix("tcp://").split(":")
            for data in (b"GET / HTTP/1.1\r\n\r\n", b"", noise, greeting, greeting + bytes(40) + noise):
                peer = stack.enter_context(socket.create_connection((host, int(port))))
                peer.sendall(data)
        besieged.hold_out()


def test_unfinished_tensors_of_strangers_take_no_memory():
    """The first chunk of a large tensor must not be kept, let alone the memory it asks for, when it is not for us."""
    start, chunk = parts_of(task_for(tensor=np.zeros(4 * CHUNK, np.uint8)))
    with siege() as besieged:
        node = besieged.node("node-0")
        push = besieged.connect(zmq.PUSH, node.endpoint)
        leased = node._inbox.pool.leased_bytes
        for owner in range(2, 26):
            push.send_multipart([forged(start, 12, "I", owner), chunk])
        push.send(b"the last one")
        with contextlib.suppress(AssertionError):
            wait_for(lambda: node.rejected >= 25, 5)
        assert node._inbox.pool.leased_bytes - leased <= 8 * 4 * CHUNK, "strangers hold memory"
        assert node.rejected == 25
        besieged.hold_out()


def test_claim_that_no_memory_can_hold():
    """A job may allow more than this host has: then a claim fails as a message of a peer, not as a fault of ours."""
    header, chunk = parts_of(task_for(tensor=np.zeros(2 * CHUNK, np.uint8)))
    claim = forged(forged(header, 52, "Q", 1 << 40), 76, "Q", 1 << 40)
    wanted = job(*SMALL, f"network.max_tensor_bytes={1 << 40}")
    with siege(wanted) as besieged:
        node = besieged.node("node-0")
        push = besieged.connect(zmq.PUSH, node.endpoint)
        push.send_multipart([claim, chunk])
        push.send(b"another one")
        wait_for(lambda: node.rejected or besieged.run.manager.drain(0), 20)
        besieged.hold_out()


# -- the control plane -------------------------------------------------------------------------------------------------


def _nested(depth: int) -> bytes:
    return b"\x81\xa4type" + b"\x91" * depth + b"\x01"


def _bomb(value: bytes) -> bytes:
    """A job whose model has an argument that is not what it seems."""
    before, after = control.encode(control.Submit(job=job(*SMALL))).split(b"\xa4args\x80", 1)
    return before + b"\xa4args\x81\xa1a" + value + after


GARBAGE = {
    "empty": [b""],
    "nothing": [b"", b""],
    "random": [random.Random(SEED).randbytes(3000)],
    "three frames": [b"a", b"b", b"c"],
    "thousand frames": [b"x"] * 1000,
    "json": [msgspec.json.encode(control.Join(role="compute"))],
    "unknown tag": [msgspec.msgpack.encode({"type": "Reboot"})],
    "wrong type": [msgspec.msgpack.encode({"type": "Ready", "plan": [1]})],
    "number of 2**64 - 1": [msgspec.msgpack.encode({"type": "Prepared", "round": 2**64 - 1})],
    "endless array": [b"\xdd\xff\xff\xff\xff"],
    "endless text": [b"\x82\xa4type\xa4Join\xa4role\xdb\xff\xff\xff\xff"],
    "endless blocks": [b"\x82\xa4type\xa9Described\xa6blocks\xdd\xff\xff\xff\xff"],
    "deep nesting": [_nested(1_000_000)],
    "endless argument": [_bomb(b"\xdd\xff\xff\xff\xff")],
    "deep argument": [_bomb(b"\x91" * 1_000_000 + b"\x01")],
    "text that is no UTF-8": [b"\x82\xa4type\xa4Join\xa4role\xa2\xff\xff"],
    "tag that is no UTF-8": [b"\x81\xa4type\xa2\xff\xff"],
    "surrogate": [b"\x82\xa4type\xa4Join\xa4role\xa3\xed\xa0\x80"],
    "argument that is no UTF-8": [_bomb(b"\xa2\xff\xff")],
}

STRANGE: list[control.Message] = [
    control.Ready(plan=1, samples=1, batches=1),
    control.Prepared(plan=1, round=0, digests={"aggregator": "0", "node-0": "0"}, stats=Stats()),
    control.Trained(plan=1, round=0, batches=1, loss_sum=0.0, samples=1, stats=Stats()),
    control.Evaluated(plan=1, round=0, correct=1, total=1, samples=1, loss_sum=0.0),
    control.Progress(plan=1, round=0),
    control.Described(blocks=()),
    control.Trouble(exit_code=7, text="the end is near"),
]


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=list(GARBAGE))
def test_manager_drops_what_is_no_message(frames: Frames):
    """Bytes from a peer can only ever become a message or nothing."""
    with siege() as besieged:
        stranger = besieged.say(*frames)
        stranger.send_multipart([*frames[:-1], wrap(frames[-1], 0)])  # with a checksum that is right
        answered(besieged, stranger)
        besieged.hold_out()


@pytest.mark.parametrize("joined", [False, True], ids=["stranger", "observer"])
@pytest.mark.parametrize("message", STRANGE, ids=lambda message: type(message).__name__)
def test_manager_hears_only_members(message: control.Message, joined: bool):
    """Who has no place in the run can neither end it, nor move it on, nor put words into its record."""
    with siege() as besieged:
        stranger = besieged.say(told(control.Leave()))
        if joined:
            answered(besieged, stranger)
        stranger.send(told(message))
        answered(besieged, stranger)
        besieged.hold_out()


def test_manager_counts_what_it_drops():
    """As every node does, the manager tells how many messages it did not use."""
    with siege() as besieged:
        stranger = besieged.say(b"nonsense")
        stranger.send(told(control.Ready(plan=1)))
        answered(besieged, stranger)
        assert besieged.run.manager.rejected == 2
        besieged.hold_out()


def test_message_above_the_limit_to_the_manager():
    """More than any plan could need is not even read."""
    with siege() as besieged:
        stranger = besieged.connect(zmq.DEALER, besieged.run.manager.endpoint)
        monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        stranger.send(bytes((16 << 20) + 1))
        assert monitor.poll(10_000), "the connection was not closed"
        stranger.disable_monitor()
        monitor.close(linger=0)
        answered(besieged, besieged.connect(zmq.DEALER, besieged.run.manager.endpoint))
        besieged.hold_out()


def test_observers_that_come_and_go():
    """Watching costs the run nothing, nor does leaving without a word, nor never reading what is told."""
    with siege() as besieged:
        for number in range(30):
            observer = besieged.say(told(control.Join(role="observer")))
            assert observer.poll(10_000)
            if number % 2:
                observer.close(linger=0)
        besieged.hold_out()


def answered(besieged: Siege, stranger: zmq.Socket[bytes]) -> None:
    """Waits until the manager has read all that this stranger said: on one connection nothing overtakes."""
    stranger.send(told(control.Join(role="observer")))

    def heard() -> bool:
        return bool(stranger.poll(0)) and isinstance(untold(stranger.recv()), control.Publish)

    wait_for(lambda: heard() or besieged.run.manager.drain(0), 20)
    assert besieged.run.manager.error is None, besieged.run.manager.error
    assert besieged.run.manager.manager.exit is None, besieged.run.manager.manager.exit


def test_the_comparison_can_fail():
    """Another seed gives other digests, so equal ones mean something."""
    other = MemoryRun(job(*SMALL, "seed=1"))
    other.run()
    assert other.manager.record is not None
    assert other.manager.record.committed != undisturbed()
