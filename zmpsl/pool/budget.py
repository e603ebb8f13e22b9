"""How much memory a process may use: limits of the host and its cgroups, and the budget a job or an option sets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zmpsl.errors import JobError
from zmpsl.job.schema import MEMORY_PATTERN

__all__ = ["OVERHEAD_BYTES", "Limits", "Watch", "limits_here", "parse_memory", "parse_size", "readable", "room_of"]

_UNITS = {"B": 1, **{f"{letter}B": 1000 ** (n + 1) for n, letter in enumerate("kMGT")}}
_UNITS |= {f"{letter}iB": 1024 ** (n + 1) for n, letter in enumerate("KMGT")}

# What a role that trains gets on top of what it has when it joins, and nobody can count beforehand: code that is paged
# in with the first forward, freed memory that the C library and the receive buffers keep, libzmq's queues.
OVERHEAD_BYTES = 192 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may use, as it tells the manager.

    Attributes:
        host_bytes: Limit of the host or its cgroup, whichever is less; 0 where it is not known.
        used_bytes: What the process takes without any part of the model.
        own: Budget it was given itself, as text; empty where the job's holds.
    """

    host_bytes: int = 0
    used_bytes: int = 0
    own: str = ""


def parse_memory(value: int | str, whole: int) -> int:
    """Gives a budget in bytes.

    Args:
        value: Bytes, text such as `4GiB`, or a share such as `80%`.
        whole: What a share is of, in bytes.

    Raises:
        JobError: The text is neither.
    """
    if isinstance(value, int):
        return value
    if not re.match(MEMORY_PATTERN, value):
        raise JobError(f"memory {value!r} is no budget; write bytes, a size such as 4GiB, or a share such as 80%")
    number, unit = re.sub(r"[ %A-Za-z]+$", "", value), value.lstrip("0123456789. ")
    return int(float(number) * (whole / 100 if unit == "%" else _UNITS[unit]))


def parse_size(text: str) -> int:
    """Gives a size in bytes: digits alone, or with a unit, such as `5MiB`.

    Raises:
        JobError: The text is none.
    """
    if text.isdigit():
        return int(text)
    if text.endswith("%") or not re.match(MEMORY_PATTERN, text):
        raise JobError(f"{text!r} is no size; write bytes, or a size such as 5MiB")
    return parse_memory(text, 0)


def room_of(setting: int | str, limits: Limits, sharers: int) -> int | None:
    """Gives the bytes a node has for parts, replicas and tensors.

    Args:
        setting: The job's `memory`.
        limits: What the node told; its own budget goes before the job's.
        sharers: Compute nodes on the same host. They divide a share evenly, but not a size.

    Returns:
        Budget less what the process itself takes, at least 0; None where a share is asked for of an unknown limit.
    """
    value = limits.own or setting
    value = int(value) if isinstance(value, str) and value.isdigit() else value
    if isinstance(value, str) and value.endswith("%") and not limits.host_bytes:
        return None
    return max(0, parse_memory(value, limits.host_bytes // max(1, sharers)) - limits.used_bytes)


class Watch:
    """Keeps the process itself to its budget: freed memory is given back when the system counts too much.

    What is set aside beforehand bounds what lives. Between live tensors a heap keeps holes of freed ones, which no
    reckoning foresees: they may grow while there is room, and are closed when there is not.

    Args:
        budget: Bytes of the whole process; None never gives anything back.
        give_back: Gives freed memory back to the system.
        resident: Gives what the system counts.

    Attributes:
        times: How often memory was given back.
    """

    # This near to the budget memory is given back, and again only when as much has been added since.
    MARGIN_BYTES = 96 << 20

    def __init__(
        self, budget: int | None, give_back: Callable[[], None], resident: Callable[[], int] | None = None
    ) -> None:
        self._budget = budget
        self._give_back = give_back
        self._resident = resident or (lambda: _resident(Path("/proc")))
        self.times = 0
        self._left = 0  # what was still there the last time

    def look(self) -> None:
        """Called after every piece of work."""
        if self._budget is None:
            return
        near = max(self._budget - self.MARGIN_BYTES, self._left + self.MARGIN_BYTES // 4)
        if self._resident() > near:
            self._give_back()
            self.times += 1
            self._left = self._resident()


def limits_here(own: str = "", proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Limits:
    """Looks up the limits of this process.

    Args:
        own: The budget it was given, as text.
        proc: Where the kernel tells of processes.
        cgroups: Where it tells of cgroups, version 2 or 1.

    Raises:
        JobError: `own` is no budget.
    """
    parse_memory(int(own) if own.isdigit() else own or 0, 1)
    found = [*_physical(), *_cgroup_limits(proc, cgroups)]
    return Limits(min(found, default=0), _resident(proc) + OVERHEAD_BYTES, own)


def readable(nbytes: float) -> str:
    """Puts bytes into words, such as 3.1 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} GiB"


def _physical() -> list[int]:
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError, AttributeError):
        return []


def _resident(proc: Path) -> int:
    try:
        return int((proc / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # no Linux: the most it ever had
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cgroup_limits(proc: Path, cgroups: Path) -> list[int]:
    """Gives every limit on the way from our cgroup to the root; in a container only the root may be visible."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = cgroups / "memory" if kinds else cgroups
        name = "memory.limit_in_bytes" if kinds else "memory.max"
        here = root / path.strip("/")
        for folder in [here, *(above for above in here.parents if above == root or root in above.parents)]:
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            # "max", or a number near 2**63, is no limit.
            if text.isdigit() and int(text) < 1 << 60:
                found.append(int(text))
    return found
