"""A whole run on this machine: every role a process of its own, over TCP on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from zmpsl.checkpoint import held, read_record, write_text
from zmpsl.errors import JobError, PeerLostError, ZmpslError, error_for
from zmpsl.job.load import dump_job
from zmpsl.job.schema import Job
from zmpsl.launch.processes import Processes
from zmpsl.observe.events import EndEvent, EvaluationEvent, Event, NoticeEvent, follow, read_events
from zmpsl.observe.timeline import merge

__all__ = ["Result", "prepare", "run"]


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
    processes = Processes(folder, job, resume)
    watch = _Watch(folder / "metrics.jsonl", seen, on_event, processes.lost)
    try:
        processes.start()
        watch.until(processes.over)
    except KeyboardInterrupt:
        try:
            processes.interrupt()
            watch.until(processes.over)
            watch.interrupted()
        except KeyboardInterrupt:  # once more: at once
            processes.kill()
            raise
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
        JobError: The folder holds another run, or the one to go on with was made with another job, or is under way.
        CheckpointError: There is no run to go on with.
    """
    folder = runs / (name or _free_name(runs, job.name))
    if resume:
        record = read_record(folder)
        with held(folder):  # its manager will have it for itself; here somebody reads why it could not
            pass
        if (record.job.owners, record.job.model, record.job.seed) != (job.owners, job.model, job.seed):
            raise JobError(
                f"{folder}: a run goes on with the owners, model and seed it began with; of the rest, rounds, cuts and"
                " compute nodes may change"
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

    def __init__(
        self, path: Path, seen: int, on_event: Callable[[Event], None] | None, on_lost: Callable[[str, int], None]
    ) -> None:
        self.evaluation: EvaluationEvent | None = None
        self.end: EndEvent | None = None
        self._began = time.monotonic()
        self._path = path
        self._seen = seen
        self._on_event = on_event
        self._on_lost = on_lost

    def until(self, over: Callable[[], bool]) -> None:
        """Passes on events until `over` says so and none is left."""
        for event in islice(follow(self._path, over, lambda: time.sleep(0.1)), self._seen, None):
            self._seen += 1
            self._pass_on(event)

    def interrupted(self) -> None:
        """The run was ended from here; a manager that hung could not tell."""
        if self.end is None:
            text = "interrupted; the manager did not answer and was killed"
            seconds = time.monotonic() - self._began
            self._pass_on(EndEvent(time=time.time(), status="interrupted", text=text, exit_code=130, seconds=seconds))

    def _pass_on(self, event: Event) -> None:
        self.evaluation = event if isinstance(event, EvaluationEvent) else self.evaluation
        self.end = event if isinstance(event, EndEvent) else self.end
        if isinstance(event, NoticeEvent | EndEvent) and event.pid:
            self._on_lost(event.place, event.pid)
        if self._on_event is not None:
            self._on_event(event)
