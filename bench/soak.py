"""A run left alone with faults for a long time: do memory, descriptors and threads of any role grow?

    python bench/soak.py [--minutes 30] [--every 6] [--keys] [--seed 0] [--codec lossless]

Every few seconds a role is killed, stopped, reset, cut off silently, or killed inside the commit. After a third of the
time one of each kind is no longer killed, and grows old; the launcher is from the start. All are looked at every two
seconds.
Growth is the difference between the medians of the last and the second quarter of a process's life.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import psutil
from faults import settings
from harmed import POINTS, Site, control, make_keys, places_of
from report import machine, table
from striking import Blow, dies, disturbed, kills, resets, silence, stops

LOOK_S = 2.0
# A process younger than this is not judged: its caches and pools still fill.
YOUNG_S = 120.0
ROLES = ("manager", "aggregator", "node", "owner", "launcher")
SPARED = frozenset({"manager", "aggregator", "node-1", "owner-0"})


class Watch:
    """Samples of every process of a run: seconds since the start, RSS in MB, descriptors, threads."""

    def __init__(self, site: Site) -> None:
        self.samples: dict[tuple[str, int], list[tuple[float, float, int, int]]] = {}
        self._site = site
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        places = ("manager", *places_of(self._site.job))
        while not self._over.wait(LOOK_S):
            for place, pid in [("launcher", os.getpid()), *((place, self._site.pid(place)) for place in places)]:
                try:
                    process = psutil.Process(pid) if pid else None
                    if process is None:
                        continue
                    with process.oneshot():
                        rss = process.memory_info().rss / 1e6
                        sample = time.monotonic() - self._began, rss, process.num_fds(), process.num_threads()
                except psutil.Error:
                    continue
                self.samples.setdefault((place, pid), []).append(sample)


def growth(samples: list[tuple[float, float, int, int]]) -> tuple[float, float, float, float]:
    """Minutes lived, and what RSS in MB, descriptors and threads have grown by."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = [median(s[i] for s in late) - median(s[i] for s in early) for i in (1, 2, 3)]
    return (samples[-1][0] - samples[0][0]) / 60, *grown  # type: ignore[return-value]


def verdicts(samples: dict[tuple[str, int], list[tuple[float, float, int, int]]]) -> tuple[list[list[str]], bool]:
    """A line for each kind of role, of the process of it that lived longest; and whether all are flat."""
    rows, flat = [], True
    for role in ROLES:  # owner-2 is one of "owner"
        lives = [seen for (place, _), seen in samples.items() if place.split("-")[0] == role]
        old = [seen for seen in lives if seen[-1][0] - seen[0][0] >= YOUNG_S]
        peak = max((s[1] for seen in lives for s in seen), default=0.0)
        if not old:
            rows.append([role, str(len(lives)), "-", f"{peak:.0f}", "-", "-", "-", "-", "-", "none lived long enough"])
            continue
        longest = max(old, key=lambda seen: seen[-1][0] - seen[0][0])
        minutes, rss, descriptors, threads = growth(longest)
        calm = rss < max(5.0, 0.05 * longest[len(longest) // 4][1]) and descriptors <= 3 and threads <= 1
        flat &= calm
        rows.append([
            role, str(len(lives)), f"{minutes:.1f}", f"{peak:.0f}", f"{rss:+.1f}", f"{120 * rss / minutes:+.1f}",
            f"{max(s[2] for s in longest)} ({descriptors:+.0f})", f"{max(s[3] for s in longest)} ({threads:+.0f})",
            str(len(old)), "flat" if calm else "GROWS",
        ])  # fmt: skip
    return rows, flat


def draw(rng: random.Random, places: list[str], spared: frozenset[str], told: Counter[str]) -> Blow:
    """A fault for somebody; those who are spared are not killed."""
    place, mortal = rng.choice(places), rng.choice([place for place in places if place not in spared])
    ways = [way for place in places if place != "manager" for way in (place, control(place))]
    writer = rng.choice([each for each in ("node-0", "aggregator", "manager") if each not in spared] or ["node-0"])
    kinds: dict[str, Callable[[], Blow]] = {
        "kill": lambda: kills(mortal),
        "kill in the commit": lambda: dies(writer, rng.randrange(len(POINTS))),
        "stop": lambda: stops(place, rng.uniform(0.2, 2.0)),
        "reset": lambda: resets([rng.choice(ways)], 0.1),
        "silence": lambda: silence([rng.choice(ways)], rng.uniform(0.5, 5.0)),
    }
    kind = rng.choice(list(kinds))
    told[kind] += 1
    return kinds[kind]()


class Endless(list[Blow]):
    """Blows until the time is over, drawn one by one."""

    def __init__(self, made: Callable[[], Blow], every_s: float, until: float, over: threading.Event) -> None:
        super().__init__()
        self._made, self._every_s, self._until, self._over = made, every_s, until, over

    def __iter__(self):  # type: ignore[no-untyped-def]
        while time.monotonic() < self._until and not self._over.wait(self._every_s):
            self.append(self._made())
            yield self[-1]


@click.command()
@click.option("--minutes", default=30.0, show_default=True)
@click.option("--every", "every_s", default=6.0, show_default=True, help="Seconds between two faults.")
@click.option("--keys", is_flag=True, help="All links protected with keys.")
@click.option("--codec", default="lossless", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the faults.")
@click.option("--csv", default=None, type=click.Path(path_type=Path), help="File for all samples.")
def main(minutes: float, every_s: float, keys: bool, codec: str, seed: int, csv: Path | None) -> None:
    """Looks for growth."""
    rng, told = random.Random(seed), Counter[str]()
    # Slowed down: it is about time, not about work, and the machine may have something else to do.
    job = settings(codec, "train.rounds=1000000", "emulate.slow_down={owner: 5}", "owners=2")
    click.echo(f"{machine(' '.join(['python', *sys.argv]))}seed {seed}\n")
    with tempfile.TemporaryDirectory() as folder:
        key_folder = Path(folder) / "keys" if keys else None
        if key_folder is not None:
            make_keys(key_folder, job)
        site = Site(job, key_folder)
        watch = Watch(site)
        began = time.monotonic()
        places = ["manager", *places_of(job)]

        def next_blow() -> Blow:
            # At first anybody is killed; later one of each kind is left to grow old.
            young = time.monotonic() - began < 20 * minutes
            return draw(rng, places, frozenset() if young else SPARED, told)

        blows = Endless(next_blow, every_s, began + 60 * minutes, threading.Event())
        try:
            outcome = disturbed(site, Path(folder), "soak", blows, None, rng)
        finally:
            watch.close()
            site.close()
    if csv is not None:
        lines = [
            f"{place},{pid},{t:.1f},{rss:.1f},{descriptors},{threads}"
            for (place, pid), seen in watch.samples.items()
            for t, rss, descriptors, threads in seen
        ]
        csv.write_text("place,pid,seconds,rss_mb,descriptors,threads\n" + "\n".join(lines) + "\n")
    rows, flat = verdicts(watch.samples)
    head = (
        "role", "processes", "minutes of the oldest", "highest RSS MB", "growth MB", "MB per hour",
        "descriptors (growth)", "threads (growth)", "older than 2 min", "verdict",
    )  # fmt: skip
    click.echo(table(head, rows))
    kinds = ", ".join(f"{number} x {kind}" for kind, number in sorted(told.items()))
    click.echo(f"\n{outcome.faults} faults ({kinds}); {outcome.commits} rounds committed; {outcome.text or 'no error'}")
    sys.exit(0 if flat and not outcome.text else 1)


if __name__ == "__main__":
    main()
