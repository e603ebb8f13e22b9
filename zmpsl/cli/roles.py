"""`zmpsl manager`, `compute`, `owner`, `aggregator`: one role in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from zmpsl.cli.options import (
    EXIT_CODES,
    PATH,
    address_options,
    errors,
    job_options,
    member_options,
    read_job,
    runs_option,
)

if TYPE_CHECKING:
    pass


@click.command(epilog=EXIT_CODES)
@job_options
@runs_option
@click.option("--name", default=None, help="Name of the run and its folder.")
@click.option(
    "--resume", type=PATH, default=None, metavar="RUN_DIR", help="Go on with a run after its last committed round."
)
@address_options
def manager(
    job: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
    name: str | None,
    resume: Path | None,
    bind: str,
    advertise: str | None,
    keys: Path | None,
    security: str,
) -> None:
    """Run the manager; with JOB at once, without it wait until a job is submitted."""
    from contextlib import ExitStack

    from zmpsl.checkpoint import held, read_record
    from zmpsl.keys import security_from
    from zmpsl.launch.process import quiet_signals
    from zmpsl.loops.manager import ManagerNode
    from zmpsl.observe.progress import Progress
    from zmpsl.roles.manager import Manager

    with errors(), ExitStack() as stack, Progress(sys.stdout, None) as progress:
        if resume is not None:
            job, runs, name = resume / "job.yaml", resume.resolve().parent, resume.resolve().name
        if name is not None:
            stack.enter_context(held(runs / name))
        settings = read_job(job, overrides) if job is not None or overrides else None
        role = Manager(runs, settings, name, read_record(resume) if resume is not None else None)
        role.board.listeners.append(progress.handle)
        node = ManagerNode(role, bind, advertise, security=security_from(keys, security, "manager"))
        _stoppable(node.ask_to_stop, quiet_signals)
        click.echo(f"manager at {node.endpoint}")
        node.run()
        if role.folder is not None and role.folder.exists():
            click.echo(f"run folder: {role.folder}")
        sys.exit(role.exit.exit_code if role.exit is not None else 0)


def _stoppable(stop: Callable[[], None], quiet_signals: Callable[[Callable[[], object]], None]) -> None:
    """Ctrl-C and SIGTERM ask for an orderly end; a second Ctrl-C ends at once."""
    import signal

    def on_interrupt(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    quiet_signals(stop)
    signal.signal(signal.SIGINT, on_interrupt)


def _member(
    role: Literal["owner", "compute", "aggregator"],
    manager: str,
    place: str,
    runs: Path,
    bind: str,
    advertise: str | None,
    keys: Path | None,
    security: str,
    data_dir: Path | None = None,
    allow_code: tuple[str, ...] = (),
    memory: str = "",
) -> None:
    import logging

    from zmpsl.keys import security_from
    from zmpsl.launch.process import make_member, quiet_signals
    from zmpsl.loops.member import Node

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with errors():
        member = make_member(role, runs, place, data_dir, memory)
        member.allowed_code = allow_code
        node = Node(member, manager, bind, advertise, security=security_from(keys, security, role))
        _stoppable(node.ask_to_stop, quiet_signals)
        click.echo(f"{role} at {node.endpoint}, manager at {manager}")
        node.run()
        click.echo(f"{node.member.place}: done")


_allow_code = click.option(
    "--allow-code",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Code outside zmpsl that a job may have this role run.",
)


@click.command(epilog=EXIT_CODES)
@member_options
@_allow_code
@click.option(
    "--memory",
    default="",
    metavar="SIZE",
    help="Most memory of this process, such as 4GiB or 50%, instead of the job's memory.",
)
def compute(**options: Any) -> None:
    """Run a compute node: it gets its part of the model from the manager's plan."""
    _member("compute", **options)


@click.command(epilog=EXIT_CODES)
@member_options
@_allow_code
@click.option("--data-dir", type=PATH, default=None, help="Folder of this owner's data, instead of the job's data.dir.")
def owner(**options: Any) -> None:
    """Run a data owner: data, labels, first and last part stay here."""
    _member("owner", **options)


@click.command(epilog=EXIT_CODES)
@member_options
def aggregator(**options: Any) -> None:
    """Run the aggregator: it averages the owners' first and last parts."""
    _member("aggregator", **options)
