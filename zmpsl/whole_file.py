"""Files that are there whole or not at all: written beside their place, synced, and renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, mode: int = 0o666, *, lasting: bool = False) -> Iterator[Path]:
    """Replaces a file in one step.

    Args:
        path: What to replace; its folder is made.
        mode: Permissions, less those of the umask; the file never has wider ones, not even for a moment.
        lasting: The new file is there even if the power fails right after; else it may be the old one then.

    Yields:
        An empty file to write to; what is in it at the end takes the place of the other, unless an error comes first.

    Raises:
        OSError: The disk is full or read-only, or somebody else may write there.
    """
    temporary = path.with_name(path.name + ".tmp")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    for folder in (path.parent, *(each.parent for each in made)) if lasting else ():
        _sync_names(folder)


def _sync_names(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems over a network cannot
            os.fsync(number)
    finally:
        os.close(number)
