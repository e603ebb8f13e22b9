"""A ceiling on the private memory of this process, which the system enforces (RLIMIT_DATA).

A budget is a reckoning, and what a hostile peer sends, or a mistake of ours, is not in it. Without a ceiling the system
then chooses whom to kill; with one, whoever asks for too much is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["cap_private", "private_bytes"]


def private_bytes() -> int:
    """Gives what the system counts towards that ceiling: private memory that may be written, touched or not."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)


def cap_private(nbytes: int) -> bool:
    """Lets this process have no more than that; tells whether the system does so. It can be set anew, also higher."""
    if sys.platform != "linux":  # others have the number, and do not keep to it
        return False
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        nbytes = min(nbytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, most))
    return True
