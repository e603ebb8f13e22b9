"""Looks at this host before a run: versions, keys, ports, memory, disk, clock, data, and the way to a manager.

Every finding says what was found and, where something is wrong, what to do. Nothing is changed; torch is not loaded.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import zmq

from zmpsl.errors import NetworkError, ZmpslError
from zmpsl.job import Job
from zmpsl.kernels import KERNELS
from zmpsl.keys import (
    ALLOWED_FILE,
    LOOPBACK,
    MANAGER_FILE,
    SecretKey,
    Security,
    read_allowed,
    read_public,
    read_secret,
)
from zmpsl.messages import Probe, Probed
from zmpsl.transport.address import check_address
from zmpsl.transport.control import ControlClient
from zmpsl.transport.curve import check_pair
from zmpsl.transport.sockets import bind as bind_socket

__all__ = ["Finding", "examine"]

Level = Literal["ok", "warning", "error"]
GIB = 1 << 30
PROBE_BYTES = 1 << 20
REACH_S = 5.0
PYTHON, PYZMQ, LIBZMQ = (3, 11), (26, 4), (4, 3, 5)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `error` where a run will fail, `warning` where it may.
        what: The thing.
        text: How it is.
        fix: What to do, empty where nothing is wrong.
    """

    level: Level
    what: str
    text: str
    fix: str = ""


def examine(
    job: Job | None, hosts: tuple[str, ...], binds: tuple[str, ...], keys: Path | None, runs: Path
) -> Iterator[Finding]:
    """Looks at everything.

    Args:
        job: The job that shall be run, if it is known.
        hosts: Addresses of managers to talk to.
        binds: Addresses that a role shall listen on.
        keys: Folder of this host's keys, or one key file.
        runs: Folder in which runs are kept.

    Yields:
        Findings, as they are made.
    """
    yield from _versions()
    yield from _memory()
    yield _files(job)
    yield _disk(runs)
    yield _clock(runs)
    if job is not None:
        yield _data(job)
    pairs: list[SecretKey] = []
    if keys is not None:
        yield from _keys(keys, pairs)
    for address in binds or ("tcp://127.0.0.1:*",):
        yield _port(address, bool(pairs))
    for host in hosts:
        yield from _host(host, keys, pairs)


def _versions() -> Iterator[Finding]:
    """Python, libraries, and the compiled codecs."""
    python = Finding("ok", "Python", platform.python_version())
    if sys.version_info < PYTHON:
        python = Finding("error", "Python", platform.python_version(), "install Python 3.11 or newer")
    yield python
    text = f"pyzmq {zmq.pyzmq_version()}, libzmq {zmq.zmq_version()}"
    if not zmq.has("curve"):
        yield Finding("error", "ZeroMQ", f"{text}, built without CURVE", "pip install --force-reinstall pyzmq")
    elif zmq.pyzmq_version_info()[:2] < PYZMQ or zmq.zmq_version_info() < LIBZMQ:
        yield Finding("error", "ZeroMQ", text, "pip install --upgrade 'pyzmq>=26.4'")
    else:
        yield Finding("ok", "ZeroMQ", text)
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        fix = "pip install 'zmpsl[train]', if an owner or a compute node shall run here"
        yield Finding("warning", "PyTorch", "not installed", fix)
    else:
        cuda = any((each.name or "").startswith("nvidia-cu") for each in metadata.distributions())
        if cuda and platform.machine() in ("aarch64", "arm64"):
            fix = "take the CPU build from PyTorch's own index: gigabytes less"
            yield Finding("warning", "PyTorch", f"{torch} with CUDA on {platform.machine()}", fix)
        else:
            yield Finding("ok", "PyTorch", torch)
    if KERNELS.native:
        yield Finding("ok", "C kernels", f"built, {KERNELS.isa}")
    elif find_spec("zmpsl._codecs") is None:
        yield Finding("warning", "C kernels", "not built: codecs run in NumPy", "install a C compiler, and zmpsl again")
    else:
        fix = "unset ZMPSL_NO_EXT if it is set; else install zmpsl again"
        yield Finding("warning", "C kernels", "built, but not used: codecs run in NumPy", fix)


def _memory() -> Iterator[Finding]:
    """What is free, and what the container allows."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
    free, total = sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)
    limit, used = _cgroup()
    if limit and (not total or limit < total):
        free, total = min(free or limit, max(0, limit - used)), limit
    if not total:
        yield Finding("warning", "memory", "this system does not tell", "look at it yourself")
        return
    text = f"{free / GIB:.1f} GiB free of {total / GIB:.1f}" + (" (the container's limit)" if total == limit else "")
    low = free < GIB // 2
    fix = "close other programs, or give the container more: PyTorch alone takes about 0.3 GiB"
    yield Finding("warning" if low else "ok", "memory", text, fix if low else "")


def _cgroup() -> tuple[int, int]:
    """Gives limit and use of this process's container, version 2 or 1 of cgroups; 0 where there is no limit."""
    root = Path("/sys/fs/cgroup")
    for limit, used in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory/memory.limit_in_bytes", root / "memory/memory.usage_in_bytes"),
    ):
        try:
            return int(limit.read_text()), int(used.read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return 0, 0


def _files(job: Job | None) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 256 + 4 * (job.owners + job.nodes if job is not None else 16)
    if soft < needed:
        return Finding("error", "open files", f"at most {soft}, {needed} are needed", f"ulimit -n {max(needed, 4096)}")
    return Finding("ok", "open files", f"at most {soft}")


def _disk(runs: Path) -> Finding:
    """Room and right to write where runs are kept."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB free for {runs}"
    if not os.access(there, os.W_OK):
        return Finding("error", "disk", f"{there} is not writable", "choose another folder with --runs")
    if free < GIB:
        return Finding("warning", "disk", text, "make room, or choose another folder with --runs")
    return Finding("ok", "disk", text)


def _clock(runs: Path) -> Finding:
    """The clock against the file system's; results do not depend on it, but names and timelines do."""
    there = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < (Path(__file__).stat().st_mtime - 86400):
        return Finding("warning", "clock", f"{text}, before zmpsl was installed", "set the clock (timedatectl)")
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            skew = Path(file.name).stat().st_mtime - time.time()
    except OSError:
        return Finding("ok", "clock", text)
    if abs(skew) > 5:
        return Finding(
            "warning", "clock", f"{text}; the file server's is {skew:+.0f} s away", "let both ask a time server"
        )
    return Finding("ok", "clock", text)


def _data(job: Job) -> Finding:
    """Whether the data of the job can be read here."""
    what = f"data of {job.name}"
    if ":" in job.data.name:
        return Finding("ok", what, f"{job.data.name} is code of yours, which is not run here")
    if job.data.download:
        return Finding("ok", what, f"{job.data.name} in {job.data.dir}, fetched where it is missing")
    from zmpsl.data import load

    try:
        split = load(job.data, job.seed)
    except ZmpslError as error:
        return Finding("error", what, str(error), "give the right data.dir, or --data-dir at the owner")
    return Finding("ok", what, f"{job.data.name}: {len(split.train)} + {len(split.test)} samples")


def _folder_of(keys: Path) -> Path:
    return keys.parent if keys.suffix == ".key" and not keys.is_dir() else keys


def _keys(keys: Path, pairs: list[SecretKey]) -> Iterator[Finding]:
    """Key files, their modes, whom they talk to, and the list; good pairs are added to `pairs`."""
    folder = _folder_of(keys)
    files = [keys] if keys != folder else sorted(folder.glob("*.key"))
    if not files:
        yield Finding("error", "keys", f"{folder} has none", f"zmpsl keys new NAME --role ROLE --keys {folder}")
    for path in files:
        try:
            key = read_secret(path)
            check_pair(Security(key=key))
        except ZmpslError as error:
            yield Finding("error", f"key {path.name}", str(error), f"chmod 600 {path}, or make it again")
            continue
        pairs.append(key)
        yield Finding("ok", f"key {path.name}", f"role {key.role}, {key.public[:16]}...")
    manager = folder / MANAGER_FILE
    try:
        public = read_public(manager)
        right = public.role == "manager"
        text, fix = f"{public.name}, {public.public[:16]}...", f"copy the manager's own {MANAGER_FILE} there"
        yield Finding("ok" if right else "error", MANAGER_FILE, text, "" if right else fix)
    except ZmpslError as error:
        yield Finding("error", MANAGER_FILE, str(error), f"copy it from the manager's host into {folder}")
    allowed = folder / ALLOWED_FILE
    if any(key.role == "manager" for key in pairs) or allowed.exists():
        try:
            count = len(read_allowed(allowed).members)
            fix = "" if count else f"zmpsl keys add NAME.pub --keys {folder}"
            yield Finding("ok" if count else "warning", ALLOWED_FILE, f"{count} may take part", fix)
        except ZmpslError as error:
            yield Finding("error", ALLOWED_FILE, str(error), f"zmpsl keys add NAME.pub --keys {folder}")


def _port(address: str, protected: bool) -> Finding:
    """Whether a role could listen there."""
    what = f"port {address}"
    try:
        check_address(address, protected, bind=True)
    except ZmpslError as error:
        return Finding("error", what, str(error), "see docs/security.md")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        socket = context.socket(zmq.PULL)
        bind_socket(socket, address)
        socket.close(linger=0)
    except NetworkError as error:
        return Finding("error", what, str(error), "another port, or end what listens there (ss -ltnp)")
    finally:
        context.term()
    return Finding("ok", what, "can be bound")


def _host(address: str, keys: Path | None, pairs: list[SecretKey]) -> Iterator[Finding]:
    """Whether the manager lets our keys in, and how fast the way there is."""
    public = ""
    if keys is not None:
        try:
            public = read_public(_folder_of(keys) / MANAGER_FILE).public
        except ZmpslError:  # told already
            return
    ours = [Security(key=key, manager=public) for key in pairs if key.role != "manager"]
    for security in ours or [LOOPBACK]:
        name = f" as {security.key.name}" if security.key is not None else ""
        try:
            yield Finding("ok", f"manager {address}{name}", _measure(address, security))
        except ZmpslError as error:
            fix = "is it running, at that address? does its allow-list have the key (zmpsl keys list, there)?"
            yield Finding("error", f"manager {address}{name}", str(error), fix)


def _measure(address: str, security: Security) -> str:
    """Round trip and rate, in words; bytes go there and come back."""
    check_address(address, security.may_leave)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = ControlClient(context, address, security)
    try:
        _echo(client, b"")
        short = statistics.median(_echo(client, b"") for _ in range(5))
        long = statistics.median(_echo(client, bytes(PROBE_BYTES)) for _ in range(3))
    finally:
        client.close()
        context.term()
    rate = 2 * PROBE_BYTES / max(long - short, 1e-6)
    return f"round trip {1e3 * short:.1f} ms, about {8e-6 * rate:,.0f} Mbit/s there and back"


def _echo(client: ControlClient, data: bytes) -> float:
    """Seconds until the manager has sent back what we sent."""
    start = time.perf_counter()
    client.send(Probe(data=data))
    while time.perf_counter() - start < REACH_S:
        client.socket.poll(20)
        while (message := client.receive()) is not None:
            if isinstance(message, Probed):
                return time.perf_counter() - start
        client.watch()
        if client.failure and (client.hopeless or time.perf_counter() - start > REACH_S / 2):
            raise NetworkError(f"no handshake: {client.failure}")
    raise NetworkError(f"no answer for {REACH_S:g} s")
