"""A limit of a real cgroup, of a guest's kernel: it kills what goes beyond, and the benchmark sees that it did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import guest
import pytest
from click.testing import CliRunner
from guest import why_not

ROOT = Path(__file__).parents[2]
MEMORY = 256 << 20
TAKING = """
import subprocess, sys
from pathlib import Path
from hard_limit import Cgroup

with Cgroup(Path("/run/cgroup"), "small", 48 << 20) as group:
    for nbytes in (16 << 20, 96 << 20):
        taker = subprocess.Popen(
            [sys.executable, "-c", f"input(); bytearray({nbytes}).replace(b'0', b'1')"], stdin=subprocess.PIPE
        )
        group.take(taker.pid)
        taker.communicate(b"\\n")
        print(taker.returncode, group.kills, group.peak > nbytes, group.reached > 0)
"""


@pytest.mark.skipif(why_not(MEMORY) != "", reason=why_not(MEMORY))
def test_a_limit_kills_and_tells() -> None:
    command = [sys.executable, "bench/guest.py", "--memory", str(MEMORY), "--timeout-s", "100"]
    inside = ["env", f"PYTHONPATH={ROOT / 'bench'}", sys.executable, "-c", TAKING]
    found = subprocess.run([*command, *inside], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == ["0 0 True False", "-9 1 False True"]


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guest.shutil.which", lambda _name: None)
    assert "apt-get install user-mode-linux" in why_not(MEMORY)
    monkeypatch.setattr("guest.shutil.which", lambda name: f"/usr/bin/{name}")
    assert "sysctl -w vm.max_map_count=268435456" in why_not(1 << 40)
    assert why_not(0) == ""


def test_options_after_the_command_are_the_commands_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest took a bench's --timeout-s for its own: the bench ended early, though it had been given longer."""
    asked: list[tuple[tuple[str, ...], float]] = []
    monkeypatch.setattr(guest, "why_not", lambda _memory: "")
    monkeypatch.setattr(guest, "run", lambda _folder, _memory, *rest: asked.append(rest) or 0)
    CliRunner().invoke(guest.main, ["--timeout-s", "9", "python", "bench/pool.py", "--timeout-s", "7", "--json", "x"])
    assert asked == [(("python", "bench/pool.py", "--timeout-s", "7", "--json", "x"), 9)]
