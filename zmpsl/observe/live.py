"""The live view of a run on a terminal, drawn with rich; `progress` imports this only where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from zmpsl.observe.events import EndEvent, EvaluationEvent, Event, PlanEvent, ProgressEvent, RoundEvent
from zmpsl.observe.readable import amount, encodable, number, one_line, percent, some

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["LiveView"]

# Redrawing faster than this tells a person nothing more; seconds of event time.
_REDRAW_EVERY_S = 0.1
_MAX_BARS = 12


class LiveView:
    """A block of lines at the bottom of the terminal that changes in place.

    Nothing runs in the background: the picture changes only inside `update`.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plan: PlanEvent | None = None
        self._progress: ProgressEvent | None = None
        self._evaluation: EvaluationEvent | None = None
        self._drawn_s: float | None = None
        self._console = Console(file=stream, force_terminal=True, highlight=False)
        self._live = Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def update(self, event: Event) -> None:
        """Takes an event into the picture; the end of a run ends the view."""
        if isinstance(event, PlanEvent):
            self._plan, self._progress = event, None
        elif isinstance(event, ProgressEvent):
            self._progress = event
            drawn_s = self._drawn_s
            if drawn_s is not None and 0 <= event.time - drawn_s < _REDRAW_EVERY_S:
                return
            self._drawn_s = event.time
        elif isinstance(event, EvaluationEvent):
            self._evaluation = event
        elif isinstance(event, RoundEvent):
            self._progress = None
        elif isinstance(event, EndEvent):
            self.close()
            return
        self._live.update(self._picture(), refresh=True)

    def print(self, line: str) -> None:
        """Writes a line that stays, above the picture."""
        # markup=False: a name such as "[red]" is a name.
        self._console.print(encodable(line, self._console.encoding), markup=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the picture away; a second call does nothing."""
        self._live.stop()

    def _safe(self, text: str) -> str:
        return encodable(one_line(text), self._console.encoding)

    def _picture(self) -> RenderableType:
        from rich.console import Group

        pieces: list[RenderableType] = []
        if self._plan is not None:
            pieces.append(self._header(self._plan))
        if self._progress is not None:
            pieces.append(self._round_bar(self._progress))
            pieces.append(self._numbers(self._progress))
            if self._progress.busy:
                pieces.append(self._busy_bars(self._progress.busy))
        return Group(*pieces)

    def _header(self, plan: PlanEvent) -> RenderableType:
        from rich.text import Text

        text = Text(no_wrap=True, overflow="crop")
        text.append(self._safe(plan.job), style="bold")
        if plan.emulated:
            text.append("  emulated", style="bold yellow")
        text.append(f"  {plan.owners:,} owners > {self._safe(some(plan.nodes))} > owners")
        text.append(f"  cuts {some(map(str, plan.cuts), 12)}", style="dim")
        return text

    def _round_bar(self, progress: ProgressEvent) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rounds = "" if self._plan is None else f"/{self._plan.rounds}"
        grid = Table.grid(padding=(0, 1), expand=False)
        grid.add_row(
            Text(f"round {progress.round + 1}{rounds} {progress.phase}", style="bold"),
            ProgressBar(total=max(1, progress.batches_total), completed=progress.batches, width=30),
            Text(f"{progress.batches:,}/{progress.batches_total:,} batches"),
            Text(f"{progress.batches_per_s:,.1f} batches/s"),
        )
        return grid

    def _numbers(self, progress: ProgressEvent) -> RenderableType:
        from rich.text import Text

        pieces = [f"loss {number(progress.loss)}"]
        if self._evaluation is not None:
            pieces.append(f"accuracy {percent(self._evaluation.accuracy)} after round {self._evaluation.round + 1}")
        pieces.append(f"{amount(progress.bytes)} sent")
        return Text("  ".join(pieces))

    def _busy_bars(self, busy: dict[str, float]) -> RenderableType:
        """Draws each compute node's busy share as a bar; of a long chain the first few and the range of the others."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1), expand=False)
        for name, share in list(busy.items())[:_MAX_BARS]:
            bar = ProgressBar(total=1.0, completed=min(1.0, max(0.0, share)), width=30, finished_style="bar.complete")
            grid.add_row(Text(self._safe(name)), bar, Text(f"{percent(share, 0)} busy"))
        others = list(busy.values())[_MAX_BARS:]
        if others:
            spread = f"busy {percent(min(others), 0)} to {percent(max(others), 0)}"
            grid.add_row(Text(f"{len(others)} more"), Text(spread))
        return grid
