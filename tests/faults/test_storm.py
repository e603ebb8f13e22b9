"""A role that dies fifty times in a minute: whoever stays does not grow, and its port is there for all."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
from faults import settings
from harmed import Site, places_of
from striking import Blow, Field, disturbed
from struck import FEW, SEEDED, SMALL, quiet

TIMES, EVERY_S = 50, 1.1
# Rounds so long that the run is not over before.
SLOW = "emulate.slow_down={owner: 60}"
Sample = tuple[int, int, int]
# By how much the most of the last ten looks may be above the most of ten early ones: descriptors, threads, bytes. The
# most is what a role has while it trains; between two plans it has fewer, and how often that is seen is chance.
MORE: Sample = (4, 1, 16 << 20)


def look(site: Site, spared: list[str]) -> dict[str, Sample]:
    """Descriptors, threads and RSS of those that stay, and of the launcher."""
    pids = {place: site.pid(place) for place in spared} | {"launcher": os.getpid()}
    found = {}
    for place, pid in pids.items():
        process = psutil.Process(pid)
        found[f"{place} {pid}"] = (process.num_fds(), process.num_threads(), process.memory_info().rss)
    return found


@SEEDED
@pytest.mark.all_faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize("place", ["node-0", "owner-1", "aggregator"])
def test_fifty_deaths_in_a_minute(tmp_path: Path, place: str, seed: int):
    site = Site(settings("none", *SMALL, SLOW, f"train.rounds={FEW}"))
    spared = [each for each in ("manager", *places_of(site.job)) if each != place]
    looks: list[dict[str, Sample]] = []
    pids: set[int] = set()

    def die(ground: Field) -> None:
        pids.add(ground.signal(place, signal.SIGKILL))
        if not ground.over.wait(EVERY_S):
            looks.append(look(site, spared))

    began = time.monotonic()
    try:
        with patch("zmpsl.launch.processes.PATIENCE_S", (0.0,)):
            storm = [Blow(die, EVERY_S, patient=False)] * TIMES
            outcome = disturbed(site, tmp_path, "storm", storm, quiet(FEW), random.Random(seed))
    finally:
        site.close()
    assert outcome.right, f"seed {seed}: rounds {outcome.wrong} differ; {outcome.text}"
    assert len(pids - {0}) > 0.8 * TIMES, f"only {len(pids)} processes in {time.monotonic() - began:.0f} s"
    assert all(each.keys() == looks[0].keys() for each in looks), "somebody else has died too"
    for who in looks[0]:
        early, late = (
            [max(each[who][what] for each in some) for what in range(3)] for some in (looks[5:15], looks[-10:])
        )
        assert all(now <= then + more for now, then, more in zip(late, early, MORE, strict=True)), (who, early, late)
