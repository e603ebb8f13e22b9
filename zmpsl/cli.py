"""The command line. Everything heavy is imported inside the commands: `zmpsl --help` loads neither torch nor mip.

Exit codes are those of zmpsl.errors: 0 done, 2 job or usage, 3 data, 4 network, 5 joining, 6 a peer was lost,
7 training diverged, 8 checkpoint, 9 and 10 protocol, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from zmpsl import __version__
from zmpsl.cli_doctor import doctor as doctor_command
from zmpsl.cli_keys import keys as keys_commands

if TYPE_CHECKING:
    from zmpsl.job import Job

__all__ = ["main"]

PATH = click.Path(path_type=Path)
EXIT_CODES = (
    "Exit codes: 0 done, 2 job or usage, 3 data, 4 network, 5 joining, 6 a peer was lost, 7 training diverged, "
    "8 checkpoint, 9 and 10 protocol, 130 interrupted, 1 anything else."
)


@contextmanager
def _errors() -> Iterator[None]:
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


def _job(path: Path | None, overrides: tuple[str, ...]) -> Job:
    from zmpsl.job import load_job

    return load_job(path, overrides)


def _with(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_job_options = _with(
    click.argument("job", type=PATH, required=False),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a key of the job, such as train.rounds=5; it must exist.",
    ),
)
_runs_option = click.option(
    "--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder in which the run's folder is made."
)
_security_options = (
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
_address_options = _with(
    click.option(
        "--bind", default="tcp://127.0.0.1:*", show_default=True, help="Where to listen; * takes any free port."
    ),
    click.option(
        "--advertise",
        default=None,
        metavar="HOST",
        help="Name or address of this host to tell the others, when it is not the bound one.",
    ),
    *_security_options,
)
_member_options = _with(
    click.option(
        "--manager", required=True, metavar="ADDRESS", help="The manager's address, such as tcp://10.0.0.1:5600."
    ),
    click.option("--place", default="", help="Place to take, such as owner-2 or node-0; any free one if not given."),
    _runs_option,
    _address_options,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="zmpsl")
def main() -> None:
    """Train one neural network over devices too small to hold it."""


@main.command(epilog=EXIT_CODES)
@_job_options
@_runs_option
@click.option(
    "--name", default=None, help="Name of the run and its folder; made from the job's name and the time if not given."
)
@click.option(
    "--resume", type=PATH, default=None, metavar="RUN_DIR", help="Go on with a run after its last committed round."
)
@click.option("--print-config", is_flag=True, help="Print the full job with all defaults and do nothing else.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def run(
    job: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
    name: str | None,
    resume: Path | None,
    print_config: bool,
    plain: bool,
) -> None:
    """Train JOB (a YAML file; the built-in digits job if not given) with all roles on this machine."""
    from zmpsl.errors import JobError
    from zmpsl.job.load import dump_job

    with _errors():
        if resume is not None:
            if name is not None or job is not None:
                raise JobError("--resume takes job and name from the run's folder; change single keys with --set")
            job, runs, name = resume / "job.yaml", resume.resolve().parent, resume.resolve().name
        settings = _job(job, overrides)
        if print_config:
            click.echo(dump_job(settings), nl=False)
            return
        sys.exit(_run_locally(settings, runs, name, resume is not None, plain))


def _run_locally(settings: Job, runs: Path, name: str | None, resume: bool, plain: bool) -> int:
    from zmpsl.errors import ZmpslError
    from zmpsl.launch.local import run as run_job
    from zmpsl.observe.progress import Progress

    with Progress(sys.stdout, False if plain else None) as progress:
        result = run_job(settings, runs, name, resume=resume, on_event=progress.handle)
    try:
        from zmpsl.observe.report import write_report

        click.echo(f"report: {write_report(result.folder)}")
    except ZmpslError as error:
        click.echo(f"no report: {error}", err=True)
    click.echo(f"run folder: {result.folder}")
    return result.exit_code


@main.command(epilog=EXIT_CODES)
@_job_options
@_runs_option
@click.option("--name", default=None, help="Name of the run and its folder.")
@click.option(
    "--resume", type=PATH, default=None, metavar="RUN_DIR", help="Go on with a run after its last committed round."
)
@_address_options
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
    from zmpsl.checkpoint import read_record
    from zmpsl.keys import security_from
    from zmpsl.launch.process import quiet_signals
    from zmpsl.manager_loop import ManagerNode
    from zmpsl.observe.progress import Progress
    from zmpsl.roles.manager import Manager

    with _errors(), Progress(sys.stdout, None) as progress:
        if resume is not None:
            job, runs, name = resume / "job.yaml", resume.resolve().parent, resume.resolve().name
        settings = _job(job, overrides) if job is not None or overrides else None
        role = Manager(runs, settings, name, read_record(resume) if resume is not None else None)
        role.board.listeners.append(progress.handle)
        node = ManagerNode(role, bind, advertise, security=security_from(keys, security, "manager"))
        click.echo(f"manager at {node.endpoint}")
        _stoppable(node.ask_to_stop, quiet_signals)
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
) -> None:
    import logging

    from zmpsl.keys import security_from
    from zmpsl.launch.process import make_member, quiet_signals
    from zmpsl.loop import Node

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _errors():
        member = make_member(role, runs, place, data_dir)
        member.allowed_code = allow_code
        node = Node(member, manager, bind, advertise, security=security_from(keys, security, role))
        click.echo(f"{role} at {node.endpoint}, manager at {manager}")
        _stoppable(node.ask_to_stop, quiet_signals)
        node.run()
        click.echo(f"{node.member.place}: done")


_allow_code = click.option(
    "--allow-code",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Code outside zmpsl that a job may have this role run.",
)


@main.command(epilog=EXIT_CODES)
@_member_options
@_allow_code
def compute(**options: Any) -> None:
    """Run a compute node: it gets its part of the model from the manager's plan."""
    _member("compute", **options)


@main.command(epilog=EXIT_CODES)
@_member_options
@_allow_code
@click.option("--data-dir", type=PATH, default=None, help="Folder of this owner's data, instead of the job's data.dir.")
def owner(**options: Any) -> None:
    """Run a data owner: data, labels, first and last part stay here."""
    _member("owner", **options)


@main.command(epilog=EXIT_CODES)
@_member_options
def aggregator(**options: Any) -> None:
    """Run the aggregator: it averages the owners' first and last parts."""
    _member("aggregator", **options)


@main.command(epilog=EXIT_CODES)
@_job_options
@click.option("--manager", required=True, metavar="ADDRESS", help="The manager's address.")
@click.option("--watch", is_flag=True, help="Stay and tell of each round until the run is over.")
@_with(*_security_options)
def submit(
    job: Path | None, overrides: tuple[str, ...], manager: str, watch: bool, keys: Path | None, security: str
) -> None:
    """Hand JOB in to a waiting manager."""
    from zmpsl.keys import security_from
    from zmpsl.submit import submit as hand_in

    with _errors():
        protection = security_from(keys, security, "operator")
        hand_in(_job(job, overrides), manager, watch=watch, security=protection, tell=click.echo)


@main.command()
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
    with _errors():
        values = {key: yaml.safe_load(value) for key, _, value in (arg.partition("=") for arg in args)}
        total = 0
        for index, block in enumerate(summarise(Model(name=name, args=values))):
            click.echo(f"{index:4d}  {block.kind:<24} {block.parameters:>12,}")
            total += block.parameters
        click.echo(f"      {'total':<24} {total:>12,}")


@main.command()
@click.argument("run_dir", type=PATH)
def report(run_dir: Path) -> None:
    """Write the HTML report of a run again."""
    from zmpsl.observe.report import write_report
    from zmpsl.observe.timeline import merge

    with _errors():
        if (run_dir / "timeline").is_dir():
            merge(run_dir / "timeline", run_dir / "timeline.json")
        click.echo(write_report(run_dir))


main.add_command(keys_commands)
main.add_command(doctor_command)
