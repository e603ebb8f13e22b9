"""Compute nodes whose memory the system bounds: they train as others do, and whoever asks for more is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers import TINY, ThreadedRun, job

from zmpsl.checkpoint import read_record
from zmpsl.launch.local import run
from zmpsl.observe.events import CommitEvent, Event
from zmpsl.pool.ceiling import private_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_DATA")

GREEDY = """
import numpy as np
from zmpsl.pool.ceiling import cap_private, private_bytes
assert cap_private(private_bytes() + (64 << 20))
held = np.ones(32 << 20, np.uint8)
try:
    np.ones(64 << 20, np.uint8)
except MemoryError:
    print("refused")
assert cap_private(private_bytes() + (128 << 20))
held = np.ones(64 << 20, np.uint8)
print("had")
"""


def test_what_is_above_is_refused_until_there_is_more():
    done = subprocess.run([sys.executable, "-c", GREEDY], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["refused", "had"], done.stderr


def limits_of_nodes() -> dict[str, int]:
    """The ceilings of this run's compute nodes, by the log that each writes."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        for file in child.open_files():
            if Path(file.path).name in ("node-0.log", "node-1.log"):
                found[Path(file.path).name] = child.rlimit(psutil.RLIMIT_DATA)[0]
    return found


def test_nodes_of_a_run_have_a_ceiling_and_train_as_without(tmp_path: Path):
    """Of 600 MiB each, what they had before, what they were given room for, and a tenth."""
    seen: dict[str, int] = {}

    def look(event: Event) -> None:
        if isinstance(event, CommitEvent) and not seen:
            seen.update(limits_of_nodes())

    settings = [*TINY, "owners=2", "train.rounds=20", "memory=600MiB"]
    bounded = run(job(*settings, "hard_memory=true"), tmp_path, "bounded", on_event=look)
    assert set(seen) == {"node-0.log", "node-1.log"}
    assert all(600 << 20 < nbytes < 1600 << 20 for nbytes in seen.values()), seen
    free = run(job(*settings), tmp_path, "free")
    assert read_record(bounded.folder).committed == read_record(free.folder).committed


def test_a_process_that_is_not_ours_has_none():
    with ThreadedRun(job(*TINY, "owners=2", "memory=4GiB", "hard_memory=true")) as threads:
        threads.finish()
    assert psutil.Process().rlimit(psutil.RLIMIT_DATA)[0] == psutil.RLIM_INFINITY
    assert private_bytes() > 0
