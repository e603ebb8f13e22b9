"""What several test files need: runs in threads and processes, and the weights a run ended with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from zmpsl.job import Job, parse_job
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.messages import FromManager, Message, decode_from_manager, encode
from zmpsl.observe.events import Event, NoticeEvent
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.member import Member
from zmpsl.roles.owner import DataOwner
from zmpsl.roles.scoreboard import Scoreboard
from zmpsl.transport.envelope import unwrap, wrap

TINY = [
    "train.rounds=2",
    "train.local_epochs=1",
    "data.args.limit=96",
    "data.args.test_limit=48",
    "train.batch_size=16",
]
SMALL = [*TINY, "owners=2", "model.name=small_nets:tiny_mlp"]


def job(*overrides: str, yaml: str = "") -> Job:
    """A job from defaults and overrides."""
    return parse_job(yaml, "test", overrides)


def global_state(members: dict[str, Member]) -> dict[str, np.ndarray]:
    """The whole model's state dict as the members hold it, put together from all parts."""
    owner = members["owner-0"]
    state = dict(owner.engine._parts[0].layout.views(owner.engine.base))
    for member in members.values():
        if isinstance(member, ComputeNode):
            state |= member.engine.base.layout.views(member.engine.base.flat)
    return {name: array.copy() for name, array in state.items() if "@" not in name}


def differing(ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    if set(ours) != set(reference):
        return sorted(set(ours) ^ set(reference))
    return [
        name
        for name in ours
        if ours[name].dtype != reference[name].dtype or ours[name].tobytes() != reference[name].tobytes()
    ]


class ThreadedRun:
    """All roles as nodes in this process, each in a thread, over TCP on loopback."""

    def __init__(self, job: Job, runs: Path | None = None) -> None:
        self.events: list[Event] = []
        manager = Manager(runs, job)
        manager.board.listeners.append(self.events.append)
        self.manager = ManagerNode(manager)
        kinds = [
            Aggregator(runs),
            *(ComputeNode(runs) for _ in range(job.nodes)),
            *(DataOwner(runs) for _ in range(job.owners)),
        ]
        self.nodes = [Node(member, self.manager.endpoint) for member in kinds]

    def __enter__(self) -> ThreadedRun:
        self.manager.start()
        for node in self.nodes:
            node.start()
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()
        self.manager.close()

    @property
    def members(self) -> dict[str, Member]:
        return {node.member.place: node.member for node in self.nodes}

    def finish(self, timeout_s: float = 60.0) -> None:
        """Waits for the end and raises what went wrong."""
        assert self.manager.drain(timeout_s), "the run did not end"
        if self.manager.error is not None:
            raise self.manager.error
        for node in self.nodes:
            assert node.drain(10), f"{node.member.place} did not end"
            if node.error is not None:
                raise node.error


def told(message: Message) -> bytes:
    """A control message as it travels."""
    return wrap(encode(message), 0)


def untold(frame: bytes) -> FromManager:
    """What the manager says in a frame."""
    return decode_from_manager(unwrap(frame)[0])


@contextlib.contextmanager
def cli(*arguments: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A `zmpsl` process; ended, with all it started, when the test is done."""
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "default",
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent), str(Path(__file__).parents[1])]),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "zmpsl", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in family.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.communicate()


def notices(board: Scoreboard) -> list[str]:
    """Gives the list to which every notice of a run is added from now on."""
    texts: list[str] = []
    board.listeners.append(lambda event: texts.append(event.text) if isinstance(event, NoticeEvent) else None)
    return texts


def wait_for(what: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Waits until something is true; fails the test when it does not become so."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(0)  # give way; the machine may have one core for all of us


def victim_of(launcher: int, folder: Path, place: str) -> psutil.Process:
    """The process of a place, known by its log file."""
    for child in psutil.Process(launcher).children(recursive=True):
        if any(file.path == str(folder / "logs" / f"{place}.log") for file in child.open_files()):
            return child
    raise AssertionError(f"no process of {place}")
