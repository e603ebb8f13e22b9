"""What the planning commands print with: tables, and values as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

__all__ = ["echo_json", "table"]


def echo_json(value: Any) -> None:
    """Prints a struct, or what is made of them, as JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: with rich where that is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        click.echo(title)
        for row in (columns, *rows):
            click.echo("  ".join(row))
        return
    rich = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        rich.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        rich.add_row(*row)
    Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160).print(rich)
