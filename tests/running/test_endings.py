"""`zmpsl run` is told to end, once or twice, by Ctrl-C or SIGTERM, or is killed: nobody is left, and it can go on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from helpers import TINY, cli, victim_of, wait_for

from zmpsl.checkpoint import read_record
from zmpsl.observe.events import EndEvent, read_events

OVERRIDES = [*TINY, "owners=2", "train.rounds=100000", "evaluate.every=0"]
SETTINGS = [part for override in OVERRIDES for part in ("--set", override)]


@contextmanager
def under_way(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, list[psutil.Process]]]:
    """A run with a committed round: its launcher, its folder, and all its processes, of which none may be left."""
    folder = tmp_path / "runs" / "end"
    with cli("run", "--plain", "--name", "end", *SETTINGS, folder=tmp_path) as process:
        wait_for(lambda: (folder / "record.json").exists() and read_record(folder).last >= 1)
        family = psutil.Process(process.pid).children(recursive=True)
        try:
            yield process, folder, family
            _, alive = psutil.wait_procs(family, timeout=10)
            assert not alive
        finally:
            for each in psutil.wait_procs(family, timeout=0)[1]:
                each.kill()


def ending(folder: Path) -> EndEvent:
    """The last word of the run's record of events."""
    *_, last = read_events(folder / "metrics.jsonl")
    assert isinstance(last, EndEvent)
    return last


def stop(process: psutil.Process) -> None:
    """Stops a process, and waits until it is: one that syncs a file stops later, and hears of other signals before."""
    process.suspend()
    wait_for(lambda: process.status() == psutil.STATUS_STOPPED)


def is_asked_to_end(process: psutil.Process) -> bool:
    """Whether a SIGTERM waits for a stopped process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (pending,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("ShdPnd")]
    return bool(pending >> (signal.SIGTERM - 1) & 1)


def test_sigterm_ends_in_order_and_the_run_goes_on(tmp_path: Path):
    with under_way(tmp_path) as (process, folder, _):
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert (ending(folder).status, ending(folder).exit_code) == ("interrupted", 130)
    rounds = read_record(folder).last + 2
    with cli("run", "--plain", "--resume", str(folder), "--set", f"train.rounds={rounds}", folder=tmp_path) as again:
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
    assert read_record(folder).last == rounds - 1


def test_a_manager_that_hangs_does_not_hold_up_the_end(tmp_path: Path):
    """It is stopped and never answers; whoever pressed Ctrl-C once still has an end, and is told."""
    with under_way(tmp_path) as (process, folder, _):
        stop(victim_of(process.pid, folder, "manager"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted; the manager did not answer and was killed" in out


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_second_time_ends_at_once(tmp_path: Path):
    """Nobody answers any more: the first one waits for them, the second one does not."""
    with under_way(tmp_path) as (process, folder, _):
        manager, *others = (victim_of(process.pid, folder, place) for place in ("manager", "node-0", "owner-1"))
        for each in (manager, *others):
            stop(each)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: is_asked_to_end(manager))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "zmpsl: interrupted" in err
    assert "did not answer" not in out


def test_nobody_outlives_a_launcher_that_was_killed(tmp_path: Path):
    """Nobody would start lost roles again, and the folder would be somebody's who goes on with the run."""
    with under_way(tmp_path) as (process, folder, _):
        process.kill()
    assert ending(folder).status == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_role_that_waits_ends_when_it_is_told(tmp_path: Path, number: signal.Signals):
    """As soon as it has said where it is: one whose manager is not there yet, and a manager that has no job."""
    waiting = [[role, "--manager", "tcp://127.0.0.1:1"] for role in ("compute", "owner", "aggregator")]
    with ExitStack() as stack:
        roles = [stack.enter_context(cli(*words, folder=tmp_path)) for words in (["manager"], *waiting)]
        for role, code in zip(roles, (130, 0, 0, 0), strict=True):
            assert " at tcp://127.0.0.1:" in role.stdout.readline()
            role.send_signal(number)
            _, err = role.communicate(timeout=20)
            assert role.returncode == code, err


def test_a_run_has_one_manager_at_a_time(tmp_path: Path):
    """Two would write the same files; who goes on with a run that is under way is told so, and does it no harm."""
    with under_way(tmp_path) as (process, folder, _):
        before = read_record(folder).last
        for words in (["run", "--plain"], ["manager"]):
            with cli(*words, "--resume", str(folder), folder=tmp_path) as second:
                _, err = second.communicate(timeout=30)
                assert second.returncode == 2
                assert f"another manager is at work in {folder}; end it first" in err
        wait_for(lambda: read_record(folder).last > before)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130
