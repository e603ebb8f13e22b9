"""Runs on which blows fall: when, what each of them cost, and whether every commit is that of a run left in peace.

A blow waits until a round has been committed since the blow before it, then a random while, then strikes. After the
last one the run goes on to one more commit and is ended. Its commits tell a SHA-256 of every role's state: each must be
that of the same round of the quiet run.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from harmed import POINTS, Site, die_at

from zmpsl.checkpoint import read_record
from zmpsl.errors import ZmpslError
from zmpsl.job import Job
from zmpsl.launch.local import run
from zmpsl.observe.events import CommitEvent, Event, NoticeEvent, PlanEvent, read_events

__all__ = [
    "Blow", "Outcome", "cuts", "dies", "disturbed", "drowsy", "flips", "kills", "quiet_run", "resets", "silence",
    "slow", "stops", "waits",
]  # fmt: skip

PATIENCE_S = 100.0


@dataclass
class Field:
    """Where blows fall: the site, the run's folder, and whether the run is over."""

    site: Site
    folder: Path
    random: random.Random
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def committed(self) -> int:
        """The last committed round, -1 before the first."""
        path = self.folder / "record.json"
        return read_record(self.folder).last if path.exists() else -1

    def wait(self, what: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
        """Waits until something is true; False when the run ended, or it did not become so."""
        deadline = time.monotonic() + limit_s
        while not what():
            if self.over.wait(0.01) or time.monotonic() > deadline:
                return False
        return True

    def signal(self, place: str, number: signal.Signals) -> int:
        """Sends a signal to the process of a place as soon as it has one; gives which."""
        if not self.wait(lambda: bool(self.site.pid(place)), 10):
            return 0
        pid = self.site.pid(place)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return 0
        return pid


@dataclass(frozen=True)
class Blow:
    """One fault: what is done, how long it lasts, and whether the run may recover from the one before."""

    does: Callable[[Field], None]
    lasts_s: float = 0.0
    patient: bool = True


@dataclass
class Outcome:
    """What the blows of one run cost.

    Attributes:
        faults: How many fell.
        noticed_s: From a blow to the first notice of it, where there was one.
        resumed_s: From that notice, or else from the blow, to the next commit.
        healed_s: From the end of the fault to the next commit.
        begun_again: How many plans followed the first.
        stalls_s: The longest time between two commits around each blow.
        typical_s: The time between two commits that no blow disturbed.
        commits: How many there were.
        times: When each blow fell and when it was over, Unix time.
        wrong: Rounds whose weights differ from those of the quiet run.
        text: How the run ended, when it did not end well.
    """

    faults: int = 0
    noticed_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    healed_s: list[float] = field(default_factory=list)
    stalls_s: list[float] = field(default_factory=list)
    typical_s: float = 0.0
    commits: int = 0
    begun_again: int = 0
    times: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    text: str = ""

    @property
    def lost_s(self) -> float:
        """Seconds lost per fault."""
        stalls = [max(0.0, stall - self.typical_s) for stall in self.stalls_s]
        return sum(stalls) / max(len(stalls), 1)

    @property
    def right(self) -> bool:
        """The run ended well, and every commit was that of the quiet run."""
        return not self.wrong and not self.text and self.commits > 0


# -- blows -------------------------------------------------------------------------------------------------------------


def kills(*places: str) -> Blow:
    """A SIGKILL to each of these, at once."""
    return Blow(lambda field: [field.signal(place, signal.SIGKILL) for place in places] and None)


def dies(place: str, point: int) -> Blow:
    """A role kills itself at a named point of its next commit."""

    def strike(field: Field) -> None:
        die_at(field.folder, place, POINTS[point])
        field.wait(lambda: not (field.folder / "die" / place).exists(), 20)

    return Blow(strike)


def stops(place: str, seconds: float) -> Blow:
    """A SIGSTOP, and later a SIGCONT to the same process, if it is still there."""

    def strike(field: Field) -> None:
        pid = field.signal(place, signal.SIGSTOP)
        field.over.wait(seconds)
        if pid and field.site.pid(place) == pid:
            os.kill(pid, signal.SIGCONT)

    return Blow(strike, seconds)


def resets(places: Iterable[str], every_s: float) -> Blow:
    """A TCP reset of every connection to one of these, whether or not the run is over the one before."""
    among = list(places)

    def strike(field: Field) -> None:
        field.site.proxies[field.random.choice(among)].reset()
        field.over.wait(every_s)

    return Blow(strike, patient=False)


def cuts(place: str, most: int) -> Blow:
    """Connections to a place end in the middle of a frame, once each, after up to `most` bytes."""

    def strike(field: Field) -> None:
        harm = field.site.harms[place]
        before = harm.counts["resets"]
        harm.cut_after = lambda: field.random.randrange(1, most)
        field.site.proxies[place].reset()  # the next ones are cut
        field.wait(lambda: harm.counts["resets"] > before + 2, 5)
        harm.cut_after = lambda: None

    return Blow(strike)


def silence(places: Iterable[str], seconds: float, one_way: bool = False) -> Blow:
    """Nothing reaches these places, and nothing comes back from them unless `one_way`; no connection is closed."""
    chosen = list(places)

    def strike(field: Field) -> None:
        for place in chosen:
            field.site.harms[place].one_way = one_way
            field.site.harms[place].silent = True
        field.over.wait(seconds)
        field.site.heal()

    return Blow(strike, seconds)


def drowsy(place: str, seconds: float, share: float = 0.05) -> Blow:
    """A role gets a share of a processor for so long, 5 ms at a time."""

    def strike(field: Field) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and field.signal(place, signal.SIGSTOP):
            field.over.wait(0.005 / share - 0.005)
            field.signal(place, signal.SIGCONT)
            field.over.wait(0.005)

    return Blow(strike, seconds)


def flips(every_bytes: int, seconds: float, ways: Sequence[str] = (), bits: int = 1) -> Blow:
    """Bits of every so many bytes to any role, or on these ways, are flipped for so long, so many at a time."""

    def strike(field: Field) -> None:
        harms = [field.site.harms[way] for way in ways or field.site.harms]
        for harm in harms:
            harm.flip_every, harm.flip_bits = every_bytes, bits
        field.over.wait(seconds)
        for harm in harms:
            harm.flip_every = 0

    return Blow(strike, seconds)


def waits(seconds: float) -> Blow:
    """Nothing, for so long: but what the links do anyway."""

    def strike(field: Field) -> None:
        field.over.wait(seconds)

    return Blow(strike, seconds)


def slow(bytes_per_s: float, delay_s: float, seconds: float) -> Blow:
    """Every place is behind a line of that rate and delay for so long."""

    def strike(field: Field) -> None:
        for harm in field.site.harms.values():
            harm.bytes_per_s, harm.delay_s = bytes_per_s, delay_s
        field.over.wait(seconds)

    return Blow(strike, seconds)


# -- runs --------------------------------------------------------------------------------------------------------------


def quiet_run(job: Job, runs: Path) -> dict[int, dict[str, str]]:
    """Digests by round of a run left in peace."""
    folder = run(job, runs, "quiet").folder
    return {event.round: event.digests for event in commits_of(folder)}


def commits_of(folder: Path) -> list[CommitEvent]:
    """The commits of a run."""
    return [event for event in read_events(folder / "metrics.jsonl") if isinstance(event, CommitEvent)]


def disturbed(
    site: Site, runs: Path, name: str, blows: list[Blow], wanted: dict[int, dict[str, str]] | None, rng: random.Random
) -> Outcome:
    """A run at a site on which blows fall, one after the other; without `wanted` its weights are not compared."""
    ground = Field(site, runs / name, rng)
    outcome = Outcome()
    striker = threading.Thread(target=_strike, args=(ground, blows, outcome.times), daemon=True)
    striker.start()
    try:
        with site.here():
            run(site.job, runs, name)
    except ZmpslError as error:
        outcome.text = str(error)
    finally:
        ground.over.set()
        striker.join(30)
        site.heal()
    outcome.faults = len(outcome.times)
    if outcome.faults < len(blows):
        outcome.text = outcome.text or f"only {outcome.faults} of {len(blows)} blows fell"
    _judge(outcome, list(read_events(ground.folder / "metrics.jsonl")), wanted)
    return outcome


def _strike(ground: Field, blows: list[Blow], times: list[tuple[float, float]]) -> None:
    last = -1
    for blow in blows:
        if (blow.patient or last < 0) and not ground.wait(lambda last=last: ground.committed > last):  # type: ignore[misc]
            return
        if blow.patient and ground.over.wait(ground.random.uniform(0.05, 0.6)):
            return
        began = time.time()
        blow.does(ground)
        times.append((began, time.time() if blow.lasts_s else began))
        last = ground.committed
    if ground.wait(lambda: ground.committed > last):
        ground.signal("manager", signal.SIGTERM)


def _judge(outcome: Outcome, events: list[Event], wanted: dict[int, dict[str, str]] | None) -> None:
    times = outcome.times
    commits = [event for event in events if isinstance(event, CommitEvent)]
    outcome.commits = len(commits)
    outcome.begun_again = sum(isinstance(event, PlanEvent) for event in events) - 1
    if wanted is not None:
        outcome.wrong = [event.round for event in commits if wanted.get(event.round) != event.digests]
    gaps = [(one.time, other.time) for one, other in pairwise(commits)]
    calm = [end - start for start, end in gaps if not any(start <= hit <= end for hit, _ in times)]
    outcome.typical_s = median(calm) if calm else 0.0
    notices = [event.time for event in events if isinstance(event, NoticeEvent | PlanEvent)]
    until_next = [*(hit for hit, _ in times[1:]), float("inf")]
    for (hit, healed), until in zip(times, until_next, strict=False):
        around = [end - start for start, end in gaps if end >= hit and start < min(until, max(healed, hit + 1e-9) + 60)]
        if not around:
            continue
        outcome.stalls_s.append(max(around))
        told = next((at for at in notices if hit <= at < until), None)
        after = next((event.time for event in commits if event.time >= (told or hit)), None)
        if told is not None:
            outcome.noticed_s.append(told - hit)
        if after is not None:
            outcome.resumed_s.append(after - (told or hit))
        late = next((event.time for event in commits if event.time >= healed), None)
        if late is not None and healed > hit:
            outcome.healed_s.append(late - healed)
