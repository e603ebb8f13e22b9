"""A local run with harm done to it: its links lead through proxies, and its processes die at named points of a commit.

Every role is a process as under `zmpsl run`, started and started again by the same code. It binds 127.0.0.1 and tells
its peers 127.0.0.2, where a proxy listens. A file `die/PLACE` in the run's folder that names a point makes that role
kill itself there, once.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

from proxy import Harm, Proxy

from zmpsl.job import Job
from zmpsl.keys import LOOPBACK, MANAGER_FILE, Allowed, Security, add_member, security_from, write_pair
from zmpsl.launch import process as roles
from zmpsl.launch.processes import Processes
from zmpsl.plan import AGGREGATOR, node_name, owner_name
from zmpsl.transport.curve import new_pair

__all__ = ["POINTS", "Site", "control", "die_at", "make_keys", "places_of"]

# Named points inside the commit: nothing written yet; all written to a temporary file; renamed, but nobody told.
POINTS = ("before it writes", "before it renames", "after it has written")
# Who writes what: the module and the name it calls.
WRITES = {
    "node": ("zmpsl.roles.compute.save_parts", "part-"),
    AGGREGATOR: ("zmpsl.roles.aggregator.save_parts", "part-"),
    "manager": ("zmpsl.roles.manager.write_record", "record.json"),
}


def places_of(job: Job) -> list[str]:
    """Names all roles of a job but the manager."""
    return [AGGREGATOR, *map(node_name, range(job.nodes)), *map(owner_name, range(job.owners))]


def make_keys(folder: Path, job: Job) -> None:
    """Makes key pairs for all roles in one folder, and the list that lets them in."""
    for role, places in (("manager", 0), ("aggregator", 1), ("compute", job.nodes), ("owner", job.owners)):
        pair = new_pair(role, role)
        _, public = write_pair(folder, pair)
        if role == "manager":
            (folder / MANAGER_FILE).write_bytes(public.read_bytes())
        else:
            add_member(folder, Allowed(name=role, role=pair.role, public=pair.public, places=places))


def free_port() -> int:
    """Finds a port that is free at both addresses, and that no outgoing connection will be given."""
    for port in random.sample(range(20_000, 32_000), 200):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.2", port)):
            return port
    raise OSError("no free port between 20000 and 32000")


def control(place: str) -> str:
    """Names the way from a place to the manager."""
    return f"{place} to manager"


def die_at(folder: Path, place: str, point: str) -> None:
    """Asks a role to kill itself at a point of its next commit."""
    (folder / "die").mkdir(exist_ok=True)
    temporary = folder / "die" / f"{place}.tmp"
    temporary.write_text(point)
    temporary.replace(folder / "die" / place)


def mortal(folder: Path, place: str) -> None:
    """Makes this process keep to what `die_at` asks."""
    target, name = WRITES.get(place.split("-")[0], ("", ""))
    if not target:
        return
    order = folder / "die" / place

    def die_if(point: str) -> None:
        if order.exists() and order.read_text() == point:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    real_rename = Path.replace

    def rename(path: Path, to: Path) -> Path:
        if path.name.startswith(name) and path.name.endswith(".tmp"):
            die_if(POINTS[1])
        return real_rename(path, to)

    module, function = target.rsplit(".", 1)
    real_write = getattr(sys.modules[module], function)

    def write(*arguments: object) -> None:
        die_if(POINTS[0])
        real_write(*arguments)
        die_if(POINTS[2])

    patch(target, write).start()
    patch.object(Path, "replace", rename).start()


def set_clock(off_s: float) -> None:
    """Makes this process's clock wrong."""
    real = time.time
    time.time = lambda: real() + off_s


def security_for(keys: Path | None, role: str, world: str) -> Security:
    """The key of a role, where the run has keys; on a line of our own it needs none."""
    if keys is None:
        return Security(open=True) if world else LOOPBACK
    return security_from(keys, "", role)  # type: ignore[arg-type]


def enter_world(world: str) -> None:
    """Puts this process into a network namespace, where it has one."""
    if world:
        from two_hosts import enter

        enter(world)


def member(
    role: str, runs: Path, run: str, name: str, place: str, endpoint: str, address: tuple[str, str], keys: Path | None,
    clock_s: float, world: str,
) -> None:  # fmt: skip
    """A member's process; `address` is where to bind, and the host to tell."""
    from zmpsl.loops.member import Node

    enter_world(world)
    set_clock(clock_s)

    def work() -> None:
        made = roles.make_member(role, runs, place)
        mortal(runs / run, name)
        node = Node(made, endpoint, *address, security=security_for(keys, role, world))
        roles.quiet_signals(node.ask_to_stop)
        node.run()

    roles._log_to(runs / run, name)
    sys.exit(roles.guarded(work))


def manager(
    keys: Path | None, clock_s: float, world: str,
    runs: Path, run: str, resume: bool, bind: str, ready: Connection, promise: roles.Promise,
) -> None:  # fmt: skip
    """The manager's process: the one of `zmpsl run`, but mortal, and with keys."""
    import zmpsl.loops.manager as loop

    enter_world(world)
    set_clock(clock_s)
    mortal(runs / run, "manager")
    loop.ManagerNode = partial(loop.ManagerNode, security=security_for(keys, "manager", world))  # type: ignore[assignment,misc]
    roles.manager_process(runs, run, resume, bind, ready, promise)


class Site:
    """Where harmed runs take place: one proxy before each role.

    Args:
        job: Whose roles.
        keys: Folder of the keys of all roles, None for a run without.
        replaced: The launcher ends the process of a role that the manager gives up, as `zmpsl run` does.
        clocks: Seconds by which the clocks of places are off.

    Attributes:
        harms: What is done to the connections to a place, and to those from it to the manager (`control`).
        processes: Of the run that is under way.
    """

    def __init__(
        self, job: Job, keys: Path | None = None, replaced: bool = True, clocks: dict[str, float] | None = None
    ) -> None:
        self.job, self.keys, self.replaced, self.clocks = job, keys, replaced, clocks or {}
        places = places_of(job)
        self.harms = {place: Harm() for place in ("manager", *places, *map(control, places))}
        self.proxies = {
            place: Proxy(("127.0.0.2", free_port()), ("127.0.0.1", 0), self.harms[place])
            for place in ("manager", *places)
        }
        # The manager's own proxy only reserves its port; each member has a way of its own to it.
        for way in map(control, places):
            self.proxies[way] = Proxy(("127.0.0.2", 0), ("127.0.0.1", self.proxies["manager"].port), self.harms[way])
        self.processes: _Harmed | None = None

    def pid(self, place: str) -> int:
        """The process of a place now; 0 while there is none."""
        if self.processes is None:
            return 0
        found = self.processes.process_of(place)
        return found.pid or 0 if found is not None and found.is_alive() else 0

    @contextmanager
    def here(self) -> Iterator[None]:
        """Runs started meanwhile with `zmpsl.launch.local.run` take place here."""

        def made(folder: Path, job: Job, resume: bool) -> _Harmed:
            self.processes = _Harmed(self, folder, job, resume)
            return self.processes

        # Here roles die of us, so none of them is given up.
        with patch("zmpsl.launch.local.Processes", made), patch("zmpsl.launch.processes.RESTARTS", 1 << 30):
            yield

    def heal(self) -> None:
        """Ends all silence."""
        for harm in self.harms.values():
            harm.silent = False

    def close(self) -> None:
        """Ends all connections."""
        self.heal()
        for proxy in self.proxies.values():
            proxy.close()

    def address(self, place: str) -> tuple[str, str]:
        """Where a place binds, and what host it tells."""
        return f"tcp://127.0.0.1:{self.proxies[place].port}", "127.0.0.2"

    def way(self, place: str) -> str:
        """Where a place finds the manager."""
        return f"tcp://127.0.0.2:{self.proxies[control(place)].port}"

    def world(self, place: str) -> str:
        """The network namespace a place is in, empty for that of everybody."""
        return ""


class _Harmed(Processes):
    """The processes of a run at a site."""

    def __init__(self, site: Site, folder: Path, job: Job, resume: bool) -> None:
        super().__init__(folder, job, resume)
        self._site = site
        self._lock = threading.Lock()

    def process_of(self, place: str) -> BaseProcess | None:
        """The process of a place now."""
        if place == "manager":
            return self._manager
        role = self._members.get(place)
        return role.process if role is not None else None

    def lost(self, place: str, pid: int) -> None:
        if self._site.replaced:
            super().lost(place, pid)

    def _start_manager(self, context: object, bind: str) -> None:
        site = self._site
        target = partial(manager, site.keys, site.clocks.get("manager", 0.0), site.world("manager"))
        with patch("zmpsl.launch.processes.manager_process", target):
            super()._start_manager(context, self._site.address("manager")[0])  # type: ignore[arg-type]

    def _start_member(self, context: object, role: str, name: str, place: str) -> BaseProcess:
        site = self._site
        target: Callable[..., None] = partial(
            _member_at, site.address(name), site.way(name), site.keys, site.clocks.get(name, 0.0), site.world(name)
        )
        with patch("zmpsl.launch.processes.member_process", target):
            return super()._start_member(context, role, name, place)  # type: ignore[arg-type]


def _member_at(
    address: tuple[str, str], way: str, keys: Path | None, clock_s: float, world: str,
    role: str, runs: Path, run: str, name: str, place: str, _endpoint: str,
) -> None:  # fmt: skip
    member(role, runs, run, name, place, way, address, keys, clock_s, world)
