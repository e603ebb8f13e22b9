"""Draws docs/run.svg: the live view of a run, replayed from the metrics.jsonl that the run left.

    python docs/make_run_svg.py RUN_DIR docs/run.svg

The picture is what the terminal showed at the last progress event of training that tells how busy the nodes were. The
lines above it and the numbers in it are those of the run. Fonts are left to the viewer: the file needs nothing else.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from zmpsl.observe.events import Event, PlanEvent, ProgressEvent, read_events
from zmpsl.observe.live import LiveView
from zmpsl.observe.progress import describe

WIDTH = 106


def moment(events: list[Event]) -> int:
    """Gives the index of the event to show."""
    shown = [
        index
        for index, event in enumerate(events)
        if isinstance(event, ProgressEvent) and event.phase == "train" and event.busy
    ]
    if not shown:
        raise SystemExit("no progress event of training tells how busy the nodes were; take a longer run")
    return shown[-1]


def draw(events: list[Event]) -> str:
    """Gives the picture as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    view = LiveView(io.StringIO())
    rounds = None
    for event in events:
        rounds = event.rounds if isinstance(event, PlanEvent) else rounds
        view.update(event)
        line = None if isinstance(event, ProgressEvent) else describe(event, rounds)
        if line is not None:
            console.print(line, markup=False, emoji=False, soft_wrap=True)
    console.print(view._picture())
    view.close()
    svg = console.export_svg(title="zmpsl run", unique_id="zmpsl-run")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


def main() -> None:
    """Reads the run, writes the picture."""
    run, target = map(Path, sys.argv[1:3])
    events = list(read_events(run / "metrics.jsonl"))
    target.write_text(draw(events[: moment(events) + 1]), encoding="utf-8")


if __name__ == "__main__":
    main()
