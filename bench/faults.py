"""What faults cost: a run whose roles are killed or stopped again and again, against the same run left in peace.

    python bench/faults.py [--kills 20] [--role node-0 --role owner-1 ...] [--stops 2] [--seed 0]

One undisturbed run, then one per role with that many SIGKILLs at random times in it, then one with SIGSTOPs (5 s each,
then SIGCONT). Every disturbed run must end with the same weights, bit for bit. The time lost per fault is the
difference of the runs' wall times over the number of faults; the longest stall is the longest time between two commits.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import click
import psutil
from report import machine, table

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.job import Job, parse_job
from zmpsl.launch.local import run
from zmpsl.observe.events import CommitEvent, read_events

ROLES = ("node-0", "node-1", "owner-1", "aggregator", "manager")


def settings(rounds: int) -> Job:
    """The built-in job, longer."""
    overrides = (f"train.rounds={rounds}", "evaluate.every=0", "recover.attempts=1000", "train.local_epochs=1")
    return parse_job("", "bench/faults.py", overrides)


def process_of(folder: Path, place: str) -> psutil.Process | None:
    """The process that writes the log of a place now."""
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if any(file.path == str(folder / "logs" / f"{place}.log") for file in child.open_files()):
                return child
        except psutil.Error:
            continue
    return None


def strike(folder: Path, blows: list[tuple[float, str, bool]], stop: threading.Event, done: list[str]) -> None:
    """Waits for the first commit, then hits the roles, each so many seconds after the blow before."""
    while not stop.is_set() and not ((folder / "record.json").exists() and read_record(folder).last >= 0):
        stop.wait(0.05)
    for pause_s, place, kill in blows:
        if stop.wait(pause_s):
            return
        victim = process_of(folder, place)
        if victim is None:
            continue
        try:
            victim.send_signal(signal.SIGKILL if kill else signal.SIGSTOP)
            if not kill:
                stop.wait(5)
                victim.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            continue
        done.append(place)


def measured(job: Job, runs: Path, name: str, blows: list[tuple[float, str, bool]]) -> tuple[Path, float, float, int]:
    """Runs the job under the blows; gives folder, seconds, longest time between commits, and the number of blows."""
    stop, done = threading.Event(), list[str]()
    striker = threading.Thread(target=strike, args=(runs / name, blows, stop, done))
    striker.start()
    began = time.monotonic()
    try:
        folder = run(job, runs, name).folder
    finally:
        seconds = time.monotonic() - began
        stop.set()
        striker.join()
    commits = [event.time for event in read_events(folder / "metrics.jsonl") if isinstance(event, CommitEvent)]
    return folder, seconds, max(later - earlier for earlier, later in pairwise(commits)), len(done)


def same(one: Path, other: Path) -> bool:
    """Tells whether two runs ended with the same weights."""
    ours, theirs = load_state_dict(one), load_state_dict(other)
    return set(ours) == set(theirs) and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


@click.command()
@click.option("--kills", default=20, show_default=True, help="SIGKILLs per role.")
@click.option("--stops", default=2, show_default=True, help="SIGSTOPs of 5 s, over all roles.")
@click.option("--role", "roles", multiple=True, default=ROLES, show_default=True, help="Whom to kill.")
@click.option("--rounds", default=300, show_default=True, help="Rounds of the job.")
@click.option("--seed", default=0, show_default=True, help="Of the times of the blows.")
def main(kills: int, stops: int, roles: tuple[str, ...], rounds: int, seed: int) -> None:
    """Measures what faults cost."""
    rng, job, rows = random.Random(seed), settings(rounds), []
    click.echo(f"{machine(' '.join(['python', *sys.argv]))}seed {seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        start = partial(measured, job, Path(folder))
        quiet, quiet_s, quiet_gap_s, _ = start("quiet", [])
        pause_s = quiet_s / max(kills, 1)
        cases = [(role, [(rng.uniform(0.2, pause_s), role, True) for _ in range(kills)]) for role in roles]
        if stops:
            cases.append(("any, stopped", [(rng.uniform(0.2, 2), rng.choice(ROLES), False) for _ in range(stops)]))
        for name, blows in cases:
            hit, seconds, gap_s, fallen = start(name.replace(", ", "-"), blows)
            equal = same(hit, quiet)
            lost_s = (seconds - quiet_s) / max(fallen, 1)
            rows.append([name, str(fallen), f"{lost_s:.2f}", f"{gap_s:.2f}", "yes" if equal else "NO"])
            click.echo(f"{name}: {fallen} blows, {seconds:.1f} s against {quiet_s:.1f} s", err=True)
    commits = f"longest time between commits in the quiet run {quiet_gap_s:.2f} s"
    click.echo(table(["role", "faults", "s lost per fault", "longest stall s", "same weights"], rows))
    click.echo(f"\n{commits}")
    sys.exit(0 if all(row[-1] == "yes" for row in rows) else 1)


if __name__ == "__main__":
    main()
