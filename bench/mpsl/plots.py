"""Pictures of the page: our values as lines, the paper's as marks; SVG that is the same in every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpsl.page import Panel, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

COLOURS = ("#1f6f8b", "#c4622d", "#4a7c3a", "#7b4b94", "#a8892c", "#8c2f39", "#555555")
# Text stays text and ids do not change, so that a picture that did not change makes no difference in the history.
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "zmpsl", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 7.5, "figure.facecolor": "white",
}  # fmt: skip


def draw(plot: Plot, folder: Path) -> Path:
    """Writes one picture and gives its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(plot.panels), figsize=(4.3 * len(plot.panels), 3.8), squeeze=False)
        for axis, panel in zip(axes[0], plot.panels, strict=True):
            _panel(axis, panel)
        figure.tight_layout()
        path = folder / f"{plot.name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return path


def _panel(axis: Axes, panel: Panel) -> None:
    """A line and the marks after it have one colour: what the paper says about the same thing."""
    from matplotlib.ticker import MaxNLocator

    colour, named = -1, set()
    for series in panel.series:
        colour += not (series.paper or series.dashed) or colour < 0
        own = COLOURS[colour % len(COLOURS)]
        label = "_nolegend_" if series.label in named else series.label
        named.add(series.label)
        if series.paper:
            axis.plot(series.x, series.y, "o", color=own, mfc="white", ms=6, mew=1.4, label=label, zorder=3)
        else:
            style = "--" if series.dashed else "-"
            axis.plot(series.x, series.y, style, color=own, marker=".", ms=4, lw=1.4, label=label)
    axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0, top=1.08 * max(max(series.y) for series in panel.series))
    if not isinstance(panel.series[0].x[0], str):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
