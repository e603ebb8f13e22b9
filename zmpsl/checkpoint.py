"""What a run leaves on disk: one safetensors file per part and round, an index over them, and the manager's record.

    RUN/record.json                                     the manager's: which rounds are committed; the only commit point
    RUN/checkpoints/round-00003/part-0.safetensors      by the aggregator: the owners' first part
                                part-1.safetensors      by compute node 0 ...
                                part-1.optimizer.safetensors     only with optimizer.state: average
                                model.safetensors.index.json     by the manager: which file holds which tensor
    RUN/kept/owner-7/round-00003/blocks-1-4.packed      by whoever holds them; only with optimizer.state: keep, see
                                                        `zmpsl.pool.spill`

With `codec.checkpoints` the part files are packed states (`part-1.packed`, see `zmpsl.packed_state`): the same tensors,
the same digests, fewer bytes. Whichever of the two is there is read.

Everything is written to a temporary file, synced and renamed. The union of the part files is an ordinary state dict of
`torch.nn.Sequential(*blocks)`; the index is in the form that other tools know from sharded checkpoints.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from zmpsl.codecs import by_name
from zmpsl.errors import CheckpointError, JobError
from zmpsl.job.schema import Job
from zmpsl.packed_state import pack_state, unpack_state
from zmpsl.plan import AGGREGATOR, Plan, node_name
from zmpsl.state import Flat, Layout, Segment, digest, ends_layout, layout_of
from zmpsl.whole_file import replacing

__all__ = [
    "Record",
    "held",
    "load_parts",
    "load_state",
    "load_state_dict",
    "prune",
    "read_record",
    "round_folder",
    "save_parts",
    "write_index",
    "write_record",
    "write_text",
]

INDEX = "model.safetensors.index.json"
# What msgspec raises for bytes that are not what they should be.
_DAMAGED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_PART_FILE = re.compile(r"part-[0-9]+\.(safetensors|packed)")
PLAIN, PACKED = ".safetensors", ".packed"


class _Index(Struct):
    weight_map: dict[str, str]


class Record(Struct, kw_only=True, forbid_unknown_fields=True):
    """The manager's record of a run.

    Attributes:
        run: Name of the run.
        job: The job as it was submitted, with all defaults.
        bounds: Block bounds of the parts, as of the last committed round.
        fingerprint: Of the model's block list.
        committed: Digest of every role's state by round, oldest first.
        plan: Version of the last plan that may have been published.
        owners: With `privacy.secure_average`, the owners of that plan.
        kept: The last committed round in which each owner trained with `optimizer.state: keep`.
    """

    run: str
    job: Job
    bounds: tuple[int, ...]
    fingerprint: str
    committed: dict[int, dict[str, str]]
    plan: int = 0
    owners: tuple[int, ...] = ()
    kept: dict[int, int] = {}

    @property
    def last(self) -> int:
        """The last committed round, -1 when there is none."""
        return max(self.committed, default=-1)


def write_text(path: Path, data: bytes) -> None:
    """Replaces a file in one step: temporary file, sync, rename.

    Raises:
        CheckpointError: The disk is full or read-only.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def write_record(run: Path, record: Record) -> None:
    """Writes the record; with the rename a round is committed."""
    write_text(run / "record.json", msgspec.json.format(msgspec.json.encode(record), indent=1))


def read_record(run: Path) -> Record:
    """Reads a run's record.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    path = run / "record.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist: {run} is no run folder, or its run ended before the first plan"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Holds a run's folder for one manager; a process that dies lets go of it.

    Raises:
        JobError: Another manager holds it.
        CheckpointError: The folder cannot be used.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        number = os.open(run, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"cannot use the folder {run}: {error.strerror}") from error
    try:
        with suppress(OSError):  # some file systems over a network have no locks
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JobError(f"another manager is at work in {run}; end it first, or wait for its end") from None
        yield
    finally:
        os.close(number)


def round_folder(run: Path, round_: int) -> Path:
    """Gives the folder of a round's checkpoint."""
    return run / "checkpoints" / f"round-{round_:05d}"


def _files(bounds: tuple[int, ...], part: int, layout: Layout) -> Iterable[tuple[str, list[Segment]]]:
    """Names without ending, and what is in each file."""
    indices = range(bounds[part], bounds[part + 1])
    mine = [segment for segment in layout.segments if int(segment.name.split(".", 1)[0]) in indices]
    yield f"part-{part}", [segment for segment in mine if not segment.is_optimizer]
    extra = [segment for segment in mine if segment.is_optimizer]
    if extra:
        yield f"part-{part}.optimizer", extra


def save_parts(run: Path, plan: Plan, round_: int, parts: Iterable[int], layout: Layout, flat: Flat) -> None:
    """Stores parts of one flat state, each in a file of its own.

    Raises:
        CheckpointError: The disk is full or read-only.
    """
    folder = round_folder(run, round_)
    views = layout.views(flat)
    for part in parts:
        for name, segments in _files(plan.bounds, part, layout):
            path = folder / (name + _ending(plan.job))
            tensors = {s.name: views[s.name] for s in segments}
            try:
                # Once we say that it is stored, the round may be committed, by a manager on another host.
                with replacing(path, lasting=True) as temporary:
                    if path.suffix == PACKED:
                        with temporary.open("wb") as file:
                            file.writelines(pack_state(tensors, by_name(plan.job.codec.checkpoints)))
                    else:
                        save_file(tensors, temporary, {"run": plan.run, "round": str(round_), "part": str(part)})
                # Of a round that is done again after the job was changed, the other file must not be read.
                path.with_name(name + (PLAIN if path.suffix == PACKED else PACKED)).unlink(missing_ok=True)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"cannot write {path}: {error}") from error


def _ending(job: Job) -> str:
    return PLAIN if job.codec.checkpoints == "none" else PACKED


def load_state(run: Path, plan: Plan, layout: Layout, flat: Flat) -> None:
    """Reads what a role must hold when a run goes on, whichever roles had stored it under whatever cuts.

    Args:
        run: The run's folder.
        plan: The plan; tells from which round on, and how the state before it was cut.
        layout: Layout of `flat`.
        flat: Overwritten.

    Raises:
        CheckpointError: A file is missing or damaged, or the state is not the one that was committed.
    """
    bounds = plan.stored or plan.bounds
    wanted = {segment.name for segment in layout.segments}
    views = layout.views(flat)
    for place, parts, theirs in _stored_states(plan, bounds):
        mine = [segment.name for segment in theirs.segments if segment.name in wanted]
        if not mine:
            continue
        same = theirs == layout
        state = flat if same else np.zeros(theirs.nbytes, np.uint8)
        load_parts(run, bounds, plan.start_round - 1, parts, theirs, state, plan.digests[place])
        if not same:
            found = theirs.views(state)
            for name in mine:
                views[name][...] = found[name]


def _stored_states(plan: Plan, bounds: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], Layout]]:
    """Who stored which parts, laid out how, under these bounds."""
    last = len(bounds) - 2
    yield AGGREGATOR, (0, last), ends_layout(plan.blocks, bounds, plan.job.optimizer)
    for part in range(1, last):
        indices = range(bounds[part], bounds[part + 1])
        yield node_name(part - 1), (part,), layout_of(plan.blocks, indices, plan.job.optimizer)


def load_parts(
    run: Path, bounds: tuple[int, ...], round_: int, parts: Iterable[int], layout: Layout, flat: Flat, expected: str
) -> None:
    """Reads parts back into one flat state.

    Args:
        run: The run's folder.
        bounds: The bounds of the parts.
        round_: Which round.
        parts: Which parts.
        layout: Layout of `flat`.
        flat: Overwritten.
        expected: Digest the state must have.

    Raises:
        CheckpointError: A file is missing or damaged, or the state is not the one that was committed.
    """
    views = layout.views(flat)
    for part in parts:
        for name, segments in _files(bounds, part, layout):
            path = _found(round_folder(run, round_) / name)
            tensors = _read(path)
            for segment in segments:
                tensor = tensors.get(segment.name)
                if tensor is None or tensor.shape != segment.shape or tensor.dtype != segment.dtype:
                    raise CheckpointError(
                        f"{path}: tensor {segment.name} is missing or not {segment.dtype}{list(segment.shape)}"
                    )
                views[segment.name][...] = tensor
    found = digest(flat)
    if found != expected:
        raise CheckpointError(
            f"checkpoint of round {round_} in {run} has digest {found[:16]}..., the record says {expected[:16]}...: the"
            " files were changed"
        )


def _found(path: Path) -> Path:
    """Gives the packed file of that name if there is one, else the plain one, which may not be there either."""
    packed = path.with_name(path.name + PACKED)
    return packed if packed.exists() else path.with_name(path.name + PLAIN)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        if path.suffix == PACKED:
            with path.open("rb") as file:
                return unpack_state(file)
        tensors: dict[str, NDArray[np.generic]] = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} does not exist; copy the part files of the round from the hosts that wrote them"
        ) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return tensors


def write_index(run: Path, plan: Plan, round_: int, digests: dict[str, str]) -> None:
    """Writes which file holds which tensor of the model."""
    weight_map = {
        f"{index}.{entry.key}": f"part-{part}{_ending(plan.job)}"
        for part in range(plan.parts)
        for index in plan.blocks_of(part)
        for entry in plan.blocks[index].entries
    }
    metadata = {
        "run": plan.run,
        "round": round_,
        "model": plan.job.model.name,
        "model_args": plan.job.model.args,
        "digests": digests,
    }
    data = msgspec.json.encode({"metadata": metadata, "weight_map": weight_map})
    write_text(round_folder(run, round_) / INDEX, msgspec.json.format(data, indent=1))


def prune(run: Path, committed: int, keep: int) -> None:
    """Removes the checkpoints of rounds that are more than `keep` behind the last committed one."""
    for folder in (run / "checkpoints").glob("round-*"):
        number = folder.name.removeprefix("round-")
        if number.isdigit() and int(number) <= committed - keep:
            shutil.rmtree(folder, ignore_errors=True)


def load_state_dict(run: Path, round_: int | None = None) -> dict[str, NDArray[np.generic]]:
    """Gives the whole model's weights of a committed round, as `torch.nn.Sequential(*blocks)` names them.

    Args:
        run: The run's folder.
        round_: Which round; the last committed one if not given.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    if round_ is None:
        round_ = read_record(run).last
        if round_ < 0:
            raise CheckpointError(f"{run} has no committed round yet")
    folder = round_folder(run, round_)
    try:
        index = msgspec.json.decode((folder / INDEX).read_bytes(), type=_Index).weight_map
    except (OSError, *_DAMAGED) as error:
        raise CheckpointError(f"{folder / INDEX} cannot be read: {error}") from error
    files: dict[str, dict[str, NDArray[np.generic]]] = {}
    for name in sorted(set(index.values())):
        if not _PART_FILE.fullmatch(name):
            raise CheckpointError(f"{folder / INDEX}: {name!r} is no part file")
        files[name] = _read(folder / name)
    missing = next((key for key, name in index.items() if key not in files[name]), None)
    if missing is not None:
        raise CheckpointError(f"{folder / index[missing]} does not hold {missing}, which the index says is there")
    return {key: files[name][key] for key, name in index.items()}
