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
    page = out / "reproduction.md"
    page.write_text(render(sections), encoding="utf-8")
    click.echo(f"{page} written", err=True)


if __name__ == "__main__":
    main()
