"""When a role dies, everybody else stops within seconds with a message that names it, and the run can go on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
from helpers import TINY, cli, differing, job, victim_of, wait_for

from zmpsl.checkpoint import load_state_dict, read_record
from zmpsl.launch.local import run

OVERRIDES = [*TINY, "owners=2", "train.rounds=100000", "evaluate.every=0", "recover.wait_s=0"]
LIMIT_S = 15.0


@pytest.mark.parametrize(
    ("place", "number", "resume"),
    [
        ("node-0", signal.SIGKILL, True),
        ("node-1", signal.SIGKILL, False),
        ("owner-1", signal.SIGKILL, False),
        ("aggregator", signal.SIGKILL, False),
        ("manager", signal.SIGKILL, True),
        ("node-0", signal.SIGSTOP, False),
    ],
)
def test_everybody_stops_and_names_it(tmp_path: Path, place: str, number: signal.Signals, resume: bool):
    settings = [part for override in OVERRIDES for part in ("--set", override)]
    folder = tmp_path / "runs" / "death"
    with cli("run", "--plain", "--name", "death", *settings, folder=tmp_path) as process:
        wait_for(lambda: (folder / "record.json").exists() and read_record(folder).last >= 2)
        family = psutil.Process(process.pid).children(recursive=True)
        victim_of(process.pid, folder, place).send_signal(number)
        since = time.time()
        _, err = process.communicate(timeout=40)
        assert time.time() - since < LIMIT_S  # nobody waits for a lost role to say goodbye
    assert process.returncode == 6
    assert place in err.splitlines()[-1]
    assert "--resume" in err
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [each for each in alive if each.is_running() and "forkserver" not in " ".join(each.cmdline())]
    others = [path for path in (folder / "logs").iterdir() if path.stem not in (place, "manager")]
    for path in others:
        assert place in path.read_text().splitlines()[-1], path.name
        assert path.stat().st_mtime - since < LIMIT_S, path.name
    if resume:
        _goes_on(tmp_path)


def _goes_on(tmp_path: Path) -> None:
    record = read_record(tmp_path / "runs" / "death")
    overrides = [*OVERRIDES, f"train.rounds={record.last + 3}"]
    resumed = run(job(*overrides), tmp_path / "runs", "death", resume=True)
    whole = run(job(*overrides), tmp_path / "runs", "whole")
    assert differing(load_state_dict(resumed.folder), load_state_dict(whole.folder)) == []


def test_ctrl_c_ends_in_order(tmp_path: Path):
    folder = tmp_path / "runs" / "stop"
    settings = [part for override in OVERRIDES for part in ("--set", override)]
    with cli("run", "--plain", "--name", "stop", *settings, folder=tmp_path) as process:
        wait_for(lambda: (folder / "record.json").exists() and read_record(folder).last >= 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert (folder / "report.html").exists()
