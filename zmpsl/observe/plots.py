"""The report's plots: plain numbers in, inline SVG text out.

matplotlib is used through `Figure` alone (no pyplot, no window, no state that outlives a call). Its SVG is made fit to
stand in the middle of an HTML page: no header, no links, ids that differ between plots, and text and lines in the
page's own colours, so that dark mode works.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from zmpsl.observe.timeline import OPS, Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "gantt", "lines", "shares", "stacks"]

# Okabe and Ito's palette, which people with any colour vision can tell apart.
COLOURS = {"F": "#0072b2", "B": "#e69f00", "U": "#009e73", "L": "#cc79a7", "E": "#56b4e9", "A": "#d55e00"}
_SERIES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8c6bb1", "#999999"]

# Stand-ins that no plot uses otherwise; `_svg` replaces them by what the page's style sheet says.
_INK, _GRID, _EMPTY = "#010203", "#010204", "#010205"
_PAGE = {_INK: "currentColor", _GRID: "var(--grid)", _EMPTY: "var(--empty)"}

_WIDTH = 6.6
_MAX_POINTS = 500
_MAX_BARS = 60


def lines(unit: str, series: Mapping[str, Mapping[int, float]], label: str, from_zero: bool = False) -> str:
    """Draws one value per round as lines.

    Args:
        unit: What the vertical axis is.
        series: Name to round (from 0) to value; a legend is drawn for more than one.
        label: What the picture shows, for those who cannot see it.
        from_zero: Whether the vertical axis starts at 0.

    Returns:
        The SVG element.
    """
    figure, axes = _figure(2.5)
    for (name, values), colour in zip(series.items(), cycle(_SERIES), strict=False):
        rounds = _thin(list(values))
        marker = "o" if len(rounds) <= 50 else ""
        axes.plot(
            [index + 1 for index in rounds], [values[index] for index in rounds], color=colour, label=_plain(name),
            marker=marker, markersize=4, linewidth=1.8,
        )  # fmt: skip
    axes.set_ylabel(unit, color=_INK, fontsize=9)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(color=_GRID, linewidth=0.6)
    if from_zero:
        axes.set_ylim(0, 1.1 * max(value for values in series.values() for value in values.values()) or 1.0)
    _round_axis(axes, [index for values in series.values() for index in values])
    if len(series) > 1:
        _legend(axes, len(series))
    return _svg(figure, label)


def shares(rows: Mapping[str, Mapping[str, float]], label: str) -> str:
    """Draws for each row how its whole is divided, as one bar of length 100 %.

    Args:
        rows: Row to kind to amount; kinds are F, B, U, ... of the timeline or any other word (drawn as empty).
        label: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    figure, axes = _figure(0.75 + 0.24 * len(rows))
    left = dict.fromkeys(rows, 0.0)
    for kind in kinds:
        width = {name: 100 * row.get(kind, 0.0) / max(sum(row.values()), 1e-12) for name, row in rows.items()}
        axes.barh(
            range(len(rows)), list(width.values()), left=list(left.values()), height=0.72,
            color=COLOURS.get(kind, _EMPTY), label=OPS.get(kind, kind),
        )  # fmt: skip
        left = {name: left[name] + width[name] for name in rows}
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of time (%)", color=_INK, fontsize=9)
    _rows(axes, rows)
    _legend(axes, len(kinds))
    return _svg(figure, label)


def stacks(unit: str, groups: Mapping[str, Mapping[int, float]], label: str) -> str:
    """Draws how a sum per round is made up.

    Args:
        unit: What the vertical axis is.
        groups: Name to round (from 0) to value; a round that is missing counts as 0.
        label: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    figure, axes = _figure(2.7)
    rounds = _thin(sorted({index for values in groups.values() for index in values}))
    x = [index + 1 for index in rounds]
    heights = {_plain(name): [values.get(index, 0.0) for index in rounds] for name, values in groups.items()}
    if len(rounds) > _MAX_BARS:
        axes.stackplot(x, list(heights.values()), labels=list(heights), colors=_SERIES)
    else:
        bottom = [0.0] * len(rounds)
        for (name, height), colour in zip(heights.items(), cycle(_SERIES), strict=False):
            axes.bar(x, height, bottom=bottom, label=name, color=colour, width=0.7)
            bottom = [low + high for low, high in zip(bottom, height, strict=True)]
    axes.set_ylabel(unit, color=_INK, fontsize=9)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _round_axis(axes, rounds)
    _legend(axes, len(groups))
    return _svg(figure, label)


def gantt(work: Mapping[str, Sequence[Span]], origin_us: int, window_us: int, label: str) -> str:
    """Draws who worked on what, one row per role, time from left to right.

    Args:
        work: Role to its work, by start.
        origin_us: Left edge, Unix microseconds.
        window_us: Length of the time axis, microseconds.
        label: What the picture shows, for those who cannot see it.

    Returns:
        The SVG element.
    """
    figure, axes = _figure(0.75 + 0.3 * len(work))
    scale = 1000 if window_us < 2_000_000 else 1_000_000
    drawn: dict[str, None] = {}
    for row, role_spans in enumerate(work.values()):
        for op, bars in _bars(role_spans, origin_us, window_us).items():
            axes.broken_barh(
                [(start / scale, length / scale) for start, length in bars], (row - 0.38, 0.76),
                facecolors=COLOURS.get(op, _SERIES[-1]), linewidth=0,
                label="_" if op in drawn else OPS.get(op, _plain(op)),
            )  # fmt: skip
            drawn[op] = None
    axes.set_xlim(0, window_us / scale)
    axes.set_xlabel("ms" if scale == 1000 else "s", color=_INK, fontsize=9)
    axes.grid(axis="x", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    _rows(axes, work)
    _legend(axes, len(drawn))
    return _svg(figure, label)


def _bars(role_spans: Sequence[Span], origin_us: int, window_us: int) -> dict[str, list[tuple[int, int]]]:
    """Gives the (start, length) of each op's bars, in microseconds from the origin.

    Neighbours of one op with less than a tenth of a pixel between them become one bar; work of another op in between
    keeps them apart, so that no bar covers another.
    """
    bars: dict[str, list[tuple[int, int]]] = {}
    gap_us = window_us / 5000
    last_op, end = "", 0
    for span in role_spans:
        start = max(span.start_us - origin_us, 0)
        stop = min(span.start_us - origin_us + span.duration_us, window_us)
        if start >= window_us or stop < start:
            continue
        if span.op == last_op and start - end <= gap_us:
            first, _ = bars[span.op][-1]
            bars[span.op][-1] = (first, max(stop, end) - first)
        else:
            bars.setdefault(span.op, []).append((start, stop - start))
        last_op, end = span.op, max(stop, end)
    return bars


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8.5, length=3)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_linewidth(0.8)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _round_axis(axes: Axes, rounds: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = min(rounds) + 1, max(rounds) + 1
    margin = max(0.6, 0.02 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlabel("round", color=_INK, fontsize=9)


def _rows(axes: Axes, names: Iterable[str]) -> None:
    labels = [_plain(name) for name in names]
    axes.set_yticks(range(len(labels)), labels=labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _legend(axes: Axes, entries: int) -> None:
    if entries:
        axes.figure.legend(
            loc="outside upper left", ncols=min(entries, 6), frameon=False, fontsize=8.5, labelcolor=_INK,
            handlelength=1.2, columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip


def _thin(values: list[int]) -> list[int]:
    """Keeps at most about `_MAX_POINTS` values, evenly chosen, the last one always."""
    step = -(-len(values) // _MAX_POINTS)
    return values if step <= 1 else sorted({*values[::step], values[-1]})


def _plain(name: str) -> str:
    """Makes a name a label: matplotlib reads `$` as mathematics, hides `_...`, and lacks glyphs outside of Latin."""
    text = name.encode("ascii", "backslashreplace").decode().lstrip("_")
    return (text if len(text) <= 24 else text[:21] + "...").replace("$", r"\$")


def _svg(figure: Figure, label: str) -> str:
    """Writes a figure as an SVG element that may stand in an HTML page next to others."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    # The style element would hold for the whole page; the page's own style sheet says the same of its plots.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    for stand_in, colour in _PAGE.items():
        text = text.replace(stand_in, colour)
    text = _own_ids(text, f"p{zlib.crc32(label.encode()):08x}-")
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"\s*\n\s*", "\n", body.strip())
    return f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(label)}">{body}\n'


def _own_ids(svg: str, prefix: str) -> str:
    """Numbers the ids that are referred to and drops the others.

    matplotlib's ids repeat from plot to plot and hold random digits: two plots of a page would get mixed up, and two
    reports of one run would differ.
    """
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    names = {name: f"{prefix}{index}" for index, name in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{names[found[1]]}"' if found[1] in names else "", svg)
    return re.sub(r'(href="|url\()#([^")]+)', lambda found: f"{found[1]}#{names[found[2]]}", svg)
