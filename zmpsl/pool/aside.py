"""Replicas of owners that were set aside: packed on disk while others have their places, read back before they go on.

    RUN/aside/node-0/owner-7.packed

Nothing of it outlives a plan: when work is lost, the round is begun again. So a file is written to be read once, and is
not forced to the disk. It is read by a thread, straight into the memory of the replica, while the node works on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import CheckpointError
from zmpsl.packed_state import pack_state, unpack_state_into
from zmpsl.pool.spill import Errand, SpillStats, Tensors

__all__ = ["AsideFiles"]


class AsideFiles:
    """The files of one compute node.

    Args:
        run: The run's folder; None where there is none, then nobody can be set aside.
        place: Whose.

    Attributes:
        stats: What it has cost so far.
    """

    def __init__(self, run: Path | None, place: str) -> None:
        self._folder = None if run is None else run / "aside" / place
        self._place = place
        self.stats = SpillStats()
        self.clear()

    def clear(self) -> None:
        """Removes what an earlier plan or round left."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, owner: int, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Writes all of a replica.

        Raises:
            CheckpointError: There is no folder, or the disk is full or read-only; no file is left then.
        """
        began = time.perf_counter()
        path = self._path(owner)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.writelines(pack_state(state))
                nbytes = file.tell()
        except (OSError, ValueError) as error:
            with suppress(OSError):
                path.unlink()
            raise CheckpointError(f"cannot write the replica of owner {owner} to {path}: {error}") from error
        took, raw = time.perf_counter() - began, sum(array.nbytes for array in state.values())
        # Nothing else is done meanwhile: what is written would change, or its memory be missing.
        self._add(SpillStats(state_bytes=raw, written_bytes=nbytes, write_s=took, wait_s=took))

    def read(self, owner: int, state: Tensors) -> Callable[[], None]:
        """Begins to read a replica into arrays of the names, types and shapes that were written.

        Returns:
            Waits until it is read and removes the file, or raises CheckpointError.
        """
        path, found = self._path(owner), [SpillStats()]

        def work() -> None:
            began = time.perf_counter()
            try:
                with path.open("rb") as file:
                    unpack_state_into(file, state)
                    found[0] = SpillStats(read_bytes=file.tell(), read_s=time.perf_counter() - began)
            except OSError as error:
                raise CheckpointError(f"{path}: {error.strerror}") from error

        errand = Errand(work)

        def finish() -> None:
            began = time.perf_counter()
            try:
                errand.finish()
            except CheckpointError as error:
                raise CheckpointError(f"{self._place}: the replica of owner {owner}: {error}") from error
            path.unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                path.parent.rmdir()
            self._add(found[0].plus(SpillStats(wait_s=time.perf_counter() - began)))

        return finish

    def _add(self, more: SpillStats) -> None:
        self.stats = self.stats.plus(more)

    def _path(self, owner: int) -> Path:
        if self._folder is None:
            raise CheckpointError(f"{self._place} has no run folder to set owner {owner} aside in")
        return self._folder / f"owner-{owner}.packed"
