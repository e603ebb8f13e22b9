"""What the commands share: options, reading the job, and errors as one line with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from zmpsl.job import Job

__all__ = [
    "EXIT_CODES",
    "PATH",
    "address_options",
    "errors",
    "job_options",
    "member_options",
    "options_of",
    "read_job",
    "runs_option",
    "security_options",
]

PATH = click.Path(path_type=Path)
EXIT_CODES = (
    "Exit codes: 0 done, 2 job or usage, 3 data, 4 network, 5 joining, 6 a peer was lost, 7 training diverged, "
    "8 checkpoint, 9 and 10 protocol, 130 interrupted, 1 anything else."
)


@contextmanager
def errors() -> Iterator[None]:
    """Turns our errors into one line on stderr and the exit code that belongs to them."""
    from zmpsl.errors import ZmpslError

    try:
        yield
    except ZmpslError as error:
        click.echo(f"zmpsl: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("zmpsl: interrupted", err=True)
        sys.exit(130)


def read_job(path: Path | None, overrides: tuple[str, ...]) -> Job:
    """Reads a job file, the built-in job where none is given."""
    from zmpsl.job import load_job

    return load_job(path, overrides)


def options_of(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Makes one decorator of several options, in the order of the help text."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


job_options = options_of(
    click.argument("job", type=PATH, required=False),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the job, such as train.rounds=5; it must exist.",
    ),
)
runs_option = click.option(
    "--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder in which the run's folder is made."
)
security_options = (
    click.option(
        "--keys",
        type=PATH,
        default=None,
        metavar="FOLDER",
        help="Protect all links with the keys in FOLDER (or with one key file in it); see `zmpsl keys`.",
    ),
    click.option(
        "--security",
        type=click.Choice(["keys", "none"]),
        default="keys",
        show_default=True,
        help="none: links without any protection may leave this machine.",
    ),
)
address_options = options_of(
    click.option(
        "--bind", default="tcp://127.0.0.1:*", show_default=True, help="Where to listen; * takes any free port."
    ),
    click.option(
        "--advertise",
        default=None,
        metavar="HOST",
        help="Name or address of this host to tell the others, when it is not the bound one.",
    ),
    *security_options,
)
member_options = options_of(
    click.option(
        "--manager", required=True, metavar="ADDRESS", help="The manager's address, such as tcp://10.0.0.1:5600."
    ),
    click.option("--place", default="", help="Place to take, such as owner-2 or node-0; any free one if not given."),
    runs_option,
    address_options,
)
