"""What faults cost: runs whose roles are killed, stopped and cut off again and again, against one left in peace.

    python bench/faults.py [--quick] [--seed 0] [--kills 10] [--case "kill node-0" ...] [--codec none] [--keys] [--line]

Every role is killed (SIGKILL) at random moments and at named points inside the commit, stopped (SIGSTOP), cut off by
TCP resets, in the middle of frames, and silently, with compression on and off; with --line also over one between two
network namespaces that loses packets or falls silent. A run must never commit a round whose weights are not, bit for
bit, those of the quiet run. bench/striking.py says what is counted.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click
from harmed import POINTS, Site, control, make_keys, places_of
from neighbours import batch_seconds
from report import machine, table
from striking import (
    Blow,
    Outcome,
    cuts,
    dies,
    disturbed,
    drowsy,
    flips,
    kills,
    quiet_run,
    resets,
    silence,
    slow,
    stops,
    waits,
)
from two_hosts import Line, TwoHosts, Weather, silences, why_not

from zmpsl.job import Job, parse_job

CODECS = ("none", "lossless")
ROLES = ("node-0", "node-1", "owner-1", "aggregator", "manager")
# What takes a minute each, and has little to do with codecs: only with the first one, unless asked for.
LONG = ("stop 30 s", "silent 60 s", "line silent 60 s", "1 % of a processor")
HEAD = (
    "fault", "codec", "n", "noticed after s, median (max)", "notice to commit s, median (max)",
    "healed to commit s (max)", "s lost per fault", "longest stall s", "same weights",
)  # fmt: skip


def settings(codec: str, *more: str) -> Job:
    """The built-in job with short rounds; long enough for all blows."""
    overrides = (
        "train.rounds=300", "evaluate.every=0", "train.local_epochs=1", "owners=3", "keep_checkpoints=2", "cuts=even",
        "recover.attempts=1000", "recover.wait_s=120", "recover.manager_wait_s=120", f"codec={codec}", *more,
    )  # fmt: skip
    return parse_job("", "bench/faults.py", overrides)


def cases(rng: random.Random, quick: bool, keys: bool = False, n: int = 20) -> dict[str, list[Blow]]:
    """The blows of each run, by what they are called; bits are flipped only where keys would tell.

    Args:
        rng: Chooses places and durations.
        quick: Three of each, and none that lasts long.
        keys: The run has keys.
        n: Kills of each role; of the other blows so many or fewer.
    """
    n = 3 if quick else n
    everybody = places_of(settings("none"))
    found = {f"kill {role}": [kills(role)] * n for role in ROLES}
    found["kill both nodes"] = [kills("node-0", "node-1")] * max(1, n // 4)
    found["kill in the commit"] = [
        dies(role, point) for role in ("node-0", "aggregator", "manager") for point in range(len(POINTS))
    ] * (1 if quick else 2)
    found["stop 0.5 to 3 s"] = [stops(rng.choice(ROLES), rng.uniform(0.5, 3)) for _ in range(n)]
    found["stop 30 s"] = [stops(role, 30) for role in (() if quick else ("owner-1", "manager"))]
    found["reset every 0.5 s"] = [resets([*everybody, *map(control, everybody)], 0.5)] * (2 * n)
    found["cut in a frame"] = [cuts(rng.choice(everybody), 200_000) for _ in range(n)]
    ways = [*map(control, everybody), *everybody]
    found["silent 1 s"] = [silence([rng.choice(ways)], 1) for _ in range(max(1, n // 4))]
    # All of a role, its way to the manager alone, its data alone; and one way only.
    whole = [silence([place, control(place)], 5) for place in ("node-1", "owner-0")[: 1 if quick else 2]]
    parts = [silence([way], 5) for way in (() if quick else (control("aggregator"), "node-0"))]
    found["silent 5 s"] = [*whole, *parts, *(silence([way], 5, one_way=True) for way in (() if quick else ("node-0",)))]
    found["silent 60 s"] = [] if quick else [silence(["node-1", control("node-1")], 60)]
    found["20, 2, 20 Mbit/s, 40 ms"] = [slow(mbit * 125e3, 0.02, 2 if quick else 5) for mbit in (20, 2, 20)]
    found["the same, and resets"] = [slow(20 * 125e3, 0.02, 0), *[resets(everybody, 2.0)] * max(1, n // 4)]
    found["5 % of a processor"] = [drowsy("owner-1", 2 if quick else 10)]
    found["1 % of a processor"] = [] if quick else [drowsy("owner-1", 20, 0.01)]
    found["flipped bits"] = [flips(300_000, 2 if quick else 6)] if keys else []
    return {name: blows for name, blows in found.items() if blows}


def lines(quick: bool) -> dict[str, tuple[Weather, list[Blow]]]:
    """Runs of which node-1 and owner-1 are at the far end of a line: its weather, and the blows."""
    times = 1 if quick else 3
    losses = {
        f"{100 * loss:g} % of packets lost": (Weather(loss, 0.01, 0.005), [waits(2 if quick else 15)])
        for loss in (0.01, 0.05)
    }
    silent = {f"line silent {s} s": (Weather(delay_s=0.005), [silences(s)] * times) for s in (1, 5)}
    ways = {"line silent 5 s, way there": "there", "line silent 5 s, way back": "back"}
    one_way = {name: (Weather(delay_s=0.005), [silences(5, way)] * times) for name, way in ways.items()}  # type: ignore[arg-type]
    return losses | silent | one_way | ({} if quick else {"line silent 60 s": (Weather(delay_s=0.005), [silences(60)])})


def spread(values: Sequence[float]) -> str:
    """Median and maximum."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f} ({ordered[-1]:.2f})" if ordered else "-"


def row(name: str, codec: str, outcome: Outcome) -> list[str]:
    """One line of the table."""
    healed = f"{max(outcome.healed_s):.2f}" if outcome.healed_s else "-"
    same = f"yes ({outcome.commits} rounds)" if outcome.right else f"NO: {outcome.text or outcome.wrong}"
    figures = (f"{outcome.lost_s:.2f}", f"{max(outcome.stalls_s, default=0):.2f}")
    return [
        name, codec, str(outcome.faults), spread(outcome.noticed_s), spread(outcome.resumed_s), healed, *figures, same,
    ]  # fmt: skip


def asked(name: str, chosen: Sequence[str], again: bool) -> bool:
    """Tells whether a case is to be run: those that were chosen, or else all, but the long ones only once."""
    return any(each in name for each in chosen) if chosen else not (again and name in LONG)


def beside(name: str, codec: str, folder: Path, outcome: Outcome) -> list[str]:
    """What it cost the others that owner 1 was slow."""
    before, meanwhile = batch_seconds(folder, 1, outcome.times[0])
    return [name, codec, f"{1e3 * before:.1f}", f"{1e3 * meanwhile:.1f}", f"**{meanwhile / before:.2f}**"]


@click.command()
@click.option("--quick", is_flag=True, help="Few of each, for a first look.")
@click.option("--kills", "kills_each", default=10, show_default=True, help="Of each role, with each codec.")
@click.option("--case", "chosen", multiple=True, help="Only these; a part of the name does.")
@click.option("--codec", "codecs", multiple=True, default=CODECS, show_default=True)
@click.option("--keys", is_flag=True, help="All links protected with keys.")
@click.option("--line", is_flag=True, help="Also over a line that loses packets and falls silent; needs root.")
@click.option("--seed", default=0, show_default=True, help="Of the blows and their times.")
def main(
    quick: bool, kills_each: int, chosen: tuple[str, ...], codecs: tuple[str, ...], keys: bool, line: bool, seed: int
) -> None:
    """Measures what faults cost."""
    if line and (reason := why_not()):
        raise click.ClickException(reason)
    rows, others, began, right = [], list[list[str]](), time.monotonic(), True
    click.echo(f"{machine(' '.join(['python', *sys.argv]))}seed {seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        rounds = "train.rounds=60" if quick else "train.rounds=300"
        wanted = quiet_run(settings("none", rounds), runs)
        for codec in codecs:
            job = settings(codec, rounds)
            key_folder = runs / f"keys-{codec}" if keys else None
            if key_folder is not None:
                make_keys(key_folder, job)
            far = lines(quick) if line else {}
            near = cases(random.Random(seed), quick, keys, kills_each)
            for name, blows in [*near.items(), *((name, blows) for name, (_, blows) in far.items())]:
                if not asked(name, chosen, again=codec != codecs[0]):
                    continue
                run_name = f"{re.sub('[^a-z0-9]+', '-', name)}-{codec}"
                hosts = Line(far[name][0], seed) if name in far else None
                with closing(Site(job, key_folder) if hosts is None else TwoHosts(job, hosts, keys=key_folder)) as site:
                    outcome = disturbed(site, runs, run_name, blows, wanted, random.Random(seed))
                rows.append(row(name, codec, outcome))
                right &= outcome.right
                if "of a processor" in name and outcome.right:
                    others.append(beside(name, codec, runs / run_name / "timeline", outcome))
                click.echo(" | ".join(rows[-1]), err=True)
    click.echo(table(HEAD, rows))
    if others:
        click.echo(table(["owner 1 has", "codec", "others' batch ms before", "meanwhile", "ratio"], others))
    click.echo(f"\n{time.monotonic() - began:.0f} s in all")
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
