"""The pool's benchmark runs from its command line, with owners that cannot measure a model as they hold none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zmpsl.launch.process import make_member
from zmpsl.loops.member import Node

ROOT = Path(__file__).parents[2]


def test_a_small_model_gives_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "pool.json"
    options = ["--model", "digits_cnn", "--cuts", "1,3,5", "--nodes", "2", "--owners", "1", "--total", "904MiB"]
    done = subprocess.run(
        [sys.executable, "bench/pool.py", *options, "--batches", "1", "--timeout-s", "60", "--json", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| 2 | 1 | 1 | " in done.stdout
    assert json.loads(file.read_text())


def test_a_role_sleeps_as_long_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench set five seconds, the loop had its tenth for good: hundreds of waiting owners kept a core busy."""
    asked = []
    monkeypatch.setattr(Node, "idle_s", 5.0)
    node = Node(make_member("aggregator", None, "aggregator"), "tcp://127.0.0.1:9")
    try:
        monkeypatch.setattr(node._poller, "poll", lambda milliseconds: asked.append(milliseconds) or [])
        node._turn()
    finally:
        node.close()
    assert asked == [5000]
