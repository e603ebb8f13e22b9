"""What is told of a slow owner's neighbours is of their own batches, before and while it is slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from neighbours import batch_seconds

from zmpsl.observe.timeline import Recorder

MS = 1_000_000


def test_only_the_others_and_only_whole_rounds(tmp_path: Path) -> None:
    """Owner 1 is slow from 1 s on; round 1 falls into both times, and what came long before is not looked at."""
    rounds = {0: (0, 10), 1: (990, 10), 2: (1000, 12), 3: (2500, 90)}
    with Recorder(tmp_path / "node-0.jsonl", "node-0", lambda: 0, lambda: 0) as trace:
        for round_, (start, gap) in rounds.items():
            for batch in range(3):
                for owner, apart in ((0, gap), (1, 400), (2, gap + 2)):
                    at = (start + batch * apart) * MS
                    trace.add("F", at, at + MS, owner, round_, 0, batch, 0)
                    trace.add("B", at + MS, at + 2 * MS, owner, round_, 0, batch, 0)
    assert batch_seconds(tmp_path, 1, (1.0, 2.0)) == pytest.approx((0.011, 0.013))
