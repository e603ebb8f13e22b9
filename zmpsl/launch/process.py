"""One role in a process of its own, as `zmpsl run` starts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zmpsl.errors import ZmpslError
from zmpsl.job.load import load_job
from zmpsl.pool.budget import limits_here
from zmpsl.transport.allocator import keep_freed_memory, use_huge_pages

if TYPE_CHECKING:
    from zmpsl.roles.member import Member

__all__ = [
    "HUNG_S", "Promise", "crowd_process", "guarded", "make_member", "manager_process", "member_process",
    "quiet_signals", "share_ends",
]  # fmt: skip

# A manager that leads a run and has not turned its loop for so long hangs. Less than its members' patience; a new plan
# goes to all owners in one turn.
HUNG_S, HUNG_S_PER_OWNER = 8.0, 0.02

_CLASSES = {
    "aggregator": ("zmpsl.roles.aggregator", "Aggregator"),
    "compute": ("zmpsl.roles.compute", "ComputeNode"),
    "owner": ("zmpsl.roles.owner", "DataOwner"),
    "thin compute": ("zmpsl.roles.thin", "ThinNode"),
    "thin owner": ("zmpsl.roles.thin", "ThinOwner"),
}


def make_member(
    role: str, runs: Path | None, place: str = "", data_dir: Path | None = None, memory: str = ""
) -> Member:
    """Makes the role for a process of its own; imports only what that role needs.

    Args:
        role: Which.
        runs: Folder in which the run's folder lies or is made.
        place: Place wanted, empty for any.
        data_dir: A data owner's data.
        memory: A compute node's budget, empty for the job's.

    Raises:
        ZmpslError: The role needs torch, which is not installed.
        JobError: `memory` is no budget.
    """
    keep_freed_memory()
    use_huge_pages()
    module, name = _CLASSES[role]
    try:
        kind = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ZmpslError(f"role {role} needs PyTorch, which is not installed: pip install 'zmpsl[train]'") from error
    member: Member = kind(runs, place, data_dir) if role == "owner" else kind(runs, place)
    member.own_process = True
    if memory:
        limits_here(memory)  # says now what is wrong with it
        member.memory = memory
    return member


def quiet_signals(stop: Callable[[], object]) -> None:
    """Makes SIGTERM ask for an orderly end; Ctrl-C is left to whoever started us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop())


def guarded(what: Callable[[], None]) -> int:
    """Runs a role; gives the exit code, and says on stderr what went wrong."""
    try:
        what()
    except ZmpslError as error:
        print(f"zmpsl: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


class Promise(Protocol):
    """A number that two processes share."""

    value: float


def manager_process(runs: Path, run: str, resume: bool, bind: str, ready: Connection, promise: Promise) -> None:
    """The manager, with the job of the run's folder.

    Args:
        runs: Folder with the run's folder.
        run: Name of the run.
        resume: Go on after the last committed round.
        bind: Where to bind.
        ready: Its address is told through this.
        promise: It writes here until when it is to be heard of again, in seconds of the monotonic clock. While it leads
            a run its loop never stands still for long; before, it may solve cuts.
    """
    from zmpsl.checkpoint import held, read_record
    from zmpsl.loops.manager import ManagerNode
    from zmpsl.roles.manager import Manager

    def work() -> None:
        job = load_job(runs / run / "job.yaml")
        manager = Manager(runs, job, run, read_record(runs / run) if resume else None)
        node = ManagerNode(manager, bind)
        launcher = parent_process()

        def turned(now: float) -> None:
            if launcher is not None and not launcher.is_alive():  # nobody would start roles again, nor end them
                node.ask_to_stop()
            leading_s = HUNG_S + HUNG_S_PER_OWNER * job.owners
            promise.value = now + (leading_s if manager.plan is not None else job.recover.silent_s)

        node.turned = turned
        quiet_signals(node.ask_to_stop)
        ready.send(node.endpoint)
        ready.close()
        node.run()

    _log_to(runs / run, "manager")

    def alone() -> None:
        with held(runs / run):
            work()

    sys.exit(guarded(alone))


def member_process(role: str, runs: Path, run: str, name: str, place: str, endpoint: str) -> None:
    """A compute node, data owner or aggregator; `name` is that of its log, `place` the one it asks for."""
    from zmpsl.loops.member import Node

    def work() -> None:
        node = Node(make_member(role, runs, place), endpoint)
        quiet_signals(node.ask_to_stop)
        node.run()

    _log_to(runs / run, name)
    sys.exit(guarded(work))


def crowd_process(role: str, runs: Path, run: str, name: str, places: tuple[str, ...], endpoint: str) -> None:
    """Compute nodes or data owners that imitate other devices; `name` is that of their log."""
    from zmpsl.loops.crowd import Crowd

    def work() -> None:
        job = load_job(runs / run / "job.yaml")
        kinds = {"owner": job.emulate.owner, "compute": job.emulate.node}[role]
        members = []
        for place in places:
            kind = kinds(int(place.rpartition("-")[2]))
            thin = kind is not None and kind.compute == "none"
            members.append(make_member(f"thin {role}" if thin else role, runs, place))
        if role == "owner":
            share_ends(members)
        crowd = Crowd(members, endpoint, job.owners)
        quiet_signals(crowd.ask_to_stop)
        crowd.run()

    _log_to(runs / run, name)
    open_many_files()
    sys.exit(guarded(work))


def share_ends(members: Sequence[Member]) -> None:
    """Has data owners of one process share the base of their parts: it is the same for all."""
    from zmpsl.engine.owner import SharedEnds
    from zmpsl.roles.owner import DataOwner

    shared = SharedEnds()
    for member in members:
        if isinstance(member, DataOwner):
            member.shared = shared


def open_many_files() -> None:
    """Takes as many descriptors as the system gives: a device has some twenty."""
    with suppress(ImportError):  # Windows
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _log_to(folder: Path, name: str) -> None:
    """Sends this process's output to the run's log folder."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "logs" / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
