"""One role per process with keys, as docs/security.md shows it, over loopback: the same weights as without."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TINY, cli, job

from zmpsl.checkpoint import read_record
from zmpsl.launch.memory import MemoryRun

SETTINGS = [*TINY, "owners=2", "compute_nodes=1"]


def done(*arguments: str, folder: Path) -> None:
    """Runs a command to its end."""
    with cli(*arguments, folder=folder) as process:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


def test_two_hosts_with_keys(tmp_path: Path):
    """A server with manager, aggregator, node and operator; a hospital with two owners."""
    server, hospital = tmp_path / "server", tmp_path / "hospital"
    server.mkdir()
    hospital.mkdir()
    done("keys", "new", "manager", folder=server)
    for name, role in (("aggregator", "aggregator"), ("node", "compute"), ("chief", "operator")):
        done("keys", "new", name, "--role", role, folder=server)
        done("keys", "add", f"keys/{name}.pub", folder=server)
    done("keys", "new", "hospital", "--role", "owner", folder=hospital)
    shutil.copy(hospital / "keys" / "hospital.pub", server)
    shutil.copy(server / "keys" / "manager.pub", hospital / "keys")
    done("keys", "add", "hospital.pub", "--places", "2", folder=server)

    with contextlib.ExitStack() as stack:
        processes: list[subprocess.Popen[str]] = []

        def start(folder: Path, *arguments: str) -> str:
            process = stack.enter_context(cli(*arguments, "--keys", "keys", folder=folder))
            processes.append(process)
            assert process.stdout is not None
            return process.stdout.readline().strip()

        overrides = [part for setting in SETTINGS for part in ("--set", setting)]
        manager = start(server, "manager", "--name", "safe").removeprefix("manager at ")
        assert manager.startswith("tcp://"), manager
        start(server, "aggregator", "--manager", manager)
        start(server, "compute", "--manager", manager)
        for _ in range(2):
            start(hospital, "owner", "--manager", manager)
        start(server, "submit", "--manager", manager, "--watch", *overrides)
        for process in processes:
            _, err = process.communicate(timeout=90)
            assert process.returncode == 0, (process.args, err)

    alone = MemoryRun(job(*SETTINGS))
    alone.run()
    assert alone.manager.record is not None
    assert read_record(server / "runs" / "safe").committed == alone.manager.record.committed


@pytest.mark.parametrize("role", ["compute", "owner"])
def test_role_without_a_key(tmp_path: Path, role: str):
    """Exit code 2 and the command that makes one."""
    with cli("keys", "new", "manager", folder=tmp_path) as process:
        process.communicate(timeout=60)
    with cli(role, "--manager", "tcp://127.0.0.1:1", "--keys", "keys", folder=tmp_path) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"make one with: zmpsl keys new NAME --role {role} --keys keys" in err
