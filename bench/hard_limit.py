"""A hard limit on the memory of a process: of a cgroup where there is one to put it into, else of its private memory.

A cgroup (version 1 or 2) is what kills a container that takes too much. Making one needs a folder under /sys/fs/cgroup
that may be written, such as one that systemd has delegated. The other limit, RLIMIT_DATA, needs nothing. It is the
stricter one: it counts private memory that was asked for, touched or not, and what is above is refused.
"""

from __future__ import annotations

import resource
from pathlib import Path

__all__ = ["Cgroup", "limit_data"]


def limit_data(nbytes: int) -> None:
    """Lets this process have no more private writable memory than this."""
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


class Cgroup:
    """A cgroup of our own, with a limit; made on entry, removed on exit.

    Args:
        parent: Folder of the cgroup to make it in.
        name: Its name.
        nbytes: Its limit.
    """

    def __init__(self, parent: Path, name: str, nbytes: int) -> None:
        self._old = (parent / "memory.limit_in_bytes").exists()
        self.folder = parent / name
        self._nbytes = nbytes

    def __enter__(self) -> Cgroup:
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if self._old else "memory.max")).write_text(str(self._nbytes))
        return self

    def __exit__(self, *_exc: object) -> None:
        self.folder.rmdir()

    def take(self, pid: int) -> None:
        """Puts a process into it, with all it has from now on."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    @property
    def peak(self) -> int:
        """The most memory it ever had, page cache included."""
        name = "memory.max_usage_in_bytes" if self._old else "memory.peak"
        return int((self.folder / name).read_text())
