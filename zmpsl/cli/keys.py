"""The commands `zmpsl keys ...`: who may take part in runs across machines. Heavy imports are inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zmpsl.cli.options import PATH, errors

if TYPE_CHECKING:
    from zmpsl.keys import KeyRole

__all__ = ["keys"]

ROLES = ("owner", "compute", "aggregator", "manager", "operator")
_folder = click.option(
    "--keys", "folder", type=PATH, default=Path("keys"), show_default=True, help="Folder of this host's keys."
)


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
@_folder
def add(public: Path, place: str, places: int, folder: Path) -> None:
    """Let the holder of NAME.pub take part; on the manager's host, also while the manager runs."""
    from zmpsl.keys import ALLOWED_FILE, Allowed, add_member, read_public

    with errors():
        key = read_public(public)
        add_member(folder, Allowed(name=key.name, role=key.role, public=key.public, place=place, places=places))
        click.echo(f"{folder / ALLOWED_FILE}: {key.name} may take part as {key.role}")


@keys.command("list")
@_folder
def list_(folder: Path) -> None:
    """List who may take part, and the keys of this host."""
    from zmpsl.keys import ALLOWED_FILE, read_allowed, read_public

    with errors():
        for path in sorted(folder.glob("*.pub")):
            key = read_public(path)
            ours = "key pair" if path.with_suffix(".key").exists() else "public  "
            click.echo(f"{ours}  {key.name:<20} {key.role:<11} {key.public}")
        if (folder / ALLOWED_FILE).exists():
            for member in read_allowed(folder / ALLOWED_FILE).members:
                limits = member.place or (f"{member.places} places" if member.places > 1 else "")
                click.echo(f"allowed   {member.name:<20} {member.role:<11} {member.public} {limits}".rstrip())


@keys.command()
@click.argument("name")
@_folder
def revoke(name: str, folder: Path) -> None:
    """Take NAME off the allow-list; a running manager sends it away within a second."""
    from zmpsl.keys import ALLOWED_FILE, revoke_member

    with errors():
        gone = revoke_member(folder, name)
        click.echo(f"{folder / ALLOWED_FILE}: {gone.name} ({gone.role}) may no longer take part")
