"""`zmpsl run` and `zmpsl submit`: a whole run on this machine, or a job for a waiting manager."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import (
    EXIT_CODES,
    PATH,
    errors,
    job_options,
    options_of,
    read_job,
    runs_option,
    security_options,
)

if TYPE_CHECKING:
    from zmpsl.job import Job


@click.command(epilog=EXIT_CODES)
@job_options
@runs_option
@click.option(
    "--name", default=None, help="Name of the run and its folder; made from the job's name and the time if not given."
)
@click.option(
    "--resume", type=PATH, default=None, metavar="RUN_DIR", help="Go on with a run after its last committed round."
)
@click.option(
    "--emulate",
    type=PATH,
    default=None,
    metavar="EMULATION",
    help="Imitate the devices and links of this YAML file, hundreds of them if need be.",
)
@click.option("--print-config", is_flag=True, help="Print the full job with all defaults and do nothing else.")
@click.option("--plain", is_flag=True, help="Plain lines instead of the live view.")
def run(
    job: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
    name: str | None,
    resume: Path | None,
    emulate: Path | None,
    print_config: bool,
    plain: bool,
) -> None:
    """Train JOB (a YAML file; the built-in digits job if not given) with all roles on this machine."""
    from zmpsl.errors import JobError
    from zmpsl.job.emulate import emulated
    from zmpsl.job.load import dump_job

    with errors():
        if resume is not None:
            if name is not None or job is not None:
                raise JobError("--resume takes job and name from the run's folder; change single keys with --set")
            job, runs, name = resume / "job.yaml", resume.resolve().parent, resume.resolve().name
        settings = read_job(job, overrides)
        settings = settings if emulate is None else emulated(settings, emulate)
        if print_config:
            click.echo(dump_job(settings), nl=False)
            return
        sys.exit(_run_locally(settings, runs, name, resume is not None, plain))


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM ends the run in order too: without that, it would go on without us."""
    import signal

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_locally(settings: Job, runs: Path, name: str | None, resume: bool, plain: bool) -> int:
    from zmpsl.errors import ZmpslError
    from zmpsl.job.codec import packs
    from zmpsl.kernels import KERNELS, NOT_NATIVE
    from zmpsl.launch.local import run as run_job
    from zmpsl.observe.progress import Progress

    if packs(settings.codec) and not KERNELS.native:
        click.echo(f"warning: {NOT_NATIVE}", err=True)
    with _ended_as_by_ctrl_c(), Progress(sys.stdout, False if plain else None) as progress:
        result = run_job(settings, runs, name, resume=resume, on_event=progress.handle)
    try:
        from zmpsl.observe.report import write_report

        click.echo(f"report: {write_report(result.folder)}")
    except ZmpslError as error:
        click.echo(f"no report: {error}", err=True)
    click.echo(f"run folder: {result.folder}")
    return result.exit_code


@click.command(epilog=EXIT_CODES)
@job_options
@click.option("--manager", required=True, metavar="ADDRESS", help="The manager's address.")
@click.option("--watch", is_flag=True, help="Stay and tell of each round until the run is over.")
@options_of(*security_options)
def submit(
    job: Path | None, overrides: tuple[str, ...], manager: str, watch: bool, keys: Path | None, security: str
) -> None:
    """Hand JOB in to a waiting manager."""
    from zmpsl.keys import security_from
    from zmpsl.submit import submit as hand_in

    with errors():
        protection = security_from(keys, security, "operator")
        hand_in(read_job(job, overrides), manager, watch=watch, security=protection, tell=click.echo)
