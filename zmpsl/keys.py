"""Keys of roles and the list of who may take part: small files, checked when read, written whole or not at all.

A folder of keys is all a host needs. On the manager's host it holds `manager.key` and `allowed.yaml`, on a member's
host `NAME.key` and a copy of `manager.pub`. A `.key` file is secret and never leaves its host; a `.pub` file is what
others may know. Keys are Curve25519 (ZeroMQ's CURVE), 32 bytes, written as 64 hexadecimal digits.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from zmpsl.errors import JobError
from zmpsl.whole_file import replacing

__all__ = [
    "ALLOWED_FILE", "KEY_ROLES", "LOOPBACK", "MANAGER_FILE", "MOST_PER_S", "Allowed", "AllowList", "KeyRole",
    "PublicKey", "SecretKey", "Security", "add_member", "find_key", "limit_member", "read_allowed", "read_public",
    "read_secret", "revoke_member", "security_from", "write_pair",
]  # fmt: skip

KeyRole = Literal["owner", "compute", "aggregator", "manager", "operator"]
KEY_ROLES: tuple[KeyRole, ...] = ("owner", "compute", "aggregator", "manager", "operator")
ALLOWED_FILE = "allowed.yaml"
MANAGER_FILE = "manager.pub"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
MOST_PER_S = 1e18
Rate = Annotated[float, Meta(gt=0, le=MOST_PER_S)]
SECRET_MODE = 0o600


class PublicKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What others may know of a key: whose it is, for which role, and the public half."""

    name: Name
    role: KeyRole
    public: Hex


class SecretKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key pair. Its text form leaves the secret half out."""

    name: Name
    role: KeyRole
    public: Hex
    secret: Hex

    def __repr__(self) -> str:
        return f"SecretKey({self.name}, {self.role}, {self.public[:8]}...)"

    @property
    def shared(self) -> PublicKey:
        """The half that others may know."""
        return PublicKey(name=self.name, role=self.role, public=self.public)


class Allowed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of the allow-list.

    Attributes:
        name: Whose key it is.
        role: The only role it may take; an operator submits jobs and watches.
        public: The public key.
        place: The only place it may take, any of its role when empty.
        places: How many places it may hold at a time.
        bytes_per_s: Most bytes per second that an owner with this key sends to one role; None for any.
        messages_per_s: Most messages per second, the same.
    """

    name: Name
    role: KeyRole
    public: Hex
    place: Annotated[str, Meta(max_length=64)] = ""
    places: Annotated[int, Meta(ge=1, le=65535)] = 1
    bytes_per_s: Rate | None = None
    messages_per_s: Rate | None = None


class AllowList(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may take part, as the manager's host keeps it."""

    members: tuple[Allowed, ...] = ()

    def by_key(self) -> dict[str, Allowed]:
        """Gives the lines by public key."""
        return {member.public: member for member in self.members}


class Security(Struct, frozen=True, kw_only=True):
    """How a role protects its links.

    Attributes:
        key: Our own key pair; None for links without protection.
        manager: The manager's public key, for members.
        allowed: The allow-list, for the manager.
        open: Links without protection may leave this machine; somebody said so aloud.
    """

    key: SecretKey | None = None
    manager: str = ""
    allowed: Path | None = None
    open: bool = False

    @property
    def may_leave(self) -> bool:
        """Tells whether addresses that other hosts can reach may be used."""
        return self.open or self.key is not None


LOOPBACK = Security()

Kind = TypeVar("Kind", SecretKey, PublicKey, AllowList)


def read_secret(path: Path) -> SecretKey:
    """Reads a key pair.

    Raises:
        JobError: There is none, it is damaged, or others than its owner may read the file.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise JobError(f"cannot read the key {path}: {error.strerror}; make one with: zmpsl keys new NAME") from error
    if mode & 0o077:
        raise JobError(
            f"{path} holds a secret and has mode {mode:04o}, so others on this host may use it; say: chmod 600 {path}"
        )
    return _read(path, SecretKey)


def read_public(path: Path) -> PublicKey:
    """Reads a public key file.

    Raises:
        JobError: There is none, or it is damaged.
    """
    return _read(path, PublicKey)


def read_allowed(path: Path) -> AllowList:
    """Reads an allow-list.

    Raises:
        JobError: There is none, it is damaged, names or keys are in it twice, or one has limits that its role cannot.
    """
    listed = _read(path, AllowList)
    for member in listed.members:
        _check_limits(member, path)
    for what in ("name", "public"):
        values = [getattr(member, what) for member in listed.members]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise JobError(f"{path}: {what} {twice[0]} is there twice; take one of them out")
    return listed


def write_pair(folder: Path, pair: SecretKey) -> tuple[Path, Path]:
    """Writes the two files of a new key pair; gives their paths.

    Raises:
        JobError: There is a key of that name already, or the folder cannot be written.
    """
    secret, public = folder / f"{pair.name}.key", folder / f"{pair.name}.pub"
    if secret.exists() or public.exists():
        raise JobError(f"{secret if secret.exists() else public} is there already; choose another name or delete it")
    note = f"Secret key of {pair.name} ({pair.role}). It never leaves this host; give others {public.name}."
    _write(secret, note, pair, SECRET_MODE)
    _write(public, f"Public key of {pair.name} ({pair.role}).", pair.shared, 0o644)
    return secret, public


def add_member(folder: Path, member: Allowed) -> None:
    """Puts a key on the allow-list of a folder.

    Raises:
        JobError: The name or key is on it already, its role can have no such limits, or it cannot be written.
    """
    path = folder / ALLOWED_FILE
    _check_limits(member, path)
    with _locked(folder):
        before = read_allowed(path) if path.exists() else AllowList()
        for each in before.members:
            if each.name == member.name or each.public == member.public:
                raise JobError(
                    f"{path} has {each.name} ({each.role}, {each.public[:8]}...) already; "
                    f"take it off first with: zmpsl keys revoke {each.name}"
                )
        _write_list(path, AllowList(members=(*before.members, member)))


def revoke_member(folder: Path, name: str) -> Allowed:
    """Takes a key off the allow-list of a folder; a running manager sees it within a second.

    Raises:
        JobError: It is not on it.
    """
    path = folder / ALLOWED_FILE
    with _locked(folder):
        before = read_allowed(path)
        gone = _named(before, name, path)
        _write_list(path, AllowList(members=tuple(each for each in before.members if each is not gone)))
    return gone


def limit_member(folder: Path, name: str, **rates: float | None) -> Allowed:
    """Changes what an owner's key may send; a running manager sees it within a second.

    Args:
        folder: Of keys.
        name: Whose key.
        rates: `bytes_per_s`, `messages_per_s` or both; None for any.

    Raises:
        JobError: It is not on the list, or of another role.
    """
    path = folder / ALLOWED_FILE
    with _locked(folder):
        before = read_allowed(path)
        old = _named(before, name, path)
        new = msgspec.structs.replace(old, **rates)
        _check_limits(new, path)
        _write_list(path, AllowList(members=tuple(new if each is old else each for each in before.members)))
    return new


def find_key(where: Path, roles: tuple[KeyRole, ...]) -> SecretKey:
    """Finds the key for a role: the file itself, or the only one of these roles in a folder.

    Raises:
        JobError: There is none, or more than one.
    """
    if not where.is_dir():
        return read_secret(where)
    found = {path: read_secret(path) for path in sorted(where.glob("*.key"))}
    fitting = [path for path, key in found.items() if key.role in roles]
    if len(fitting) == 1:
        return found[fitting[0]]
    if fitting:
        names = ", ".join(str(path) for path in fitting)
        raise JobError(f"{where} has more than one key for role {roles[0]}; say which with --keys: {names}")
    have = ", ".join(f"{path.name} ({key.role})" for path, key in found.items()) or "no key at all"
    raise JobError(
        f"{where} has {have}, none for role {roles[0]}; make one with: "
        f"zmpsl keys new NAME --role {roles[0]} --keys {where}"
    )


def security_from(keys: Path | None, said: str, role: KeyRole) -> Security:
    """Gives how a role protects its links, from what was said on the command line.

    Args:
        keys: Folder of keys, or one key file in it.
        said: `keys`, or `none` for links without protection.
        role: The role; whoever submits is an `operator` or an `owner`.

    Raises:
        JobError: Both were said, or the folder lacks something.
    """
    if said == "none":
        if keys is not None:
            raise JobError("--keys and --security none contradict each other; leave one out")
        return Security(open=True)
    if keys is None:
        return LOOPBACK
    key = find_key(keys, ("operator", "owner") if role == "operator" else (role,))
    folder = keys if keys.is_dir() else keys.parent
    if role == "manager":
        path = folder / ALLOWED_FILE
        if not path.exists():
            raise JobError(f"{path} is not there, so nobody could join; say: zmpsl keys add NAME.pub --keys {folder}")
        read_allowed(path)
        return Security(key=key, allowed=path)
    path = folder / MANAGER_FILE
    if not path.exists():
        raise JobError(f"{path} is not there; copy it from the folder of keys on the manager's host")
    manager = read_public(path)
    if manager.role != "manager":
        raise JobError(f"{path} is the key of {manager.name}, role {manager.role}, and not a manager's")
    return Security(key=key, manager=manager.public)


def _named(listed: AllowList, name: str, path: Path) -> Allowed:
    for each in listed.members:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in listed.members) or "nobody"
    raise JobError(f"{path} does not have {name!r}; it has {names}")


def _check_limits(member: Allowed, path: Path) -> None:
    if member.role != "owner" and not (member.bytes_per_s is None and member.messages_per_s is None):
        raise JobError(
            f"{path}: {member.name} is for role {member.role}; bytes_per_s and messages_per_s are limits of what data"
            " owners send, others have none"
        )


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        return msgspec.convert(value if value is not None else {}, kind)
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        # Of other files not the parser's own text: it may quote a secret.
        where, text = getattr(error, "problem_mark", None), str(error)
        detail = f"line {where.line + 1}" if where is not None else text if kind is AllowList else text.split(" - ")[-1]
        raise JobError(f"{path} is no {kind.__name__} file ({detail[:200]}); make it again with: zmpsl keys") from None


def _write_list(path: Path, listed: AllowList) -> None:
    note = "Who may take part. Written by `zmpsl keys add` and `revoke`; a running manager reads it again by itself."
    _write(path, note, listed, 0o644)


def _write(path: Path, note: str, value: Struct, mode: int) -> None:
    """Replaces a file in one step."""
    text = f"# {note}\n" + yaml.safe_dump(msgspec.to_builtins(value), sort_keys=False)
    try:
        with replacing(path, mode) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JobError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps two commands from changing the list at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise JobError(f"cannot use the folder {folder}: {error.strerror}") from error
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)
