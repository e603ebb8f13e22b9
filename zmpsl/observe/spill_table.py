"""The report's tables of what it cost that owners keep their optimiser states, and that stalled ones are set aside."""

from __future__ import annotations

from collections.abc import Iterable

from zmpsl.observe.page import table
from zmpsl.observe.readable import amount, duration, natural, one_line
from zmpsl.observe.run_folder import Recorded
from zmpsl.pool.spill import SpillStats

__all__ = ["aside_table", "spill_table"]


def spill_table(run: Recorded) -> list[str]:
    """Words what was written and read over all rounds, all owners in one row; nothing where nothing was kept."""
    text = (
        "<p>Optimiser states that owners kept from round to round, on disk, over all rounds. Writing and reading go on"
        " beside the work; it waited for them only as long as the last column says.</p>"
    )
    return _words(text, (event.spill for event in run.rounds.values()))


def aside_table(run: Recorded) -> list[str]:
    """Words the same of the replicas of stalled owners; nothing where none was set aside."""
    text = (
        "<p>Replicas of owners that stalled and whose places went to others, on disk, over all rounds. A node writes"
        " one before it goes on, and reads it back beside its work; it waited as long as the last column says.</p>"
    )
    return _words(text, (event.aside for event in run.rounds.values()))


def _words(text: str, rounds: Iterable[dict[str, SpillStats]]) -> list[str]:
    sums: dict[str, SpillStats] = {}
    for places in rounds:
        for place, stats in places.items():
            name = "all owners" if place.startswith("owner") else place
            sums[name] = sums.get(name, SpillStats()).plus(stats)
    if not sums:
        return []
    rows = [
        [
            one_line(name),
            amount(stats.state_bytes),
            amount(stats.written_bytes),
            f"{stats.state_bytes / stats.written_bytes:.2f}" if stats.written_bytes else "-",
            duration(stats.write_s),
            amount(stats.read_bytes),
            duration(stats.read_s),
            duration(stats.wait_s),
        ]
        for name, stats in sorted(sums.items(), key=lambda item: natural(item[0]))
    ]
    return [
        text,
        table(
            ["role", "states", "written", "ratio", "writing", "read", "reading", "waited"],
            rows,
            numbers={1, 2, 3, 4, 5, 6, 7},
        ),
    ]
