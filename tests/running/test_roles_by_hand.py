"""One role per process, started by hand in any order: the run is the same as `zmpsl run` makes it."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from helpers import TINY, cli, job, wait_for

from zmpsl.checkpoint import read_record
from zmpsl.job import Job
from zmpsl.job.load import dump_job
from zmpsl.launch.local import run
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import Committed, Finish, FromManager, Join, Leave, Publish, Welcome
from zmpsl.transport.control import ControlClient

IMAGES = [
    "owners=2", "train.rounds=6", "train.local_epochs=4", "train.batch_size=8", "data.name=mnist",
    "model.name=mlp", "model.args.features=784", "model.args.hidden=[16, 16, 16]",
]  # fmt: skip
CUSTOM = "small_nets:tiny_mlp"


def write_idx(folder: Path) -> Path:
    """An MNIST-like data set of 64 + 24 images of noise."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for stem, count in (("train", 64), ("t10k", 24)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
            (folder / name).write_bytes(header + array.tobytes())
    return folder


class Crew:
    """Processes of one run, all in one folder."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._processes: list[tuple[str, subprocess.Popen[str]]] = []

    def start(self, *commands: list[str]) -> list[str]:
        """Starts processes at once and gives the first line that each prints, by which it is there."""
        lines = []
        fresh = [self._stack.enter_context(cli(*arguments, folder=self.folder)) for arguments in commands]
        for arguments, process in zip(commands, fresh, strict=True):
            self._processes.append((" ".join(arguments), process))
            assert process.stdout is not None
            lines.append(process.stdout.readline().strip())
        return lines

    def finish(self) -> dict[str, str]:
        """Waits for all to end well; gives what each printed, by its arguments."""
        printed = {}
        for what, process in self._processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, (what, process.returncode, err)
            for trouble in ("Traceback", "ResourceWarning", "ERROR"):
                assert trouble not in err, (what, err)
            printed[what] = out
        return printed


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """A crew without anybody yet."""
    with contextlib.ExitStack() as stack:
        yield Crew(tmp_path, stack)


@contextlib.contextmanager
def watching(manager: str) -> Iterator[list[FromManager]]:
    """Joins as an observer; the list holds all that was heard once the block is left, up to the end of the run."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = ControlClient(context, manager)
    client.send(Join(role="observer"))
    heard: list[FromManager] = []

    def hear(last: type[FromManager]) -> bool:
        while (message := client.receive()) is not None:
            heard.append(message)
        return any(isinstance(message, last) for message in heard)

    try:
        wait_for(lambda: hear(Welcome), 10)
        yield heard
        wait_for(lambda: hear(Finish), 60)
    finally:
        client.send(Leave())
        client.close(0.5)
        context.term()


def free_address() -> str:
    """A port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def digests(wanted: Job) -> dict[int, dict[str, str]]:
    """What the same job gives in one process."""
    alone = MemoryRun(wanted)
    alone.run()
    assert alone.manager.record is not None
    return alone.manager.record.committed


def test_waiting_manager_and_a_submitted_job(tmp_path: Path, crew: Crew):
    """Manager without a job, roles at places and with data folders of their own, and somebody who comes late."""
    data = write_idx(tmp_path / "images")
    (tmp_path / "job.yaml").write_text(dump_job(job(*IMAGES)))
    assert job(*IMAGES).data.dir is None  # each owner knows where its data are; the job does not
    manager = crew.start(["manager", "--name", "hand"])[0].removeprefix("manager at ")
    node = ["compute", "--manager", manager]
    owner = ["owner", "--manager", manager, "--data-dir", str(data)]
    placed = [[*node, "--place", "node-1"], [*owner, "--place", "owner-1"]]
    lines = crew.start(*placed, node, owner, ["aggregator", "--manager", manager])
    assert all(line.endswith(f", manager at {manager}") for line in lines)
    submit = ["submit", "job.yaml", "--manager", manager, "--watch"]
    assert crew.start(submit) == [f"job digits accepted by the manager at {manager}"]
    folder = tmp_path / "runs" / "hand"
    wait_for(lambda: (folder / "record.json").exists())
    with watching(manager) as heard:  # too late for the news of the plan
        pass
    printed = crew.finish()

    welcome = next(message for message in heard if isinstance(message, Welcome))
    assert welcome.job == job(*IMAGES)
    plan = next(message.plan for message in heard if isinstance(message, Publish))
    assert plan.run == "hand"
    assert [peer.name for peer in (*plan.nodes, *plan.owners)] == ["node-0", "node-1", "owner-0", "owner-1"]
    assert {m.round: m.digests for m in heard if isinstance(m, Committed)}[5] == read_record(folder).committed[5]

    rounds = [f"round {number} committed" for number in range(1, 7)]
    assert printed[" ".join(submit)].splitlines()[1:] == [*rounds, "6 rounds committed"]
    for arguments, place in zip((node, owner, *placed), ("node-0", "owner-0", "node-1", "owner-1"), strict=True):
        assert f"{place}: done" in printed[" ".join(arguments)]
    assert f"run folder: {Path('runs') / 'hand'}" in printed["manager --name hand"]

    same = run(job(*IMAGES, f"data.dir={data}"), tmp_path / "runs", "local")
    assert read_record(same.folder).committed == read_record(folder).committed


def test_roles_before_the_manager(tmp_path: Path, crew: Crew):
    """Who comes first waits for the manager; code of the job's own runs where it was allowed."""
    settings = [*TINY, "owners=1", "compute_nodes=1", f"model.name={CUSTOM}"]
    address = free_address()
    allowed = [[role, "--manager", address, "--allow-code", CUSTOM] for role in ("compute", "owner")]
    for line in crew.start(*allowed, ["aggregator", "--manager", address]):
        assert " at tcp://127.0.0.1:" in line
    overrides = [part for override in settings for part in ("--set", override)]
    assert crew.start(["manager", "--bind", address, "--name", "late", *overrides]) == [f"manager at {address}"]
    crew.finish()
    assert read_record(tmp_path / "runs" / "late").committed == digests(job(*settings))
