"""Thousands of connections, no file descriptors left, a gate that has died, a replay to an average, runs under -O.

Heavy ones run with ZMPSL_FAULTS=all.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import resource
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import zmq
from bare_port import OURS, PEER, READY, Port, greeting, mechanism
from helpers import SMALL, job, wait_for
from hostile import forward
from keyed import ENDLESS, stranger

from zmpsl.checkpoint import read_record
from zmpsl.codecs import NONE
from zmpsl.keys import revoke_member, security_from
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.member import Node
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner
from zmpsl.transport.link import Inbox, Link
from zmpsl.transport.outbox import Outbox
from zmpsl.transport.wire import OWNER_SENDER

HEAVY = pytest.mark.skipif(os.environ.get("ZMPSL_FAULTS") != "all", reason="runs with ZMPSL_FAULTS=all")
PATHS = os.pathsep.join(sys.path)


# -- connections -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def descriptors(wanted: int):
    """This process may open so many files for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this process may open {hard} files, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@HEAVY
def test_four_thousand_idle_connections(port: Port):
    """Silent ones, and those that stop in the greeting or in the handshake."""
    beginnings = [b"", greeting(mechanism(port))[:11], greeting(mechanism(port)), greeting(mechanism(port)) + b"\x04"]
    with descriptors(9000):
        for number in range(4000):
            port.connect().sendall(beginnings[number % len(beginnings)])
        port.serves()
        port.holds()


STARVED = """
import os, resource, sys
from helpers import ThreadedRun, job, wait_for
from zmpsl.loops.member import Node
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner

with ThreadedRun(job(*sys.argv[1:])) as run:
    manager = run.manager.manager
    wait_for(lambda: manager.phase is Phase.TRAINING and manager.round > 0, 60)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, hard))
    print(run.manager.endpoint, *(node.endpoint for node in run.nodes), flush=True)
    sys.stdin.readline()
    seen = manager.round
    wait_for(lambda: manager.round > seen + 10, 60)
    told = [getattr(event, "text", "") for event in run.events]
    assert any("no file descriptors are left (ulimit -n" in text for text in told), told
    print("trains", flush=True)
    sys.stdin.readline()
    assert run.manager.stop()
"""


def test_no_file_descriptors_left():
    """A flood of connections takes the last of them: that is told of, and who is connected goes on training."""
    command = [sys.executable, "-c", STARVED, *ENDLESS]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": PATHS}
        ) as child,
        contextlib.ExitStack() as stack,
    ):
        try:
            endpoints = child.stdout.readline().split()
            assert len(endpoints) == 6
            for endpoint in endpoints:
                host, number = endpoint.removeprefix("tcp://").split(":")
                for _ in range(20):
                    stack.enter_context(socket.create_connection((host, int(number)), timeout=10))
            child.stdin.write("go\n")
            child.stdin.flush()
            assert child.stdout.readline() == "trains\n"
            stack.close()
            with Node(ComputeNode(place="standby"), endpoints[0]) as late:
                wait_for(lambda: late.member.place == "standby-0" or late.drain(0), 60)
                assert late.member.place == "standby-0", late.error
                child.stdin.write("go\n")
                child.stdin.flush()
                assert child.wait(60) == 0
        finally:
            child.kill()


CAPPED = """
import resource, zmq
from zmpsl.errors import RemoteProtocolError
from zmpsl.transport.link import Inbox

context = zmq.Context()
inbox = Inbox(context, "tcp://127.0.0.1:*", 1 << 20)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
print(inbox.endpoint, flush=True)
while True:
    inbox.socket.poll()
    try:
        if inbox.receive() is not None:
            print("received", flush=True)
    except RemoteProtocolError:
        pass
"""


def test_endless_message_of_a_member_ends_at_the_ceiling():
    """libzmq limits no message's number of frames. A process's own ceiling does: the connection ends, and its memory
    is there again for others."""
    child = subprocess.Popen(
        [sys.executable, "-c", CAPPED], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": PATHS}
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        endpoint = child.stdout.readline().strip()
        host, number = endpoint.removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(number)), timeout=10) as peer:
            peer.sendall(greeting(b"NULL") + READY)
            frames = (b"\x03" + (1 << 20).to_bytes(8, "big") + bytes(1 << 20)) * 400
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                peer.sendall(frames)
        push = context.socket(zmq.PUSH)
        push.connect(endpoint)
        push.send_multipart(forward())
        assert child.stdout.readline() == "received\n"
    finally:
        context.destroy(linger=0)
        child.kill()
        child.wait()
        child.stdout.close()


# -- keys --------------------------------------------------------------------------------------------------------------


def test_nobody_gets_in_when_the_gate_is_dead():
    """A gate whose thread has ended lets nobody pass, not everybody."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox = Inbox(context, "tcp://127.0.0.1:*", 1 << 20, security=OURS)  # nobody answers ZeroMQ's question
    outbox = Outbox(OWNER_SENDER, lambda _: NONE, 1 << 20)
    link = Link(context, "node-0", inbox.endpoint, outbox, PEER, OURS.key.public)
    wait_for(lambda: link.broken() or link.failure, 15)
    assert inbox.receive() is None
    link.close()
    inbox.close()
    context.term()


def test_a_connection_that_was_open_when_its_key_was_revoked(site):
    """Its holder is sent away and left out; what still comes over the open connection is not used."""
    gate: list[bool] = []
    running = site(job(*ENDLESS, "recover.quorum=0.5", "recover.wait_s=3"), ["averager", "rack-1", "rack-2"])
    for name in ("clinic-1", "clinic-2"):
        owner = DataOwner()
        owner.wants_work = lambda own=owner.wants_work: bool(gate) and own()  # type: ignore[method-assign]
        running.join(name, owner, security_from(running.folder / name, "keys", "owner"))
    manager = running.manager.manager
    wait_for(lambda: manager.phase is Phase.TRAINING, 30)
    plan = manager.plan
    evil = security_from(running.folder / "clinic-2", "keys", "owner")
    mine = next(peer.name for peer in plan.owners if peer.public == evil.key.public)
    node = next(each for each in running.nodes.values() if each.member.place == "node-0")
    with stranger(zmq.PUSH, node.endpoint, evil, plan.nodes[0].public) as push:
        push.send(b"nonsense")
        wait_for(lambda: node.rejected == 1, 15)  # it is connected
        revoke_member(running.folder, "clinic-2")
        wait_for(lambda: manager.plan.version > 1 and manager.phase is Phase.TRAINING, 60)
        assert len(manager.plan.active) == 1
        before = node.rejected
        for _ in range(5):
            push.send_multipart(forward(plan=manager.plan.version, owner=int(mine[-1])))
        wait_for(lambda: node.rejected >= before + 5, 15)
        gate.append(True)
        wait_for(lambda: manager.round > 5, 60)


# -- code --------------------------------------------------------------------------------------------------------------


def test_a_run_and_its_resumption_without_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing of a run, of its messages or of its checkpoints goes through pickle or what is built on it."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module, names in (
        (pickle, ("load", "loads", "Unpickler")), (importlib.import_module("_pickle"), ("load", "loads")),
        (torch, ("load",)), (np, ("load",)),
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, never)
    wanted = job(*SMALL)
    MemoryRun(wanted, runs=tmp_path).run()
    more = msgspec.structs.replace(wanted, train=msgspec.structs.replace(wanted.train, rounds=3))
    MemoryRun(more, runs=tmp_path, resume=read_record(tmp_path / "memory")).run()
    assert read_record(tmp_path / "memory").last == 2


HOSTILE = """
from hostile import hostile_messages
from siege import siege
from zmpsl.codecs import CODECS
from zmpsl.errors import RemoteProtocolError
from zmpsl.transport.wire import parse, split

if __debug__:
    raise SystemExit("this is to run under -O")
found = 0
for frames in hostile_messages():
    try:
        headers = [parse(frames[0], 1 << 30)] if len(frames) == 2 else split(memoryview(frames[0]), 1 << 30)
    except RemoteProtocolError:
        found += 1
for codec in CODECS:
    for wrong in (b"", b"x", bytes(64), b"\\xff" * 4096):
        try:
            codec.unpack_into(memoryview(wrong), memoryview(bytearray(1 << 16)))
        except RemoteProtocolError:
            found += 1
if found < 60:
    raise SystemExit(f"only {found} refused")
import zmq
with siege() as besieged:
    node = besieged.node("node-0")
    push = besieged.connect(zmq.PUSH, node.endpoint)
    hostile = hostile_messages()
    for frames in hostile:
        push.send_multipart(frames)
    from helpers import wait_for
    wait_for(lambda: node.rejected >= len(hostile), 30)
    if node.rejected != len(hostile):
        raise SystemExit(f"{node.rejected} of {len(hostile)} rejected")
    besieged.gate.set()
    besieged.run.finish()
print("refused")
"""


def test_hostile_messages_are_refused_under_o():
    """Without assertions too: no check is one."""
    done = subprocess.run(
        [sys.executable, "-O", "-c", HOSTILE], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": PATHS},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused\n"


def test_a_run_under_o_gives_the_same_weights(tmp_path: Path):
    """`python -O -m zmpsl run` over processes."""
    settings = [setting for setting in SMALL if "small_nets" not in setting]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-O", "-m", "zmpsl", "run", *words, "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": PATHS})
    assert done.returncode == 0, done.stderr
    plain = MemoryRun(job(*settings))
    plain.run()
    assert read_record(next(tmp_path.iterdir())).committed == plain.manager.record.committed
