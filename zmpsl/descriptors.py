"""Tells when a process has no file descriptors left: then nobody new can connect to it, and it cannot open a file."""

from __future__ import annotations

import os

__all__ = ["Descriptors"]

# It is over only when there are so many again: with fewer it would soon be told once more.
ENOUGH = 16


class Descriptors:
    """The file descriptors of this process."""

    def __init__(self) -> None:
        self._left = True

    def look(self) -> str:
        """Looks; to be called now and then.

        Returns:
            What has changed, in words; empty where nothing has.
        """
        left = _free(1 if self._left else ENOUGH)
        if left == self._left:
            return ""
        self._left = left
        if left:
            return "there are file descriptors again"
        # libzmq tries to accept who waits, without a pause: its thread takes a whole core meanwhile. Closing the port
        # would help, but in libzmq that closes all connections which were made there.
        return (
            f"no file descriptors are left (ulimit -n {os.sysconf('SC_OPEN_MAX')}): who is connected stays, nobody new "
            "gets in; allow more of them, and see who connects"
        )


def _free(number: int) -> bool:
    """Tells whether so many descriptors are free."""
    found: list[int] = []
    try:
        for _ in range(number):
            found.append(os.dup(2))
    except OSError:
        return False
    finally:
        for each in found:
            os.close(each)
    return True
