"""A run under way that strangers may trouble before it goes on, and what it must end with in spite of them."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import zmq
from helpers import SMALL, ThreadedRun, job, wait_for

from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.loops.member import Node
from zmpsl.roles.manager import Phase
from zmpsl.roles.owner import DataOwner

__all__ = ["Siege", "siege", "undisturbed"]


@cache
def undisturbed() -> dict[int, dict[str, str]]:
    """What every run here must end with, from a run that nobody can reach."""
    run = MemoryRun(job(*SMALL))
    run.run()
    assert run.manager.record is not None
    return run.manager.record.committed


class Siege:
    """A run that waits, ready to train, until it is told to go; and bare sockets to whatever listens."""

    def __init__(self, run: ThreadedRun, gate: threading.Event) -> None:
        self.run = run
        self.gate = gate
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoints = [node.endpoint for node in run.nodes]
        self._open: list[zmq.Socket[bytes]] = []

    def connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        """A bare socket that does not come back once it was hung up on; closed with the siege."""
        peer = self.context.socket(kind)
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RECONNECT_IVL, -1)
        peer.connect(endpoint)
        self._open.append(peer)
        return peer

    def say(self, *frames: bytes) -> zmq.Socket[bytes]:
        """Says something to the manager, as somebody it does not know."""
        stranger = self.connect(zmq.DEALER, self.run.manager.endpoint)
        stranger.send_multipart(frames)
        return stranger

    def node(self, place: str) -> Node:
        """The node at a place."""
        return next(node for node in self.run.nodes if node.member.place == place)

    def hold_out(self) -> None:
        """Lets the run go on; it must end as if nobody had been there."""
        self.gate.set()
        self.run.finish()
        record = self.run.manager.manager.record
        assert record is not None
        assert record.committed == undisturbed()


@contextlib.contextmanager
def siege(wanted: Job | None = None) -> Iterator[Siege]:
    """A run under way whose owners do not begin their work before `hold_out`.

    It has a folder: what looks damaged has a round begun again, and on a busy machine that may be said when the first
    round is committed already.
    """
    with tempfile.TemporaryDirectory() as runs:
        run, gate = ThreadedRun(wanted or job(*SMALL), Path(runs)), threading.Event()
        for node in run.nodes:
            if isinstance(node.member, DataOwner):
                node.member.wants_work = lambda own=node.member.wants_work: gate.is_set() and own()  # type: ignore[method-assign]
        with run, _besieged(run, gate) as besieged:
            yield besieged


@contextlib.contextmanager
def _besieged(run: ThreadedRun, gate: threading.Event) -> Iterator[Siege]:
    wait_for(lambda: run.manager.manager.phase is Phase.TRAINING or run.manager.drain(0), 20)
    besieged = Siege(run, gate)
    try:
        yield besieged
    finally:
        gate.set()
        besieged.context.destroy(linger=0)
