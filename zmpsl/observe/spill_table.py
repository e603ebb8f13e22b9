"""The report's table of what it cost that owners keep their optimiser states."""

from __future__ import annotations

from zmpsl.observe.page import table
from zmpsl.observe.readable import amount, duration, natural, one_line
from zmpsl.observe.run_folder import Recorded
from zmpsl.pool.spill import SpillStats

__all__ = ["spill_table"]


def spill_table(run: Recorded) -> list[str]:
    """Words what was written and read over all rounds, all owners in one row; nothing where nothing was kept."""
    sums: dict[str, SpillStats] = {}
    for event in run.rounds.values():
        for place, stats in event.spill.items():
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
        "<p>Optimiser states that owners kept from round to round, on disk, over all rounds. Writing and reading go on"
        " beside the work; it waited for them only as long as the last column says.</p>",
        table(
            ["role", "states", "written", "ratio", "writing", "read", "reading", "waited"],
            rows,
            numbers={1, 2, 3, 4, 5, 6, 7},
        ),
    ]
