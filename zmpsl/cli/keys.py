"""The commands `zmpsl keys ...`: who may take part in runs across machines. Heavy imports are inside the commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import PATH, errors, options_of

if TYPE_CHECKING:
    from zmpsl.keys import KeyRole

__all__ = ["keys"]

ROLES = ("owner", "compute", "aggregator", "manager", "operator")
_folder = click.option(
    "--keys", "folder", type=PATH, default=Path("keys"), show_default=True, help="Folder of this host's keys."
)


def _rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Reads something per second, above 0; infinite for `none`. Bytes may be a size, such as 5MiB."""
    from zmpsl.errors import JobError
    from zmpsl.keys import MOST_PER_S
    from zmpsl.pool.budget import parse_size

    if value is None or value == "none":
        return None if value is None else math.inf
    try:
        rate = float(value)
    except ValueError:
        try:
            rate = parse_size(value) if param.name == "bytes_per_s" else math.nan
        except JobError as error:
            raise click.BadParameter(str(error)) from error
    if not 0 < rate <= MOST_PER_S:
        raise click.BadParameter(f"{value!r} is no number above 0 and at most {MOST_PER_S:g}; say none for no limit")
    return rate


_limits = options_of(
    click.option("--bytes-per-s", callback=_rate, help="Most bytes per second of an owner to one role, e.g. 5MiB."),
    click.option("--messages-per-s", callback=_rate, help="Most messages per second of an owner to one role."),
)


def _rates(bytes_per_s: float | None, messages_per_s: float | None) -> dict[str, float | None]:
    """Gives what was said of the limits, None where they are lifted."""
    said = {"bytes_per_s": bytes_per_s, "messages_per_s": messages_per_s}
    return {name: None if math.isinf(rate) else rate for name, rate in said.items() if rate is not None}


@click.group()
def keys() -> None:
    """Make keys, and say who may take part; needed for every address that is not loopback."""


@keys.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(ROLES),
    default=None,
    help="The only role this key may take; `manager` and `aggregator` where NAME says so.",
)
@_folder
def new(name: str, role: KeyRole | None, folder: Path) -> None:
    """Make a key pair called NAME on the host that will use it."""
    from zmpsl.keys import MANAGER_FILE, write_pair
    from zmpsl.transport.curve import new_pair

    if role is None and name not in ("manager", "aggregator"):
        raise click.UsageError(f"say what {name} is, with --role: {', '.join(ROLES)}")
    with errors():
        secret, public = write_pair(folder, new_pair(name, role or name))
        click.echo(f"{secret}: secret, stays on this host\n{public}: to give to others")
        if (role or name) == "manager":
            click.echo(f"next: copy {public} as {MANAGER_FILE} into the folder of keys of every other host")
        else:
            click.echo(f"next: copy {public} to the manager's host and say there: zmpsl keys add {public.name}")


@keys.command()
@click.argument("public", type=PATH, metavar="NAME.pub")
@click.option("--place", default="", help="The only place it may take, such as owner-2.")
@click.option("--places", type=click.IntRange(1), default=1, show_default=True, help="How many places it may hold.")
@_limits
@_folder
def add(
    public: Path, place: str, places: int, bytes_per_s: float | None, messages_per_s: float | None, folder: Path
) -> None:
    """Let the holder of NAME.pub take part; on the manager's host, also while the manager runs.

    What an owner may send is the stricter of these limits and the job's (guard.bytes_per_s, guard.messages_per_s).
    """
    from zmpsl.keys import ALLOWED_FILE, Allowed, add_member, read_public

    with errors():
        key = read_public(public)
        rates = _rates(bytes_per_s, messages_per_s)
        member = Allowed(name=key.name, role=key.role, public=key.public, place=place, places=places, **rates)
        add_member(folder, member)
        click.echo(f"{folder / ALLOWED_FILE}: {key.name} may take part as {key.role}")


@keys.command()
@click.argument("name")
@_limits
@_folder
def limit(name: str, bytes_per_s: float | None, messages_per_s: float | None, folder: Path) -> None:
    """Change what NAME, a data owner, may send; `none` for any. Holds within a second, also in a run under way."""
    from zmpsl.keys import ALLOWED_FILE, limit_member
    from zmpsl.plan import Rates

    rates = _rates(bytes_per_s, messages_per_s)
    if not rates:
        raise click.UsageError("say what to change: --bytes-per-s or --messages-per-s, or both")
    with errors():
        member = limit_member(folder, name, **rates)
        now = str(Rates(member.bytes_per_s, member.messages_per_s)) or "as much as the job lets it"
        click.echo(f"{folder / ALLOWED_FILE}: {member.name} may send {now}")


@keys.command("list")
@_folder
def list_(folder: Path) -> None:
    """List who may take part, and the keys of this host."""
    from zmpsl.keys import ALLOWED_FILE, read_allowed, read_public
    from zmpsl.plan import Rates

    with errors():
        for path in sorted(folder.glob("*.pub")):
            key = read_public(path)
            ours = "key pair" if path.with_suffix(".key").exists() else "public  "
            click.echo(f"{ours}  {key.name:<20} {key.role:<11} {key.public}")
        if (folder / ALLOWED_FILE).exists():
            for member in read_allowed(folder / ALLOWED_FILE).members:
                limits = [member.place] if member.place else []
                limits += [f"{member.places} places"] if member.places > 1 else []
                limits += [text] if (text := str(Rates(member.bytes_per_s, member.messages_per_s))) else []
                line = f"allowed   {member.name:<20} {member.role:<11} {member.public} {', '.join(limits)}"
                click.echo(line.rstrip())


@keys.command()
@click.argument("name")
@_folder
def revoke(name: str, folder: Path) -> None:
    """Take NAME off the allow-list; a running manager sends it away within a second."""
    from zmpsl.keys import ALLOWED_FILE, revoke_member

    with errors():
        gone = revoke_member(folder, name)
        click.echo(f"{folder / ALLOWED_FILE}: {gone.name} ({gone.role}) may no longer take part")
