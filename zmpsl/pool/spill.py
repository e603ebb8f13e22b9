"""Optimiser states that outlive a round: packed on disk while their owners train elsewhere or wait for the next round.

    RUN/kept/owner-7/round-00003/blocks-1-4.packed     owner 7's state of blocks 1 to 3, as its round 3 (from 0) left it

Each role writes the blocks it holds, before it says that it is done with the round; which files count follows from the
manager's record, so what a round left that was begun again is never read. Names are those of parameters: when the
model is cut differently, a role picks its blocks from whatever files are there.

Files are written and read by threads: the write of an owner that was folded while the next one works, the read of an
owner that was admitted until its first update. At most one write is under way, so at most one state waits for it.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from zmpsl.errors import CheckpointError
from zmpsl.packed_state import pack_state, unpack_state
from zmpsl.plan import Plan
from zmpsl.whole_file import replacing

__all__ = ["Errand", "KeptStates", "SpillStats", "Tensors"]

Tensors = dict[str, NDArray[np.generic]]
_FILE = re.compile(r"blocks-([0-9]+)-([0-9]+)\.packed")
# Says in the file whose state it is, and after which round.
MARK = "kept"


class SpillStats(Struct, frozen=True, kw_only=True):
    """What keeping states cost: bytes of tensors that were written, of files, and seconds.

    `write_s` and `read_s` are those of threads beside the work, `wait_s` those for which the work stood still.
    """

    state_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    write_s: float = 0.0
    read_s: float = 0.0
    wait_s: float = 0.0

    def plus(self, other: SpillStats, sign: int = 1) -> SpillStats:
        """Gives the sum, or the difference with sign -1."""
        return SpillStats(
            **{name: getattr(self, name) + sign * getattr(other, name) for name in self.__struct_fields__}
        )


class Errand(threading.Thread):
    """Work in a thread of its own; what goes wrong is raised where it is waited for."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="spill", daemon=True)
        self._work = work
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        """Does the work, in the thread."""
        try:
            self._work()
        except Exception as error:
            self._error = error

    def finish(self) -> None:
        """Waits for its end."""
        self.join()
        if self._error is not None:
            raise self._error


class KeptStates:
    """The states that one role keeps.

    Args:
        run: The run's folder.
        plan: Tells blocks of parts, and which round's state of each owner counts.
        place: Whose; for messages.
    """

    def __init__(self, run: Path, plan: Plan, place: str) -> None:
        self._folder = run / "kept"
        self._plan = plan
        self._place = place
        self._rounds = dict(plan.kept)
        self._stored: dict[int, int] = {}
        self._writing: Errand | None = None
        self._reading = threading.Lock()  # one after the other: the owner that was admitted first needs its first
        self._counting = threading.Lock()
        self.stats = SpillStats()

    def check(self, owners: Iterable[int], parts: Iterable[int]) -> None:
        """Looks whether all that will be read is there.

        Raises:
            CheckpointError: A file is not.
        """
        for part in parts:
            for owner in owners:
                if owner in self._rounds:
                    list(self._files(owner, part))

    def fetch(self, owner: int, part: int, room: Tensors | None = None) -> Callable[[], Tensors] | None:
        """Begins to read an owner's state.

        Args:
            owner: Whose.
            part: Of which part.
            room: By name, arrays that tensors of their kind are read into; nobody else may touch them until then.

        Returns:
            Waits for it and gives it, or raises CheckpointError; None where the owner has none yet.
        """
        if owner not in self._rounds:
            return None
        found: Tensors = {}
        errand = Errand(lambda: self._read(owner, part, found, room))

        def take() -> Tensors:
            self._wait(errand)
            return found

        return take

    def store(self, owner: int, part: int, round_: int, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Begins to write an owner's state, once the one before it is written; nobody may change it until then.

        Raises:
            CheckpointError: The one before could not be written.
        """
        self.flush()
        self._stored[owner] = round_
        self._writing = Errand(lambda: self._write(owner, part, round_, state))

    def flush(self) -> None:
        """Waits until all is on disk.

        Raises:
            CheckpointError: The disk is full or read-only.
        """
        errand, self._writing = self._writing, None
        if errand is not None:
            self._wait(errand)

    def end_round(self) -> None:
        """Waits until all is on disk; from now on the next round's states are those of this one."""
        self.flush()
        self._rounds |= self._stored
        self._stored.clear()

    def close(self) -> None:
        """Waits until nothing is written any more; the plan is void, so it does not matter what became of it."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None

    def prune(self, committed: int) -> None:
        """Removes what no round after a committed one can need."""
        for owner, newest in self._rounds.items():
            for folder in (self._folder / f"owner-{owner}").glob("round-*"):
                number = folder.name.removeprefix("round-")
                if number.isdigit() and int(number) < min(committed, newest):
                    shutil.rmtree(folder, ignore_errors=True)

    def _round_folder(self, owner: int, round_: int) -> Path:
        return self._folder / f"owner-{owner}" / f"round-{round_:05d}"

    def _words(self, owner: int, part: int, round_: int) -> str:
        blocks = self._plan.blocks_of(part)
        return (
            f"optimiser state of owner {owner} after round {round_ + 1}, part {part} (blocks {blocks.start} to"
            f" {blocks.stop - 1})"
        )

    def _files(self, owner: int, part: int) -> Iterator[Path]:
        """Gives the files that hold a part's blocks: one, or several where the model was cut differently."""
        round_, blocks = self._rounds[owner], self._plan.blocks_of(part)
        folder = self._round_folder(owner, round_)
        ours = folder / _name(blocks)
        if ours.exists():
            yield ours
            return
        missing = set(blocks)
        for path, theirs in sorted(_found(folder)):
            if missing.intersection(theirs):
                missing.difference_update(theirs)
                yield path
        if missing:
            raise CheckpointError(
                f"{self._place} needs the {self._words(owner, part, round_)}, but {ours} is not there; copy the folder"
                f" {self._folder} from the host that held these blocks"
            )

    def _read(self, owner: int, part: int, state: Tensors, room: Tensors | None) -> None:
        with self._reading:
            began, nbytes, round_ = time.perf_counter(), 0, self._rounds[owner]
            blocks = self._plan.blocks_of(part)
            for path in self._files(owner, part):
                try:
                    with path.open("rb") as file:
                        found = unpack_state(file, room=room)
                        nbytes += file.tell()
                except (OSError, CheckpointError) as error:
                    raise CheckpointError(f"{self._words(owner, part, round_)}: {error}") from error
                mark = found.pop(MARK, None)
                if mark is None or mark.tolist() != [owner, round_]:
                    raise CheckpointError(f"{self._words(owner, part, round_)}: {path} holds another state")
                state |= {name: array for name, array in found.items() if int(name.split(".", 1)[0]) in blocks}
            self._count(SpillStats(read_bytes=nbytes, read_s=time.perf_counter() - began))

    def _write(self, owner: int, part: int, round_: int, state: Mapping[str, NDArray[np.generic]]) -> None:
        began, blocks = time.perf_counter(), self._plan.blocks_of(part)
        folder = self._round_folder(owner, round_)
        path = folder / _name(blocks)
        try:
            with replacing(path, lasting=True) as unfinished, unfinished.open("wb") as file:
                file.writelines(pack_state({MARK: np.array([owner, round_], np.int64), **state}))
                nbytes = file.tell()
            # The round was begun before, under other cuts.
            for other, theirs in _found(folder):
                if other != path and theirs.start < blocks.stop and blocks.start < theirs.stop:
                    other.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the {self._words(owner, part, round_)} to {path}: {error.strerror}"
            ) from error
        raw = sum(array.nbytes for array in state.values())
        self._count(SpillStats(state_bytes=raw, written_bytes=nbytes, write_s=time.perf_counter() - began))

    def _wait(self, errand: Errand) -> None:
        began = time.perf_counter()
        try:
            errand.finish()
        finally:
            self._count(SpillStats(wait_s=time.perf_counter() - began))

    def _count(self, more: SpillStats) -> None:
        with self._counting:
            self.stats = self.stats.plus(more)


def _name(blocks: range) -> str:
    return f"blocks-{blocks.start}-{blocks.stop}.packed"


def _found(folder: Path) -> list[tuple[Path, range]]:
    """Gives all files of a folder, with the blocks they hold."""
    matches = [(path, _FILE.fullmatch(path.name)) for path in folder.glob("blocks-*")]
    return [(path, range(int(match[1]), int(match[2]))) for path, match in matches if match is not None]
