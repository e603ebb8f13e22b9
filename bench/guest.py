"""Runs a command in a Linux of its own, where cgroups may be made though this host has none to give.

    python bench/guest.py --memory 16GiB python bench/pool.py --cgroup /run/cgroup --total 10GiB ...

User-mode Linux (Debian's package user-mode-linux) is a kernel that runs as a process; what runs under it runs on this
processor as it is. The guest sees this host's files; it has one processor, a loopback of its own, and cgroups of
version 2 in /run/cgroup. Page faults and system calls take many times as long, so this is for what is counted, not for
what is timed. It needs no rights, but a host that allows a mapping for each page of the guest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import click

from zmpsl.pool.budget import parse_size

__all__ = ["why_not"]

KERNEL = "linux.uml"
MAPPINGS = Path("/proc/sys/vm/max_map_count")
PAGE_BYTES = 4096

FIRST_PROCESS = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir /run/cgroup
mount -t cgroup2 cgroup /run/cgroup
ip link set lo up
stty -opost
ulimit -n 65536
cd {folder}
env -i {environment} {command}
echo $? > {answer}
sync
halt -f > /dev/null 2>&1
"""


def why_not(memory: int) -> str:
    """Tells what this host lacks for a guest with so many bytes; empty if nothing."""
    if shutil.which(KERNEL) is None:
        return f"there is no {KERNEL} here; on Debian: apt-get install user-mode-linux"
    allowed, pages = int(MAPPINGS.read_text()), memory // PAGE_BYTES
    if allowed < pages:
        return (
            f"this host allows {allowed} mappings per process, a guest of {memory} bytes may need {pages};"
            f" allow them for as long as it runs: sysctl -w vm.max_map_count={pages}"
        )
    return ""


def first_process(folder: Path, command: tuple[str, ...]) -> Path:
    """Writes what the guest is to run, and gives its place."""
    path = folder / "init"
    environment = {**os.environ, "HOME": str(Path.home())}
    text = FIRST_PROCESS.format(
        folder=shlex.quote(str(Path.cwd())),
        environment=" ".join(shlex.quote(f"{name}={value}") for name, value in environment.items()),
        command=shlex.join(command),
        answer=shlex.quote(str(folder / "answer")),
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(0o700)
    return path


def run(folder: Path, memory: int, command: tuple[str, ...], timeout_s: float) -> int:
    """Runs a command, its output being ours, and gives its exit code; 124 if it had to be ended."""
    out = os.dup(sys.stdout.fileno())
    options = [
        f"mem={memory >> 10}K", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "loglevel=0",
        f"init={first_process(folder, command)}", "con=null", f"con0=null,fd:{out}",
    ]  # fmt: skip
    with (folder / "kernel").open("wb") as log:
        guest = subprocess.Popen(
            [KERNEL, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[out], start_new_session=True
        )
    try:
        guest.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return 124
    finally:
        with suppress(ProcessLookupError):  # it has several processes on this host
            os.killpg(guest.pid, signal.SIGKILL)
        guest.wait()
    answer = folder / "answer"
    if not answer.exists():
        raise click.ClickException(f"the guest ended early: {(folder / 'kernel').read_text(errors='replace')[-500:]}")
    return int(answer.read_text())


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--memory", default="2GiB", show_default=True, help="The guest's, which this host must have.")
@click.option("--timeout-s", default=3600, show_default=True, help="Then the guest is ended.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def main(memory: str, timeout_s: int, command: tuple[str, ...]) -> None:
    """Runs COMMAND in a guest."""
    nbytes = parse_size(memory)
    if (reason := why_not(nbytes)) != "":
        raise click.ClickException(reason)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(run(Path(folder), nbytes, command, timeout_s))


if __name__ == "__main__":
    main()
