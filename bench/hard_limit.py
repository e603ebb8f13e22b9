"""A hard limit on the memory of a process: that of a cgroup, where there is one to put it into.

A cgroup, version 1 or 2, is what kills a container that takes too much. Making one needs a folder under /sys/fs/cgroup
that may be written, such as one that systemd has delegated; in version 2 that folder must hold no process itself. The
other limit, RLIMIT_DATA (zmpsl.pool.ceiling), needs nothing. It is the stricter one: it counts private memory that was
asked for, touched or not, also what a heap has given back between live memory; and what is above is refused.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

__all__ = ["Cgroup"]


class Cgroup:
    """A cgroup of our own, with a limit and without swap; made on entry, removed on exit.

    Args:
        parent: Folder of the cgroup to make it in.
        name: Its name.
        nbytes: Its limit.

    Raises:
        FileNotFoundError: That folder does not govern memory.
    """

    def __init__(self, parent: Path, name: str, nbytes: int) -> None:
        self._parent = parent
        self._old = (parent / "memory.limit_in_bytes").exists()
        self.folder = parent / name
        self._nbytes = nbytes

    def __enter__(self) -> Cgroup:
        if not self._old:
            self._enable()
        self.folder.mkdir()
        self._write("memory.limit_in_bytes" if self._old else "memory.max", self._nbytes)
        with suppress(FileNotFoundError):  # a kernel without swap
            self._write("memory.swappiness" if self._old else "memory.swap.max", 0)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.folder.rmdir()

    def take(self, pid: int) -> None:
        """Puts a process into it, with all it has from now on."""
        self._write("cgroup.procs", pid)

    @property
    def peak(self) -> int:
        """The most memory it ever had, page cache and the kernel's own included; 0 before Linux 5.19 with version 2."""
        path = self.folder / ("memory.max_usage_in_bytes" if self._old else "memory.peak")
        return int(path.read_text()) if path.exists() else 0

    @property
    def kills(self) -> int:
        """How many of its processes were killed for memory."""
        return self._count("memory.oom_control" if self._old else "memory.events", "oom_kill")

    @property
    def reached(self) -> int:
        """How often it was full, so that page cache had to go."""
        return int(self._read("memory.failcnt")) if self._old else self._count("memory.events", "max")

    def _enable(self) -> None:
        """Has groups inside the parent govern memory."""
        if "memory" not in (self._parent / "cgroup.controllers").read_text().split():
            raise FileNotFoundError(f"{self._parent} has no memory controller; its parent must delegate it")
        if "memory" not in (self._parent / "cgroup.subtree_control").read_text().split():
            (self._parent / "cgroup.subtree_control").write_text("+memory")

    def _count(self, name: str, what: str) -> int:
        rows = (line.split() for line in self._read(name).splitlines())
        return next((int(row[1]) for row in rows if row[0] == what), 0)

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))
