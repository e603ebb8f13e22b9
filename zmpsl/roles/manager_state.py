"""What the manager knows of its run, and how it ends: the base of roles.recovering, publishing and manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

from zmpsl.checkpoint import Record
from zmpsl.job.schema import Job
from zmpsl.messages import Described, Finish, FromManager
from zmpsl.plan import Block, Plan, Rates
from zmpsl.roles.actions import Action, Stop, Tell
from zmpsl.roles.admission import Admission, Filling
from zmpsl.roles.asides import Asides, Stalls
from zmpsl.roles.better_cuts import Better
from zmpsl.roles.planning import CutPlanning
from zmpsl.roles.recovery import Recovery
from zmpsl.roles.roster import Roster, Seat
from zmpsl.roles.scoreboard import Scoreboard
from zmpsl.roles.standstill import Standstill

__all__ = ["ManagerState", "Phase"]


class Phase(Enum):
    """Where the run stands."""

    GATHERING = "gathering"
    DESCRIBING = "describing"
    BUILDING = "building"
    TRAINING = "training"
    EVALUATING = "evaluating"
    RECOVERING = "recovering"
    OVER = "over"


class ManagerState(ABC):
    """State of the manager.

    Args:
        runs: Folder in which the run's folder is made; None keeps nothing on disk.
        job: The job, or None to wait until a data owner submits one.
        run: Name of the run and its folder; made from the job's name and the time if not given.
        resume: Record of the run to go on with.
    """

    def __init__(
        self, runs: Path | None = None, job: Job | None = None, run: str | None = None, resume: Record | None = None
    ) -> None:
        self.runs = runs
        self.job = job
        self.phase = Phase.GATHERING
        self.plan: Plan | None = None
        self.round = 0
        self.exit: Stop | None = None
        self.record = resume
        self.board = Scoreboard()
        self._run = run
        self.rejected = 0
        self.roster = Roster()
        self.recovery = Recovery()
        if resume is not None and resume.owners:
            self.recovery.seal.keep(resume.owners)
        self.rates: Mapping[str, Rates] = {}  # what keys may send, of those that have limits
        self._observers: set[bytes] = set()
        self._waiting: set[str] = set()
        self._since: float | None = None
        self._pinged_at = 0.0
        self._digests: dict[str, str] = {}
        self._described_as = Described(blocks=())
        self._asked = ""  # which owner describes the model
        self._absent: frozenset[str] = frozenset()  # places nobody waits for before the first plan
        self._late: frozenset[str] = frozenset()  # owners that took too long, until the next plan is there
        self._begun: dict[str, float] = {}  # when each owner that trains now was first seen to
        self._follows = resume is not None  # a manager before this one was lost, or the run was interrupted
        self._cutting: CutPlanning | None = None
        self._better: Better | None = None  # cuts for the next plan
        self._weighed: set[tuple[int, ...]] = set()  # cuts that were taken or told of: once is enough
        self._training, self._evaluating = Admission(), Admission()
        self._filling = Filling()
        self._asides, self._stalls = Asides(), Stalls()
        self._kept_time_at = 0.0
        self._standstill = Standstill()
        if self.folder is not None:
            self.board.log_to(self.folder)

    def finish(self, exit_code: int, text: str, lost: Seat | None = None) -> Iterator[Action]:
        """Ends the run for everybody, because somebody was lost where that is told."""
        if self.phase is Phase.OVER:
            return
        self.phase = Phase.OVER
        place, pid = (lost.place, lost.join.pid) if lost is not None else ("", 0)
        self.board.end(exit_code, text, place, pid)
        for identity in [*(seat.identity for seat in self.roster), *self._observers]:
            yield Tell(identity, Finish(exit_code=exit_code, text=text))
        self.exit = Stop(exit_code, text)
        yield self.exit

    @property
    def folder(self) -> Path | None:
        """The run's folder, once the run has a name."""
        return None if self.runs is None or self._run is None else self.runs / self._run

    def _everybody(self) -> list[bytes]:
        return [*(seat.identity for seat in self.roster if seat.planned or self.plan is None), *self._observers]

    def _tell_all(self, message: FromManager) -> Iterator[Action]:
        for identity in self._everybody():
            yield Tell(identity, message)

    @abstractmethod
    def _maybe_describe(self) -> Iterator[Action]:
        """Asks for the model's block list once everybody is here."""

    @abstractmethod
    def _publish(self, version: int, blocks: tuple[Block, ...], bounds: tuple[int, ...]) -> Iterator[Action]:
        """Makes a plan for everybody who is here, from the last committed round on."""
