"""Measures what a role does: seconds per kind of work in this round, and the timeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from zmpsl.observe.timeline import Recorder
from zmpsl.pool.spill import SpillStats
from zmpsl.roles.pacing import Pace
from zmpsl.stats import LinkStats, Stats
from zmpsl.transport.task import Task

__all__ = ["Meter"]

_KINDS = {"F": "forward_s", "L": "forward_s", "B": "backward_s", "U": "update_s"}


class Meter:
    """Stopwatch and trace of one role.

    Args:
        traffic: Gives bytes sent, bytes received and messages rejected since the start.
        links: Gives what was sent on each kind of link since the start.
        spilled: Gives what keeping optimiser states has cost since the plan.
        set_aside: Gives what setting owners aside has.

    Attributes:
        pace: How long work shall take, where a device is imitated; None where it takes what it takes.
        spend: Lets the time of imitated work pass: gets the seconds it shall take and those it took. Sleeps; a driver
            with many roles puts its own here.
    """

    def __init__(
        self,
        traffic: Callable[[], tuple[int, int, int]],
        links: Callable[[], dict[str, LinkStats]] = dict,
        spilled: Callable[[], SpillStats] = SpillStats,
        set_aside: Callable[[], SpillStats] = SpillStats,
    ) -> None:
        self._traffic = traffic
        self._links = links
        self._links_before: dict[str, LinkStats] = {}
        self._spilled = spilled
        self._spilled_before = SpillStats()
        self._set_aside = set_aside
        self._set_aside_before = SpillStats()
        self._recorder: Recorder | None = None
        self._seconds: dict[str, float] = {}
        self._tasks = 0
        self._before = (0, 0, 0)
        self._since = time.perf_counter()
        self.pace: Pace | None = None
        self.spend: Callable[[float, float], None] = lambda wanted_s, took_s: time.sleep(max(0.0, wanted_s - took_s))

    def record_to(self, folder: Path, name: str) -> None:
        """Starts writing a timeline."""
        self._recorder = Recorder(folder / "timeline" / f"{name}.jsonl", name)

    @contextmanager
    def measure(self, op: str, task: Task) -> Iterator[None]:
        """Times one piece of work: F forward, B backward, U update, L last part, E evaluation, A averaging.

        Evaluation and averaging are no part of the seconds of a round's training.
        """
        start, worked = time.perf_counter_ns(), time.thread_time()
        yield
        kind, end = _KINDS.get(op), time.perf_counter_ns()
        if self.pace is not None:
            # Processor time, not time on the clock: what others on this machine take from us is not to be multiplied.
            wanted_s = self.pace(op, task, time.thread_time() - worked)
            if wanted_s is not None:
                self.spend(wanted_s, (end - start) / 1e9)
                end = max(time.perf_counter_ns(), start + int(1e9 * wanted_s))
        if kind is not None:
            self._seconds[kind] = self._seconds.get(kind, 0.0) + (end - start) / 1e9
        self._tasks += 1
        if self._recorder is not None:
            self._recorder.add(op, start, end, task.owner, task.round, task.epoch, task.batch, task.micro)

    def stats(self) -> Stats:
        """Gives what was done since `restart`."""
        sent, received, rejected = (now - before for now, before in zip(self._traffic(), self._before, strict=True))
        seconds = time.perf_counter() - self._since
        return Stats(
            **self._seconds,
            round_s=seconds,
            tasks=self._tasks,
            sent_bytes=sent,
            received_bytes=received,
            rejected=rejected,
            spill=self._spilled().plus(self._spilled_before, -1),
            aside=self._set_aside().plus(self._set_aside_before, -1),
            links={
                name: link.plus(self._links_before.get(name, LinkStats()), -1) for name, link in self._links().items()
            },
        )

    def restart(self) -> None:
        """Starts a new round: counts from zero, and writes the timeline so far."""
        self._seconds, self._tasks = {}, 0
        self._before = self._traffic()
        self._links_before = self._links()
        self._spilled_before = self._spilled()
        self._set_aside_before = self._set_aside()
        self._since = time.perf_counter()
        if self._recorder is not None:
            self._recorder.flush()
