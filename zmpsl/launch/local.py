"""A whole run on this machine: every role a process of its own, over TCP on loopback.

Manager and aggregator are started fresh, so they never load torch. Data owners and compute nodes are forked from a
server that has loaded it once: a second each would otherwise pass, and their memory would hold it several times.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from zmpsl.checkpoint import read_record, write_text
from zmpsl.errors import JobError, PeerLostError, ZmpslError, error_for
from zmpsl.job.load import dump_job
from zmpsl.job.schema import Job
from zmpsl.launch.process import manager_process, member_process
from zmpsl.observe.events import EndEvent, EvaluationEvent, Event, follow, read_events
from zmpsl.observe.timeline import merge
from zmpsl.plan import AGGREGATOR, node_name, owner_name

__all__ = ["Result", "prepare", "run"]

# After the manager is gone everybody else has this long to go too.
FAREWELL_S = 15.0


@dataclass(frozen=True)
class Result:
    """How a run went.

    Attributes:
        folder: The run's folder.
        status: `finished`, `failed` or `interrupted`.
        text: In words.
        exit_code: 0 when finished.
        accuracy: Of the last evaluation, None where there was none.
        seconds: From the start of the manager to its end.
    """

    folder: Path
    status: str
    text: str
    exit_code: int
    accuracy: float | None
    seconds: float


def run(
    job: Job,
    runs: Path | str = "runs",
    name: str | None = None,
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> Result:
    """Trains a job with all its roles on this machine.

    Args:
        job: The job.
        runs: Folder in which the run's folder is made.
        name: Name of the run; made from the job's name and the time if not given.
        resume: Goes on with the run of that name after its last committed round.
        on_event: Called with every event of the run as it happens.

    Returns:
        How it went. A run that was interrupted is no error.

    Raises:
        ZmpslError: The run failed; the class and the message tell how.
    """
    folder = prepare(job, Path(runs), name, resume)
    seen = sum(1 for _ in read_events(folder / "metrics.jsonl")) if (folder / "metrics.jsonl").exists() else 0
    processes = _Processes(folder, job, resume)
    watch = _Watch(folder / "metrics.jsonl", seen, on_event)
    try:
        processes.start()
        watch.until(processes.manager_gone)
    except KeyboardInterrupt:
        processes.interrupt()
        watch.until(processes.manager_gone)
    finally:
        processes.finish()
    end, last = watch.end, watch.evaluation
    if (folder / "timeline").is_dir():
        merge(folder / "timeline", folder / "timeline.json")
    if end is None:
        text = f"the manager ended without a word ({processes.manager_end()}); see {folder / 'logs' / 'manager.log'}"
        raise PeerLostError(text + _how_to_go_on(folder))
    if end.exit_code not in (0, 130):
        raise error_for(end.exit_code, end.text + _how_to_go_on(folder))
    return Result(folder, end.status, end.text, end.exit_code, last.accuracy if last else None, end.seconds)


def prepare(job: Job, runs: Path, name: str | None, resume: bool) -> Path:
    """Makes or checks the run's folder and leaves the resolved job in it.

    Raises:
        JobError: The folder holds another run, or the one to go on with was made with another job.
        CheckpointError: There is no run to go on with.
    """
    folder = runs / (name or _free_name(runs, job.name))
    if resume:
        record = read_record(folder)
        if (record.job.owners, record.job.nodes, record.job.model, record.job.seed) != (
            job.owners,
            job.nodes,
            job.model,
            job.seed,
        ):
            raise JobError(
                f"{folder}: a run goes on with the owners, compute nodes, model and seed it began with; of the rest,"
                " train.rounds may change"
            )
    elif (folder / "record.json").exists():
        raise JobError(f"{folder} already holds a run; go on with it by --resume {folder}, or choose another name")
    write_text(folder / "job.yaml", dump_job(job).encode())
    return folder


def _how_to_go_on(folder: Path) -> str:
    try:
        last = read_record(folder).last
    except ZmpslError:
        return ""
    return f"; go on after round {last + 1} with: zmpsl run --resume {folder}" if last >= 0 else ""


def _free_name(runs: Path, job: str) -> str:
    base = f"{job}-{time.strftime('%Y%m%d-%H%M%S')}"
    name, number = base, 1
    while (runs / name).exists():
        number += 1
        name = f"{base}-{number}"
    return name


class _Watch:
    """Follows the events of a run that is under way, past those of an earlier part of it."""

    def __init__(self, path: Path, seen: int, on_event: Callable[[Event], None] | None) -> None:
        self.evaluation: EvaluationEvent | None = None
        self.end: EndEvent | None = None
        self._path = path
        self._seen = seen
        self._on_event = on_event

    def until(self, over: Callable[[], bool]) -> None:
        """Passes on events until `over` says so and none is left."""
        for event in islice(follow(self._path, over, lambda: time.sleep(0.1)), self._seen, None):
            self._seen += 1
            self.evaluation = event if isinstance(event, EvaluationEvent) else self.evaluation
            self.end = event if isinstance(event, EndEvent) else self.end
            if self._on_event is not None:
                self._on_event(event)


class _Processes:
    """The processes of one run."""

    def __init__(self, folder: Path, job: Job, resume: bool) -> None:
        self._folder = folder
        self._job = job
        self._resume = resume
        self._manager: BaseProcess | None = None
        self._members: list[BaseProcess] = []

    def start(self) -> None:
        """Starts the manager, then everybody else with its address."""
        fresh = multiprocessing.get_context("spawn")
        forked = multiprocessing.get_context("forkserver") if sys.platform == "linux" else fresh
        if sys.platform == "linux":
            multiprocessing.set_forkserver_preload(["zmpsl.launch.preload"])
        runs, name = self._folder.parent, self._folder.name
        here, there = fresh.Pipe(duplex=False)
        self._manager = fresh.Process(
            target=manager_process, args=(runs, name, self._resume, there), name="manager", daemon=True
        )
        self._manager.start()
        there.close()
        roles = [
            ("aggregator", AGGREGATOR),
            *(("compute", node_name(i)) for i in range(self._job.nodes)),
            *(("owner", owner_name(i)) for i in range(self._job.owners)),
        ]
        try:
            endpoint = here.recv()
        except EOFError:
            self._manager.join(5)
            raise ZmpslError(f"the manager could not start; see {self._folder / 'logs' / 'manager.log'}") from None
        for role, place in roles:
            context: SpawnContext | ForkServerContext = fresh if role == "aggregator" else forked
            process = context.Process(
                target=member_process, args=(role, runs, name, place, endpoint), name=place, daemon=True
            )
            process.start()
            self._members.append(process)

    def manager_gone(self) -> bool:
        """True once the manager's process has ended."""
        return self._manager is None or not self._manager.is_alive()

    def manager_end(self) -> str:
        """How the manager's process ended."""
        code = self._manager.exitcode if self._manager is not None else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def interrupt(self) -> None:
        """Asks the manager to end the run for everybody."""
        if self._manager is not None and self._manager.is_alive():
            self._manager.terminate()
            self._manager.join(FAREWELL_S)

    def finish(self) -> None:
        """Waits for everybody; ends whoever does not go."""
        deadline = time.monotonic() + FAREWELL_S
        if self._manager is not None and self._manager.is_alive() and sys.exc_info()[0] is not None:
            self._manager.terminate()
        for process in [*([self._manager] if self._manager is not None else []), *self._members]:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
