"""The processes of a run on this machine: started, watched, and started again when one of them dies.

Manager and aggregator are started fresh, so they never load torch. Data owners and compute nodes are forked from a
server that has loaded it once: a second each would otherwise pass, and their memory would hold it several times. So is
whoever follows a role that died, the manager too: the run stands still meanwhile.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from zmpsl.errors import JoinError, ZmpslError
from zmpsl.job.schema import Job
from zmpsl.launch.process import HUNG_S, crowd_process, manager_process, member_process
from zmpsl.plan import AGGREGATOR, node_name, owner_name

__all__ = ["Processes"]

# After the manager is gone everybody else has this long to go too; where somebody asked for the end, each this long.
FAREWELL_S, STOP_S = 15.0, 5.0
# Whoever looks less often than this was stopped itself, and the manager perhaps with it.
LOOK_S = 2.0
# How often each role is started again, and how long is waited before: longer each time, as a broken one stays broken.
RESTARTS = 20
# Whoever has worked for so long is not broken: what happened before is forgotten.
SOUND_S = 60.0
# Imitated owners of one process; each has some twenty descriptors and connections.
MOST_IN_ONE = 250
PATIENCE_S = (0.0, 0.1, 0.2, 0.5, 1.0)


@dataclass
class _Role:
    """One role, in whichever process it runs now.

    Attributes:
        wish: The place its process asks for: its own and, where that is not to be had, any in turn.
        process: The current process.
        restarts: How often it was started again without having worked for long.
        started: When it was started last.
        due: When it is to be started again, in seconds of the monotonic clock; None while it runs.
    """

    role: str
    place: str
    wish: str
    process: BaseProcess
    restarts: int = 0
    started: float = field(default_factory=time.monotonic)
    due: float | None = None


def crowds(owners: int) -> list[tuple[str, ...]]:
    """Deals imitated owners out to processes: one per core, and more where they would be too many for one."""
    number = min(owners, max(os.cpu_count() or 1, -(-owners // MOST_IN_ONE)))
    return [tuple(owner_name(index) for index in range(first, owners, number)) for first in range(number)]


class Processes:
    """The processes of one run.

    Args:
        folder: The run's folder, with the job in it.
        job: The job.
        resume: The run goes on after its last committed round.
    """

    def __init__(self, folder: Path, job: Job, resume: bool) -> None:
        self._folder = folder
        self._job = job
        self._resume = resume
        self._endpoint = ""
        self._manager: BaseProcess | None = None
        self._manager_restarts = 0
        self._manager_started = time.monotonic()
        self._looked_at = time.monotonic()
        self._looking_since = self._looked_at
        self._members: dict[str, _Role] = {}
        self._crowds: dict[str, tuple[str, ...]] = {}  # places of the imitated devices that a process holds
        self._closing = False
        self._farewell_s = FAREWELL_S
        self._fresh: SpawnContext = multiprocessing.get_context("spawn")
        # Until when, in seconds of the monotonic clock, the manager is to be heard of again; it writes this itself.
        self._promise = self._fresh.RawValue(ctypes.c_double, 0.0)
        self._forked: SpawnContext | ForkServerContext = self._fresh
        if sys.platform == "linux":
            self._forked = multiprocessing.get_context("forkserver")
            multiprocessing.set_forkserver_preload(["zmpsl.launch.preload"])

    def start(self) -> None:
        """Starts the manager, then everybody else with its address.

        Raises:
            ZmpslError: The manager cannot start.
        """
        self._start_manager(self._fresh, "tcp://127.0.0.1:*")
        roles = [
            ("aggregator", AGGREGATOR),
            *(("compute", node_name(i)) for i in range(self._job.nodes)),
            *(("owner", owner_name(i)) for i in range(self._job.owners)),
        ]
        emulate = self._job.emulate
        if emulate.owners:
            roles = [(role, place) for role, place in roles if role != "owner"]
            for number, places in enumerate(crowds(self._job.owners)):
                self._crowds[f"owners-{number}"] = places
                roles.append(("owner", f"owners-{number}"))
        if emulate.nodes:
            self._crowds |= {place: (place,) for role, place in roles if role == "compute"}
        for role, place in roles:
            context = self._fresh if role == "aggregator" else self._forked
            self._members[place] = _Role(role, place, place, self._start_member(context, role, place, place))

    def over(self) -> bool:
        """Looks after everybody, and tells whether the run is over: the manager has ended and does not come back."""
        if self._manager is None:
            return True
        if not self._manager.is_alive():
            return not self._start_manager_again(self._manager)
        now = time.monotonic()
        self._look_at_manager(self._manager, now)
        if not self._closing and self._job.recover.wait_s:
            for role in self._members.values():
                self._tend(role, now)
        return False

    def lost(self, place: str, pid: int) -> None:
        """The manager has lost a role: its process, when it hangs, makes room for the next."""
        role = self._members.get(place)
        if role is not None and role.process.pid == pid and role.process.is_alive():
            role.process.kill()

    def manager_end(self) -> str:
        """How the manager's process ended."""
        code = self._manager.exitcode if self._manager is not None else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def interrupt(self) -> None:
        """Asks the manager to end the run for everybody; one that hangs is killed."""
        self._closing, self._farewell_s = True, STOP_S
        if self._manager is not None and self._manager.is_alive():
            self._manager.terminate()
            self._manager.join(STOP_S)
            if self._manager.is_alive():  # then nobody tells the others either
                self.kill()
                self._manager.join()

    def kill(self) -> None:
        """Ends everybody at once. What was committed is on disk, so the run can go on."""
        self._closing = True
        for process in self._everybody():
            process.kill()

    def finish(self) -> None:
        """Waits for everybody; ends whoever does not go."""
        self._closing = True
        deadline = time.monotonic() + self._farewell_s
        if self._manager is not None and self._manager.is_alive() and sys.exc_info()[0] is not None:
            self._manager.terminate()
        for process in self._everybody():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def _everybody(self) -> list[BaseProcess]:
        return [*([self._manager] if self._manager is not None else []), *(r.process for r in self._members.values())]

    def _look_at_manager(self, manager: BaseProcess, now: float) -> None:
        """Kills a manager that hangs, as far as we can tell, so that another takes its place."""
        if now - self._looked_at > LOOK_S:
            self._looking_since = now
        self._looked_at = now
        due = max(self._promise.value, self._looking_since + HUNG_S)
        if self._promise.value and now > due and self._may_follow():
            manager.kill()
            manager.join()

    def _start_manager(self, context: SpawnContext | ForkServerContext, bind: str) -> None:
        here, there = context.Pipe(duplex=False)
        self._promise.value, self._manager_started = 0.0, time.monotonic()
        arguments = (self._folder.parent, self._folder.name, self._resume, bind, there, self._promise)
        self._manager = context.Process(target=manager_process, args=arguments, name="manager", daemon=True)
        self._manager.start()
        there.close()
        try:
            self._endpoint = here.recv()
        except EOFError:
            self._manager.join(5)
            raise ZmpslError(f"the manager could not start; see {self._folder / 'logs' / 'manager.log'}") from None

    def _start_manager_again(self, dead: BaseProcess) -> bool:
        """Follows a manager that was killed by a new one at the same address; one that ended by itself has ended."""
        killed = dead.exitcode is not None and dead.exitcode < 0
        if time.monotonic() - self._manager_started > SOUND_S:
            self._manager_restarts = 0
        if not killed or not self._may_follow():
            return False
        self._manager_restarts += 1
        self._resume = (self._folder / "record.json").exists()
        self._start_manager(self._forked, self._endpoint)
        return True

    def _may_follow(self) -> bool:
        """Tells whether another manager would take the place of a lost one."""
        patient = self._job.recover.wait_s and self._job.recover.manager_wait_s
        return bool(patient) and not self._closing and self._manager_restarts < RESTARTS

    def _start_member(self, context: SpawnContext | ForkServerContext, role: str, name: str, place: str) -> BaseProcess:
        crowd = self._crowds.get(name)
        who = (place,) if crowd is None else (crowd,)
        arguments = (role, self._folder.parent, self._folder.name, name, *who, self._endpoint)
        target = member_process if crowd is None else crowd_process
        process: BaseProcess = context.Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
        return process

    def _tend(self, role: _Role, now: float) -> None:
        if role.process.is_alive() or role.process.exitcode == 0:
            return
        if role.due is None and now - role.started > SOUND_S:
            role.restarts = 0
        if role.restarts >= RESTARTS:
            return
        if role.due is None:
            patience_s = PATIENCE_S[min(role.restarts, len(PATIENCE_S) - 1)]
            if role.process.exitcode == JoinError.exit_code:  # its place is not free yet, or somebody else's for good
                patience_s, role.wish = max(patience_s, 0.2), "" if role.wish else role.place
            role.due = now + patience_s
        elif now >= role.due:
            role.due, role.started = None, now
            role.restarts += 1
            role.process = self._start_member(self._forked, role.role, role.place, role.wish)
