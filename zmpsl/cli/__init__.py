"""The command line. Everything heavy is imported inside the commands: `zmpsl --help` loads neither torch nor mip.

Exit codes are those of zmpsl.errors: 0 done, 2 job or usage, 3 data, 4 network, 5 joining, 6 a peer was lost,
7 training diverged, 8 checkpoint, 9 and 10 protocol, 130 interrupted, 1 anything else.
"""

from __future__ import annotations

import click

from zmpsl import __version__
from zmpsl.cli import bench, doctor, keys, look, planning, roles, run
from zmpsl.cli.options import EXIT_CODES

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="zmpsl")
def main() -> None:
    """Train one neural network over devices too small to hold it."""


for _command in (
    run.run, run.submit, roles.manager, roles.compute, roles.owner, roles.aggregator, look.models, look.report,
    keys.keys, doctor.doctor, planning.profile, planning.plan, planning.estimate, planning.simulate, bench.bench,
):  # fmt: skip
    main.add_command(_command)
