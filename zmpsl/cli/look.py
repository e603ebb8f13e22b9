"""`zmpsl models` and `zmpsl report`: look at what there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import (
    PATH,
    errors,
)

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("name", required=False)
@click.option("--arg", "args", multiple=True, metavar="KEY=VALUE", help="Argument of the model.")
def models(name: str | None, args: tuple[str, ...]) -> None:
    """List the models, or the blocks of one."""
    import yaml

    from zmpsl.engine.build import summarise
    from zmpsl.job.schema import Model
    from zmpsl.models import ZOO

    if name is None:
        click.echo("\n".join(ZOO))
        return
    with errors():
        values = {key: yaml.safe_load(value) for key, _, value in (arg.partition("=") for arg in args)}
        total = 0
        for index, block in enumerate(summarise(Model(name=name, args=values))):
            click.echo(f"{index:4d}  {block.kind:<24} {block.parameters:>12,}")
            total += block.parameters
        click.echo(f"      {'total':<24} {total:>12,}")


@click.command()
@click.argument("run_dir", type=PATH)
def report(run_dir: Path) -> None:
    """Write the HTML report of a run again."""
    from zmpsl.observe.report import write_report
    from zmpsl.observe.timeline import merge

    with errors():
        if (run_dir / "timeline").is_dir():
            merge(run_dir / "timeline", run_dir / "timeline.json")
        click.echo(write_report(run_dir))
