"""`zmpsl doctor`: finds what would make a run fail, says what to do, and gives exit code 1 then."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from helpers import job

from zmpsl.cli import main
from zmpsl.doctor import Finding, examine
from zmpsl.keys import Allowed, add_member, security_from, write_pair
from zmpsl.loops.manager import ManagerNode
from zmpsl.roles.manager import Manager
from zmpsl.transport.curve import new_pair


def findings(folder: Path, *, wanted: str = "", **given: object) -> list[Finding]:
    """What the doctor finds of things whose name begins with `wanted`."""
    form: dict[str, object] = {"job": None, "hosts": (), "binds": (), "keys": None, "runs": folder / "runs"}
    return [each for each in examine(**(form | given)) if each.what.startswith(wanted)]  # type: ignore[arg-type]


def test_this_host_is_well(tmp_path: Path):
    """Nothing is wrong, and every kind of thing was looked at."""
    found = findings(tmp_path, job=job())
    assert [each for each in found if each.level == "error"] == []
    looked_at = {each.what.split()[0] for each in found}
    assert looked_at >= {"Python", "ZeroMQ", "PyTorch", "memory", "open", "disk", "clock", "data", "port"}
    assert all(bool(each.fix) == (each.level != "ok") for each in found)
    assert not (tmp_path / "runs").exists()


def test_exit_code_and_table(tmp_path: Path):
    well = CliRunner().invoke(main, ["doctor", "--runs", str(tmp_path)])
    assert well.exit_code == 0, well.output
    (tmp_path / "job.yaml").write_text("owners: many\n")
    ill = CliRunner().invoke(main, ["doctor", str(tmp_path / "job.yaml"), "--runs", str(tmp_path)])
    assert ill.exit_code == 1
    assert "wrong" in ill.output
    assert "docs/job.md" in ill.output


def test_taken_port_and_address_without_keys(tmp_path: Path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        taken = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        first, second = findings(tmp_path, wanted="port", binds=(taken, "tcp://0.0.0.0:*"))
    assert first.level == second.level == "error"
    assert "Address already in use" in first.text
    assert "zmpsl keys new" in second.text


def test_missing_data(tmp_path: Path):
    (found,) = findings(tmp_path, wanted="data", job=job("data.name=mnist", f"data.dir={tmp_path / 'nowhere'}"))
    assert found.level == "error"
    assert "nowhere" in found.text
    (own,) = findings(tmp_path, wanted="data", job=job("data.name=no_such_module:cells"))
    assert own.level == "ok"  # code of a job is not run to look at it


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    (found,) = findings(tmp_path, wanted="disk")
    assert (found.level, found.fix) == ("error", "choose another folder with --runs")


def test_too_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    (found,) = findings(tmp_path, wanted="open files", job=job("owners=100"))
    assert found.level == "error"
    assert found.fix.startswith("ulimit -n")


@pytest.mark.parametrize(
    ("off_s", "text", "fix"),
    [
        (-30 * 365 * 86_400, "before zmpsl was installed", "set the clock (timedatectl)"),
        (3600, "the file server's is -3600 s away", "let both ask a time server"),
    ],
)
def test_a_clock_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float, text: str, fix: str):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + off_s)
    (found,) = findings(tmp_path, wanted="clock")
    assert (found.level, found.fix) == ("warning", fix)
    assert text in found.text


def test_little_memory_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the container allows counts, not what the host has."""
    monkeypatch.setattr("zmpsl.doctor._cgroup", lambda: (1 << 30, 700 << 20))
    (found,) = findings(tmp_path, wanted="memory")
    assert found.level == "warning"
    assert found.text == "0.3 GiB free of 1.0 (the container's limit)"
    assert "give the container more" in found.fix


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 29))
    (found,) = findings(tmp_path, wanted="disk")
    assert (found.level, found.fix) == ("warning", "make room, or choose another folder with --runs")
    assert found.text.startswith("0.5 GiB free")


def test_keys_that_are_not_in_order(tmp_path: Path):
    """A mode that is too wide, a missing manager.pub, an empty list."""
    folder = tmp_path / "keys"
    (empty,) = findings(tmp_path, wanted="keys", keys=folder)
    assert empty.level == "error"
    path, _ = write_pair(folder, new_pair("pi", "owner"))
    path.chmod(0o644)
    assert "chmod 600" in findings(tmp_path, wanted="key pi.key", keys=folder)[0].fix
    assert findings(tmp_path, wanted="manager.pub", keys=folder)[0].level == "error"
    path.chmod(0o600)
    write_pair(folder, new_pair("manager", "manager"))
    assert findings(tmp_path, wanted="key pi.key", keys=folder)[0].level == "ok"
    assert findings(tmp_path, wanted="manager.pub", keys=folder)[0].level == "ok"
    assert findings(tmp_path, wanted="allowed.yaml", keys=folder)[0].level == "error"
    add_member(folder, Allowed(name="pi", role="owner", public=security_from(folder, "keys", "owner").key.public))
    assert findings(tmp_path, wanted="allowed.yaml", keys=folder)[0].text == "1 may take part"


def test_way_to_a_manager(tmp_path: Path):
    """Round trip and rate; without keys, with keys, and with a key the manager does not know."""
    with ManagerNode(Manager()) as plain:
        (found,) = findings(tmp_path, wanted="manager", hosts=(plain.endpoint,))
        assert found.level == "ok"
        assert "round trip" in found.text
        assert "Mbit/s" in found.text
    folder = tmp_path / "keys"
    write_pair(folder, new_pair("manager", "manager"))
    for name in ("pi", "stranger"):
        write_pair(folder, new_pair(name, "owner"))
    known = security_from(folder / "pi.key", "keys", "owner").key
    add_member(folder, Allowed(name="pi", role="owner", public=known.public))
    with ManagerNode(Manager(), security=security_from(folder, "keys", "manager")) as protected:
        host = protected.endpoint
        by_name = {each.what: each for each in findings(tmp_path, wanted=f"manager {host}", hosts=(host,), keys=folder)}
        assert by_name[f"manager {host} as pi"].level == "ok"
        assert "the key was refused" in by_name[f"manager {host} as stranger"].text
        (without,) = findings(tmp_path, wanted=f"manager {host}", hosts=(host,))
        assert "one side uses keys and the other does not" in without.text
