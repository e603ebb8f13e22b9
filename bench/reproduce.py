"""The evaluation of the MP-SL paper again: writes docs/reproduction.md and its pictures, from the authors' numbers.

    python bench/reproduce.py [--data FOLDER]

Everything on the page is computed when the command runs, by zmpsl's planner. The authors' numbers are read from the
folder `mpsl` of --data, $ZMPSL_DATA or ../shared/data beside the repository; they are not part of the repository.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from mpsl import devices, figure_9, horizontal, pipe, plots, rivals, solver_time, splits
from mpsl.page import Section, render
from mpsl.published import Published

ROOT = Path(__file__).resolve().parents[1]
FIGURES: tuple[Callable[[Published], Section], ...] = (
    devices.table_1, devices.table_2, devices.figure_3, solver_time.equation_7, solver_time.figure_8, figure_9.figure_9,
    pipe.equation_3, pipe.equation_4, pipe.figure_10, splits.figure_11, splits.figure_12, rivals.figure_13a,
    rivals.figure_13b, horizontal.figure_14,
)  # fmt: skip
INTRO = """\
# The MP-SL paper, reproduced

The evaluation of "MP-SL: Multihop Parallel Split Learning" ([arXiv 2402.00208](https://arxiv.org/abs/2402.00208)), computed
again with zmpsl's planner: exact solvers, the paper's cost model, and a discrete-event simulation. The inputs are the
profiles and constants that the authors published in their code repository (seconds and bytes per block of ResNet-101 and
VGG-19 on a Raspberry Pi 4 and a VM, batches of 128 CIFAR-10 images); what the paper shows without numbers was read off
its vector figures. Nothing here was trained or measured on devices: this page tests the paper's formulas, its solver and
the consistency of its numbers. P is the number of parts, N = P - 2 of them on compute nodes; K is the number of owners; a
split is given by its cuts, (2, 26, 35) meaning blocks 2 to 25 on the first node and 26 to 34 on the second.

*Pass* means that all compared values are within the tolerance given. Marks in the pictures are the paper's values, lines
are ours. The page is written by `python bench/reproduce.py`, and a test computes it again.

Not here: figure 1 (memory of a training on the Raspberry Pi; only its "up to 76 %" is printed, and it is a measurement) and
figures 2 and 4 to 7 (drawings).
"""


def data_folder(given: Path | None) -> Path:
    """Gives the data folder: as given, $ZMPSL_DATA, or beside the repository."""
    return given or Path(os.environ.get("ZMPSL_DATA", ROOT.parent / "shared" / "data"))


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), help="Folder that holds the folder mpsl.")
@click.option("--out", default=ROOT / "docs", type=click.Path(path_type=Path), help="Where the page goes.")
def main(data: Path | None, out: Path) -> None:
    published = Published(data_folder(data))
    if not published.folder.is_dir():
        raise click.ClickException(f"the authors' numbers are not at {published.folder}; give --data or set ZMPSL_DATA")
    sections = []
    for make in FIGURES:
        sections.append(make(published))
        click.echo(f"{sections[-1].title}: {', '.join(group.verdict for group in sections[-1].groups)}", err=True)
    folder = out / "reproduction"
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        if section.plot is not None:
            plots.draw(section.plot, folder)
    (out / "reproduction.md").write_text(render(INTRO, sections), encoding="utf-8")


if __name__ == "__main__":
    main()
