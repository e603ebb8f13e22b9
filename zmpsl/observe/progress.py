"""A run as a person follows it: a live view on a terminal, plain lines everywhere else."""

from __future__ import annotations

import importlib.util
import os
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from zmpsl.observe.events import (
    EndEvent,
    EvaluationEvent,
    Event,
    NoticeEvent,
    PlanEvent,
    ProgressEvent,
    RoundEvent,
)
from zmpsl.observe.readable import amount, duration, encodable, number, one_line, percent, some

if TYPE_CHECKING:
    from zmpsl.observe.live import LiveView

__all__ = ["PROGRESS_EVERY_S", "Progress", "describe"]

# In plain output, seconds of event time between two progress lines of a run.
PROGRESS_EVERY_S = 2.0


class Progress:
    """Shows the events of a run.

    Lines for the plan, each round, each evaluation, notices and the end are the same in both forms and stay on the
    screen. Progress within a round is a changing picture in the live form, a line now and then in the plain form.

    Args:
        stream: Where to write; it is not closed.
        live: True for the live view (plain lines where rich is not installed), False for plain lines, None for the
            live view exactly where the stream is a terminal.
    """

    def __init__(self, stream: TextIO, live: bool | None = None) -> None:
        self._stream = stream
        # A terminal that says it is dumb cannot move its cursor.
        can = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._view = _view(stream, can if live is None else live)
        self._rounds: int | None = None
        self._last_progress_s: float | None = None

    def handle(self, event: Event) -> None:
        """Shows one event."""
        if isinstance(event, PlanEvent):
            self._rounds = event.rounds
        if self._view is not None:
            self._view.update(event)
        if isinstance(event, ProgressEvent) and (self._view is not None or not self._is_due(event.time)):
            return
        line = describe(event, self._rounds)
        if line is not None:
            self._write(line)

    def close(self) -> None:
        """Ends the live view and gives the terminal back; a second call does nothing."""
        if self._view is not None:
            self._view.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_due(self, now_s: float) -> bool:
        last_s = self._last_progress_s
        # A host's clock may be set back during a run: lines must not stop for as long.
        if last_s is not None and 0 <= now_s - last_s < PROGRESS_EVERY_S:
            return False
        self._last_progress_s = now_s
        return True

    def _write(self, line: str) -> None:
        if self._view is not None:
            self._view.print(line)
            return
        self._stream.write(encodable(line, self._stream.encoding) + "\n")
        self._stream.flush()


def _view(stream: TextIO, live: bool) -> LiveView | None:
    if not live or importlib.util.find_spec("rich") is None:
        return None
    from zmpsl.observe.live import LiveView

    return LiveView(stream)


def describe(event: Event, rounds: int | None) -> str | None:
    """Puts an event into one line of text.

    Args:
        event: The event.
        rounds: How many rounds the job has, None where that is not known.

    Returns:
        The line without its newline; None for events that are no news to a person.
    """
    if isinstance(event, PlanEvent):
        return _plan_line(event)
    if isinstance(event, ProgressEvent):
        return _progress_line(event, rounds)
    if isinstance(event, RoundEvent):
        return _round_line(event, rounds)
    if isinstance(event, EvaluationEvent):
        loss = "" if event.loss is None else f"  loss {number(event.loss)}"
        return (
            f"{_round(event.round, rounds)} evaluated  accuracy {percent(event.accuracy)}{loss}"
            f"  on {event.samples:,} samples"
        )
    if isinstance(event, NoticeEvent):
        return f"note: {one_line(event.text)}"
    if isinstance(event, EndEvent):
        return _end_line(event)
    return None


def _round(index: int, rounds: int | None) -> str:
    return f"round {index + 1}" if rounds is None else f"round {index + 1}/{rounds}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _plan_line(event: PlanEvent) -> str:
    pieces = [
        _plural(event.owners, "owner"),
        f"{_plural(len(event.nodes), 'compute node')} ({one_line(some(event.nodes))})",
        f"cuts {some(map(str, event.cuts), 12)}",
        f"{sum(part.parameters for part in event.parts):,} parameters",
        _plural(event.rounds, "round") + (f", from round {event.start_round + 1} on" if event.start_round else ""),
    ]
    emulated = "emulated " if event.emulated else ""
    return f"{emulated}job {one_line(event.job)}: {'; '.join(pieces)}"


def _progress_line(event: ProgressEvent, rounds: int | None) -> str:
    pieces = [
        f"{_round(event.round, rounds)} {event.phase}",
        f"{event.batches:,}/{event.batches_total:,} batches",
        f"{event.batches_per_s:,.1f} batches/s",
    ]
    if event.loss is not None:
        pieces.append(f"loss {number(event.loss)}")
    if 0 < len(event.busy) <= 4:
        shares = (
            f"{one_line(node)} {percent(share, 0)}"
            + (f" (expected {percent(event.predicted_busy[node], 0)})" if node in event.predicted_busy else "")
            for node, share in event.busy.items()
        )
        pieces.append(f"busy {', '.join(shares)}")
    elif event.busy:
        pieces.append(f"busy {percent(min(event.busy.values()), 0)} to {percent(max(event.busy.values()), 0)}")
    pieces.append(f"{amount(event.bytes)} sent")
    return "  ".join(pieces)


def _round_line(event: RoundEvent, rounds: int | None) -> str:
    took = duration(event.seconds)
    if event.predicted_s is not None:
        took = f"predicted {duration(event.predicted_s)}, measured {took}"
    rate = f"  {event.batches / event.seconds:,.1f} batches/s" if event.seconds > 0 else ""
    loss = "" if event.loss is None else f"  loss {number(event.loss)}"
    return (
        f"{_round(event.round, rounds)} done{loss}  {took}  {event.samples:,} samples  {event.batches:,} batches{rate}"
        f"  {amount(event.bytes)} sent"
    )


def _end_line(event: EndEvent) -> str:
    text = f": {one_line(event.text)}" if event.text.strip() else ""
    if event.status == "finished":
        return f"finished in {duration(event.seconds)}{text}"
    return f"{event.status} after {duration(event.seconds)} (exit code {event.exit_code}){text}"
