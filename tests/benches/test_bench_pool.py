"""The pool's benchmark runs from its command line, with owners that cannot measure a model as they hold none."""

import json
from pathlib import Path

import pytest
from typed_bench import bench

from zmpsl.launch.process import make_member
from zmpsl.loops.member import Node


def test_a_small_model_gives_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "pool.json"
    options = ["--model", "digits_cnn", "--cuts", "1,3,5", "--nodes", "2", "--owners", "1", "--total", "904MiB"]
    done = bench("pool", *options, "--batches", "1", "--timeout-s", "60", "--json", str(file), timeout_s=100)
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
