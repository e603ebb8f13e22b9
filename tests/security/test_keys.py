"""Key files and the list of who may take part: made, read, refused; and the commands that do it."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from typed import done, zmpsl

from zmpsl.errors import JobError
from zmpsl.keys import (
    Allowed,
    AllowList,
    PublicKey,
    Security,
    add_member,
    find_key,
    read_allowed,
    read_public,
    read_secret,
    revoke_member,
    security_from,
    write_pair,
)  # fmt: skip
from zmpsl.transport.address import check_address
from zmpsl.transport.curve import check_pair, new_pair

# -- files -------------------------------------------------------------------------------------------------------------


def test_pair_is_written_and_read(tmp_path: Path):
    pair = new_pair("pi-1", "owner")
    secret, public = write_pair(tmp_path / "keys", pair)
    assert read_secret(secret) == pair
    assert read_public(public) == PublicKey(name="pi-1", role="owner", public=pair.public)
    assert pair.secret not in public.read_text()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    check_pair(Security(key=pair))


def test_the_secret_is_not_shown(tmp_path: Path):
    pair = new_pair("pi-1", "owner")
    assert pair.secret not in f"{pair} {pair!r} {Security(key=pair)!r}"
    path, _ = write_pair(tmp_path, pair)
    path.write_text(path.read_text().replace("role: owner", "role: planner"))
    with pytest.raises(JobError, match="is no SecretKey file") as caught:
        read_secret(path)
    assert pair.secret not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_secret_that_others_may_read(tmp_path: Path, mode: int):
    path, _ = write_pair(tmp_path, new_pair("pi-1", "owner"))
    path.chmod(mode)
    with pytest.raises(JobError, match=rf"has mode {mode:04o}.*chmod 600 {path}"):
        read_secret(path)


def test_mode_does_not_depend_on_the_umask(tmp_path: Path):
    before = os.umask(0)
    try:
        path, _ = write_pair(tmp_path, new_pair("pi-1", "owner"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_existing_key_is_not_overwritten(tmp_path: Path):
    pair = new_pair("pi-1", "owner")
    path, _ = write_pair(tmp_path, pair)
    with pytest.raises(JobError, match="is there already"):
        write_pair(tmp_path, new_pair("pi-1", "owner"))
    assert read_secret(path) == pair


@pytest.mark.parametrize("name", ["", "../pi", "a/b", ".hidden", "x" * 64, "a b", "-x"])
def test_name_that_is_no_file_name(name: str):
    with pytest.raises(JobError, match="cannot be the name of a key"):
        new_pair(name, "owner")


@pytest.mark.parametrize(
    "text",
    [
        "", "members", "members: {}", "members: [1]", "members: [{name: a}]", "memberz: []", "members: [\n", "\x00",
        "members: [{name: a, role: owner, public: 12}]", "members: [{name: a, role: king, public: '" + "0" * 64 + "'}]",
        "members: [{name: a, role: owner, public: '" + "0" * 63 + "'}]",
        "!!python/object/apply:os.system [exit]",
    ],
)  # fmt: skip
def test_list_that_is_none(tmp_path: Path, text: str):
    (tmp_path / "allowed.yaml").write_text(text)
    if text == "":
        assert read_allowed(tmp_path / "allowed.yaml") == AllowList()
        return
    with pytest.raises(JobError, match=r"allowed\.yaml is no AllowList file"):
        read_allowed(tmp_path / "allowed.yaml")


def test_list_with_a_key_twice(tmp_path: Path):
    one = f"role: owner, public: '{'a' * 64}'"
    (tmp_path / "allowed.yaml").write_text(f"members: [{{name: a, {one}}}, {{name: b, {one}}}]")
    with pytest.raises(JobError, match=r"public a+ is there twice"):
        read_allowed(tmp_path / "allowed.yaml")


def test_many_add_at_once(tmp_path: Path):
    """None is lost."""
    pairs = [new_pair(f"pi-{number}", "owner") for number in range(20)]

    def add(number: int) -> None:
        add_member(tmp_path, Allowed(name=pairs[number].name, role="owner", public=pairs[number].public))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.name for each in read_allowed(tmp_path / "allowed.yaml").members} == {pair.name for pair in pairs}
    assert revoke_member(tmp_path, "pi-7").public == pairs[7].public
    assert len(read_allowed(tmp_path / "allowed.yaml").members) == 19
    with pytest.raises(JobError, match="does not have 'pi-7'"):
        revoke_member(tmp_path, "pi-7")


def test_key_for_a_role_is_found(tmp_path: Path):
    """In a folder by its role; where there are several, or none, the message says what to do."""
    owner = new_pair("pi-1", "owner")
    write_pair(tmp_path, owner)
    write_pair(tmp_path, new_pair("rack", "compute"))
    assert find_key(tmp_path, ("owner",)) == owner
    assert find_key(tmp_path / "pi-1.key", ("owner",)) == owner
    with pytest.raises(JobError, match="none for role aggregator; make one with: zmpsl keys new NAME --role aggr"):
        find_key(tmp_path, ("aggregator",))
    write_pair(tmp_path, new_pair("pi-2", "owner"))
    with pytest.raises(JobError, match=r"more than one key for role owner; say which with --keys: .*pi-1\.key, .*pi-2"):
        find_key(tmp_path, ("owner",))


def test_what_a_folder_lacks(tmp_path: Path):
    write_pair(tmp_path, new_pair("pi-1", "owner"))
    write_pair(tmp_path, new_pair("boss", "manager"))
    with pytest.raises(JobError, match=r"manager\.pub is not there; copy it"):
        security_from(tmp_path, "keys", "owner")
    with pytest.raises(JobError, match=r"allowed\.yaml is not there, so nobody could join"):
        security_from(tmp_path, "keys", "manager")
    (tmp_path / "manager.pub").write_bytes((tmp_path / "pi-1.pub").read_bytes())
    with pytest.raises(JobError, match="is the key of pi-1, role owner, and not a manager's"):
        security_from(tmp_path, "keys", "owner")
    (tmp_path / "manager.pub").write_bytes((tmp_path / "boss.pub").read_bytes())
    assert security_from(tmp_path, "keys", "operator").manager == read_public(tmp_path / "boss.pub").public
    with pytest.raises(JobError, match="contradict each other"):
        security_from(tmp_path, "none", "owner")


# -- what needs keys ---------------------------------------------------------------------------------------------------


def test_addresses_that_need_keys():
    key = Security(key=new_pair("pi-1", "owner"), manager="0" * 64)
    for security, passes in ((Security(), False), (key, True), (Security(open=True), True)):
        check_address("tcp://127.0.0.1:5600", security.may_leave)
        if passes:
            check_address("tcp://10.0.0.1:5600", security.may_leave)
        else:
            with pytest.raises(JobError, match="zmpsl keys new NAME"):
                check_address("tcp://10.0.0.1:5600", security.may_leave)


@pytest.mark.parametrize(
    "words",
    [
        ["manager", "--bind", "tcp://0.0.0.0:*"],
        ["compute", "--manager", "tcp://10.1.2.3:5600"],
        ["submit", "--manager", "tcp://10.1.2.3:5600"],
        ["owner", "--manager", "tcp://127.0.0.1:5600", "--bind", "tcp://0.0.0.0:*"],
    ],
)
def test_commands_without_keys_across_machines(tmp_path: Path, words: list[str]):
    """Exit code 2, and the commands that help."""
    result = zmpsl(*words, folder=tmp_path)
    assert result.exit_code == 2
    assert "zmpsl keys new NAME --role ROLE" in result.output
    assert "--security none" in result.output


# -- commands ----------------------------------------------------------------------------------------------------------


def test_worked_example(tmp_path: Path):
    """As in docs/security.md: two hosts, two folders."""
    server, hospital = tmp_path / "server", tmp_path / "hospital"
    server.mkdir()
    hospital.mkdir()
    assert "copy keys/manager.pub as manager.pub" in done("keys", "new", "manager", folder=server)
    said = done("keys", "new", "hospital", "--role", "owner", folder=hospital)
    assert "zmpsl keys add hospital.pub" in said
    (server / "hospital.pub").write_bytes((hospital / "keys" / "hospital.pub").read_bytes())
    (hospital / "keys" / "manager.pub").write_bytes((server / "keys" / "manager.pub").read_bytes())
    done("keys", "add", "hospital.pub", "--place", "owner-0", folder=server)
    listed = done("keys", "list", folder=server)
    public = read_public(server / "hospital.pub").public
    assert f"allowed   hospital             owner       {public} owner-0" in listed
    assert "key pair  manager" in listed
    assert security_from(hospital / "keys", "keys", "owner").key is not None
    assert security_from(server / "keys", "keys", "manager").allowed == server / "keys" / "allowed.yaml"
    done("keys", "revoke", "hospital", folder=server)
    assert "allowed " not in done("keys", "list", folder=server)


def test_commands_that_cannot_be_done(tmp_path: Path):
    assert "say what pi is, with --role" in zmpsl("keys", "new", "pi", folder=tmp_path).output
    assert zmpsl("keys", "new", "pi", folder=tmp_path).exit_code == 2
    assert zmpsl("keys", "revoke", "pi", folder=tmp_path).exit_code == 2
    assert "cannot read nobody.pub" in zmpsl("keys", "add", "nobody.pub", folder=tmp_path).output
    done("keys", "new", "pi", "--role", "owner", folder=tmp_path)
    done("keys", "add", "keys/pi.pub", folder=tmp_path)
    again = zmpsl("keys", "add", "keys/pi.pub", folder=tmp_path)
    assert again.exit_code == 2
    assert "take it off first with: zmpsl keys revoke pi" in again.output
