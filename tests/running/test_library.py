"""zmpsl as a library: roles as objects inside somebody else's program, which they leave as they found it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq
from helpers import SMALL, TINY, ThreadedRun, cli, job, wait_for

import zmpsl
from zmpsl.checkpoint import read_record
from zmpsl.errors import LocalProtocolError, NetworkError, PeerLostError
from zmpsl.loops.life import State
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager, Phase
from zmpsl.roles.owner import DataOwner

ENDLESS = [*SMALL, "train.rounds=100000", "evaluate.every=0"]
LIMIT_BYTES = 60 << 20

SCRIPT = """
import logging, signal, sys, threading
from zmpsl import Job, run

if __name__ == "__main__":
    assert not {"zmq", "torch"} & set(sys.modules), "importing zmpsl is light"
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    events = []
    result = run(Job(owners=1, compute_nodes=1), "runs", "mine", on_event=events.append)
    assert result.status == "finished" and result.exit_code == 0 and result.accuracy > 0.5
    assert type(events[-1]).__name__ == "EndEvent" and len(events) > 6
    assert "torch" not in sys.modules, "the roles have processes of their own"
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
    assert logging.getLogger().handlers == [] and logging.getLogger("zmpsl").handlers == []
    assert threading.enumerate() == [threading.main_thread()]
    print(result.folder)
"""


@pytest.fixture
def manager() -> Iterator[ManagerNode]:
    """A manager with a small job, not started."""
    node = ManagerNode(Manager(None, job(*SMALL)))
    yield node
    node.close()


def members() -> list[Aggregator | ComputeNode | DataOwner]:
    """Who it takes to run `SMALL`."""
    return [Aggregator(), ComputeNode(), ComputeNode(), DataOwner(), DataOwner()]


def training(run: ThreadedRun) -> None:
    """Waits until a run is in the middle of its work."""
    wait_for(lambda: run.manager.manager.phase is Phase.TRAINING and run.manager.manager.round >= 1, 30)


# -- as documented -----------------------------------------------------------------------------------------------------


def test_documented_script(tmp_path: Path):
    """`from zmpsl import Job, run` is all it takes, and nothing is left behind in the caller's process."""
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "-W", "error", "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.strip() == str(Path("runs") / "mine")
    assert read_record(tmp_path / "runs" / "mine").last == 2


def test_every_public_name_is_there():
    """The lazy names of the package lead somewhere, and a wrong one is an AttributeError as always."""
    assert all(getattr(zmpsl, name) is not None for name in zmpsl.__all__)
    assert set(dir(zmpsl)) == set(zmpsl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Runner'"):
        _ = zmpsl.Runner


# -- life of a node ----------------------------------------------------------------------------------------------------


def test_nodes_as_context_managers():
    """Several nodes in one process, one of them in the caller's own thread."""
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(ManagerNode(Manager(None, job(*SMALL))))
        *others, last = members()
        nodes = [stack.enter_context(Node(member, manager.endpoint)) for member in others]
        own = Node(last, manager.endpoint)
        assert own.state is State.NEW
        own.run()
        assert own.state is State.CLOSED
        assert all(node.drain(10) for node in [*nodes, manager])
        assert [node.error for node in [*nodes, manager]] == [None] * 5
        assert manager.manager.exit is not None
        assert manager.manager.exit.exit_code == 0
    assert all(node.state is State.CLOSED for node in [*nodes, manager])


def test_closing_what_was_never_started(manager: ManagerNode):
    """Frees the sockets, and may be repeated."""
    node = Node(ComputeNode(), manager.endpoint)
    for each in (node, manager):
        assert not each.drain(0)
        each.close()
        each.close()
        assert each.state is State.CLOSED
        assert each.drain(0)
        assert each.stop()


def test_stop_drain_close_may_be_repeated(manager: ManagerNode):
    """In any order, and by any number of callers."""
    manager.start()
    node = Node(ComputeNode(), manager.endpoint).start()
    wait_for(lambda: node.member.place, 10)
    assert not node.drain(0)
    assert node.stop()
    assert node.stop()
    assert node.drain()
    node.close()
    node.close()
    assert node.state is State.CLOSED
    assert manager.stop()
    manager.close()
    manager.close()
    assert manager.drain(0)


@pytest.mark.parametrize("kind", [Node, ManagerNode])
def test_starting_twice_makes_one_thread(kind: type, manager: ManagerNode, monkeypatch: pytest.MonkeyPatch):
    """Two threads on one socket would break it; `with node.start()` is easily written."""
    go = threading.Event()
    running: list[str] = []

    def work(self: object) -> None:
        running.append(threading.current_thread().name)
        go.wait(10)

    monkeypatch.setattr(kind, "run", work)
    node = Node(ComputeNode(), manager.endpoint) if kind is Node else manager
    try:
        node.start()
        node.start()
        with node:
            wait_for(lambda: running, 10)
            go.set()
        names = {thread.name for thread in threading.enumerate()}
        assert len(running) == 1, running
        assert running[0] not in names
    finally:
        go.set()
        node._close()


@pytest.mark.parametrize("kind", [Node, ManagerNode])
def test_starting_again_after_the_end(kind: type, manager: ManagerNode):
    """Its sockets are gone: that is said at once, not hidden in a thread."""
    node = Node(ComputeNode(), manager.endpoint) if kind is Node else manager
    node.close()
    with pytest.raises(LocalProtocolError, match="closed"):
        node.start()


def test_stopping_an_owner_ends_the_run():
    """A role that is told to go in mid-run takes leave: where nobody waits for it, everybody stops and names it."""
    with ThreadedRun(job(*ENDLESS, "recover.wait_s=0")) as run:
        training(run)
        victim = next(node for node in run.nodes if node.member.place == "owner-1")
        since = time.monotonic()
        assert victim.stop()
        assert run.manager.drain(10)
        others = [node for node in run.nodes if node is not victim]
        assert all(node.drain(10) for node in others)
        assert time.monotonic() - since < 10
        for node in [run.manager, *others]:
            assert isinstance(node.error, PeerLostError), node.error
            assert str(node.error).startswith("owner-1 (process ")
            assert str(node.error).endswith(" has left")


def test_stopping_the_manager_ends_the_run_for_all():
    """An interrupt is no error: nobody raises, everybody ends."""
    with ThreadedRun(job(*ENDLESS)) as run:
        training(run)
        assert run.manager.stop()
        assert all(node.drain(10) for node in run.nodes)
        assert [node.error for node in [run.manager, *run.nodes]] == [None] * 6
        assert run.manager.manager.exit is not None
        assert (run.manager.manager.exit.exit_code, run.manager.manager.exit.text) == (130, "interrupted")


def test_ask_to_stop_returns_at_once():
    """It is what a signal handler may call: it waits for nothing."""
    with ThreadedRun(job(*ENDLESS)) as run:
        training(run)
        since = time.monotonic()
        run.manager.ask_to_stop()
        assert time.monotonic() - since < 0.05
        assert run.manager.drain(10)


# -- what is left of the caller's process ------------------------------------------------------------------------------


def surroundings() -> dict[str, object]:
    """What a library must not change."""
    gc.collect()
    root, ours = logging.getLogger(), logging.getLogger("zmpsl")
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": (list(root.handlers), root.level, list(ours.handlers), ours.level, ours.propagate),
        # pyzmq keeps one thread for the whole process, which lets go of memory that was sent.
        "threads": {t.name for t in threading.enumerate() if type(t).__name__ != "GarbageCollectorThread"},
        "system threads": psutil.Process().num_threads(),
        "files": psutil.Process().num_fds(),
        "shared context": zmq.Context._instance,
        "directory": os.getcwd(),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("how", ["to the end", "stopped", "refused"])
def test_surroundings_are_as_before(how: str):
    """Signals, logging, threads, files, zmq's shared context: all as they were, whatever way a run ends."""
    with ThreadedRun(job(*SMALL)) as first:  # torch and pyzmq make some threads and files once
        first.finish()
    before = surroundings()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _go_through(how)
        gc.collect()
    assert [str(each.message) for each in seen if issubclass(each.category, ResourceWarning)] == []
    # The system takes a moment to end a thread that was joined.
    wait_for(lambda: psutil.Process().num_threads() <= before["system threads"], 10)
    assert surroundings() == before


def _go_through(how: str) -> None:
    if how == "to the end":
        with ThreadedRun(job(*SMALL)) as run:
            run.finish()
    elif how == "stopped":
        with ThreadedRun(job(*ENDLESS)) as run:
            training(run)
            run.nodes[1].stop()
    else:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            makers: list[Callable[[], object]] = [
                lambda: ManagerNode(Manager(), address), lambda: Node(ComputeNode(), address, address),
            ]  # fmt: skip
            for make in makers:
                with pytest.raises(NetworkError):
                    make()


def test_every_node_has_its_own_context(manager: ManagerNode):
    """What one program does with zmq's shared context, and what one node does with its own, hurts no other."""
    nodes = [Node(ComputeNode(), manager.endpoint) for _ in range(3)]
    contexts = [node._context for node in [*nodes, manager]]
    assert len({id(context) for context in contexts}) == 4
    assert zmq.Context._instance not in contexts
    for node in nodes:
        node.close()
    assert [context.closed for context in contexts] == [True, True, True, False]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_manager_and_aggregator_are_light(tmp_path: Path):
    """Both run on devices too small for torch: below 60 MB each, and torch is not even mapped."""
    settings = [part for override in [*TINY, "train.rounds=100000"] for part in ("--set", override)]
    folder = tmp_path / "runs" / "light"
    with cli("run", "--plain", "--name", "light", *settings, folder=tmp_path) as process:
        wait_for(lambda: (folder / "record.json").exists() and read_record(folder).last >= 3)
        seen = {}
        for child in psutil.Process(process.pid).children(recursive=True):
            logs = [Path(file.path) for file in child.open_files() if file.path.startswith(str(folder / "logs"))]
            if logs:
                maps = Path(f"/proc/{child.pid}/maps").read_text()
                seen[logs[0].stem] = (child.memory_info().rss, "libtorch" in maps)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert len(seen) == 8
    for place in ("manager", "aggregator"):
        rss, torch_is_mapped = seen[place]
        assert not torch_is_mapped, place
        assert rss < LIMIT_BYTES, (place, rss)
    assert seen["node-0"][1], "the check for torch can fail"
