"""The command `zmpsl doctor`: looks at this host before a run. Heavy imports are inside the command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import PATH

if TYPE_CHECKING:
    from zmpsl.doctor import Finding

__all__ = ["doctor"]

MARKS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "error": ("wrong", "red")}


@click.command()
@click.argument("job", type=PATH, required=False)
@click.option("--host", "hosts", multiple=True, metavar="ADDRESS", help="A manager to talk to; may be given again.")
@click.option("--bind", "binds", multiple=True, metavar="ADDRESS", help="An address to listen on; may be given again.")
@click.option("--keys", type=PATH, default=None, metavar="FOLDER", help="Folder of this host's keys, or one key file.")
@click.option("--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder in which runs are kept.")
def doctor(job: Path | None, hosts: tuple[str, ...], binds: tuple[str, ...], keys: Path | None, runs: Path) -> None:
    """Look at this host before a run (of JOB): versions, memory, disk, keys, ports, and the way to the manager.

    Exit code 1 where something would make a run fail.
    """
    from zmpsl.doctor import Finding, examine
    from zmpsl.errors import ZmpslError
    from zmpsl.job import load_job

    findings = []
    settings = None
    if job is not None:
        try:
            settings = load_job(job)
            findings.append(Finding("ok", "job", f"{job}: {settings.owners} owners, {settings.nodes} compute nodes"))
        except ZmpslError as error:
            findings.append(Finding("error", "job", str(error), "correct it; docs/job.md has every key"))
    findings += examine(settings, hosts, binds, keys, runs)
    _show(findings)
    sys.exit(any(finding.level == "error" for finding in findings))


def _show(findings: list[Finding]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        for finding in findings:
            fix = f"; {finding.fix}" if finding.fix else ""
            click.echo(f"{MARKS[finding.level][0]:<6}{finding.what}: {finding.text}{fix}")
        return
    table = Table("", "what", "found", "what to do", expand=False)
    for finding in findings:
        mark, colour = MARKS[finding.level]
        table.add_row(Text(mark, style=colour), Text(finding.what), Text(finding.text), Text(finding.fix))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
