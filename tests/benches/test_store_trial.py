"""What storing a part costs is measured where it will be stored, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from zmpsl.trials.store import storing_cost


def test_a_file_takes_some_time_and_nothing_is_left(tmp_path: Path) -> None:
    runs = tmp_path / "new" / "runs"
    each_file_s, each_byte_s = storing_cost(runs)
    assert each_file_s >= 0 <= each_byte_s
    assert each_file_s + each_byte_s > 0
    assert list(runs.iterdir()) == []


def test_a_run_that_keeps_nothing_stores_nothing() -> None:
    assert storing_cost(None) == (0.0, 0.0)


def test_a_place_that_cannot_be_written_is_left_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert storing_cost(tmp_path / "file") == (0.0, 0.0)
