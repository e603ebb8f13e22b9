"""What a slow owner costs the others: their seconds from batch to batch while it is slow, and before.

Read from the first compute node's timeline: when it began the forwards of each owner. For bench/faults.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import median

from zmpsl.observe.timeline import round_starts, spans

__all__ = ["batch_seconds"]

BEFORE_S = 10.0


def batch_seconds(folder: Path, slow: int, during: tuple[float, float]) -> tuple[float, float]:
    """Gives the median seconds between two batches of the same owner in a round, of all owners but one.

    Args:
        folder: The run's `timeline` folder.
        slow: The owner that is left out.
        during: When it was slow, Unix time.

    Returns:
        In the rounds shortly before that, and in those that began while it was slow.
    """
    began, over = (1e6 * at for at in during)
    before, meanwhile = list[float](), list[float]()
    for round_, start in round_starts(folder).items():
        if not began - 1e6 * BEFORE_S <= start <= over:
            continue
        starts: dict[int, list[int]] = {}
        for span in spans(folder, round_)["node-0"]:
            if span.op == "F" and span.owner != slow:
                starts.setdefault(span.owner, []).append(span.start_us)
        gaps = [(later - sooner) / 1e6 for each in starts.values() for sooner, later in pairwise(each)]
        if start >= began:
            meanwhile += gaps
        elif starts and max(map(max, starts.values())) < began:
            before += gaps
    return median(before), median(meanwhile)
