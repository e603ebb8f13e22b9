"""What each role worked on and when: a compact trace per role, merged into one file that ui.perfetto.dev opens.

A role's file holds one JSON line per piece of work and, now and then, a line that names the role:

    {"role":"node-0","dropped":0}
    ["F",1700000000000000,1250,2,0,0,3,0]    op, start and duration in microseconds, owner, round, epoch, batch, micro

Starts are Unix time, so that files of several processes and hosts line up as well as the hosts' clocks do.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from zmpsl.errors import ZmpslError
from zmpsl.observe.jsonl import mend, read_lines
from zmpsl.observe.readable import natural

__all__ = ["OPS", "Recorder", "Span", "busy", "merge", "round_starts", "spans"]

# The letters of the trace; "L" is the owners' last part, where the batch turns from forward to backward.
OPS = {
    "F": "forward",
    "B": "backward",
    "U": "update",
    "L": "last part",
    "E": "evaluation",
    "A": "averaging",
}

_PACKED = struct.Struct("<Bqqiiiii")


class Span(NamedTuple):
    """One piece of work; `start_us` is Unix time in microseconds."""

    op: str
    start_us: int
    duration_us: int
    owner: int
    round: int
    epoch: int
    batch: int
    micro: int


class _Note(Struct, frozen=True):
    """Says whose file this is, and how many spans were not kept since the last note."""

    role: str
    dropped: int = 0


def _decoder() -> msgspec.json.Decoder[Span | _Note]:
    decoder: msgspec.json.Decoder[Span | _Note] = msgspec.json.Decoder(Span | _Note)
    return decoder


class Recorder:
    """Keeps the trace of one role in memory, 37 bytes per piece of work, and writes it once a round.

    Args:
        path: The file, `timeline/<role>.jsonl` of the run folder; an earlier one is continued.
        role: The role's name.
        clock: Clock of `add`'s times, nanoseconds; read once here to learn how it stands to Unix time.
        unix_clock: Unix time, nanoseconds.
        limit: Pieces of work kept between two calls of `flush`; those beyond are only counted.
        file_limit_bytes: Once the file is this large, pieces of work are only counted.
    """

    def __init__(
        self,
        path: Path,
        role: str,
        clock: Callable[[], int] = time.perf_counter_ns,
        unix_clock: Callable[[], int] = time.time_ns,
        *,
        limit: int = 50_000,
        file_limit_bytes: int = 64 << 20,
    ) -> None:
        self.clock = clock
        self._path = path
        self._role = role
        self._limit_bytes = limit * _PACKED.size
        self._file_limit_bytes = file_limit_bytes
        self._packed = bytearray()
        self._dropped = 0
        self._named = False
        before_ns, unix_ns, after_ns = clock(), unix_clock(), clock()
        self._offset_ns = unix_ns - (before_ns + after_ns) // 2

    def add(
        self, op: str, start_ns: int, end_ns: int, owner: int, round: int, epoch: int, batch: int, micro: int
    ) -> None:
        """Notes one piece of work.

        Args:
            op: A letter of `OPS`.
            start_ns: When it began, by the recorder's clock.
            end_ns: When it was done.
            owner: The data owner it was for; this and the others count from 0, -1 where there is none.
            round: The round.
            epoch: The local epoch.
            batch: The batch of the epoch.
            micro: The micro-batch of the batch.
        """
        if len(self._packed) >= self._limit_bytes:
            self._dropped += 1
            return
        self._packed += _PACKED.pack(ord(op), start_ns, end_ns, owner, round, epoch, batch, micro)

    def flush(self) -> None:
        """Writes what was noted and forgets it.

        Raises:
            ZmpslError: The file cannot be written.
        """
        if not self._packed and not self._dropped:
            return
        try:
            self._write()
        except OSError as error:
            raise ZmpslError(f"cannot write the timeline {self._path}: {error.strerror}") from error
        self._packed.clear()
        self._dropped = 0

    def close(self) -> None:
        """Writes what is left."""
        self.flush()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self) -> None:
        if not self._named:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            mend(self._path, _decoder())
        encode = msgspec.json.Encoder().encode
        with self._path.open("ab") as file:
            dropped = self._dropped
            if file.tell() >= self._file_limit_bytes:
                dropped += len(self._packed) // _PACKED.size
                self._packed.clear()
            if dropped or not self._named:
                file.write(encode(_Note(self._role, dropped)) + b"\n")
            for op, start_ns, end_ns, *numbers in _PACKED.iter_unpack(self._packed):
                # Both ends are rounded alike, so that work that did not overlap still does not.
                start_us = (start_ns + self._offset_ns) // 1000
                end_us = (end_ns + self._offset_ns) // 1000
                file.write(encode(Span(chr(op), start_us, end_us - start_us, *numbers)) + b"\n")
        self._named = True


def _walk(folder: Path) -> Iterator[tuple[str, Span | _Note]]:
    """Reads all files of a folder, line by line, with the role each line is from; roles in natural order."""
    decoder = _decoder()
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: natural(path.stem)):
        role = path.stem
        for item in read_lines(path, decoder):
            if isinstance(item, _Note):
                role = item.role
            yield role, item


def _spans(folder: Path) -> Iterator[tuple[str, Span]]:
    for role, item in _walk(folder):
        if isinstance(item, Span):
            yield role, item


def merge(folder: Path, out: Path) -> int:
    """Merges the files of all roles into one Chrome trace, for ui.perfetto.dev or chrome://tracing.

    Reads the files twice, line by line, and never holds them in memory. Each role is a process of the trace; times
    are microseconds since the first piece of work.

    Args:
        folder: The run's `timeline` folder.
        out: The JSON file to write; it appears only once it is whole.

    Returns:
        How many pieces of work the trace holds.

    Raises:
        ZmpslError: A line is damaged; the message names file and line.
    """
    origin_us: int | None = None
    dropped: dict[str, int] = {}
    for role, item in _walk(folder):
        dropped.setdefault(role, 0)
        if isinstance(item, _Note):
            dropped[role] += item.dropped
        else:
            origin_us = item.start_us if origin_us is None else min(origin_us, item.start_us)
    pids = {role: pid for pid, role in enumerate(sorted(dropped, key=natural), start=1)}
    encode = msgspec.json.Encoder().encode
    count = 0
    unfinished = out.with_name(out.name + ".part")
    with unfinished.open("wb") as file:
        file.write(b'{"displayTimeUnit":"ms","otherData":' + encode({"dropped": dropped}) + b',"traceEvents":[')
        comma = b"\n"
        for event in _process_names(pids):
            file.write(comma + encode(event))
            comma = b",\n"
        for role, span in _spans(folder):
            file.write(comma + encode(_trace_event(span, pids[role], origin_us or 0)))
            count += 1
        file.write(b"\n]}\n")
    unfinished.replace(out)
    return count


def _process_names(pids: dict[str, int]) -> Iterator[dict[str, Any]]:
    for role, pid in pids.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": role}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}


def _trace_event(span: Span, pid: int, origin_us: int) -> dict[str, Any]:
    where = f" owner {span.owner}" if span.owner >= 0 else ""
    batch = f" b{span.batch}" if span.batch >= 0 else ""
    micro = f".{span.micro}" if span.micro > 0 else ""
    return {
        "ph": "X",
        "name": f"{span.op}{where}{batch}{micro}",
        "cat": span.op,
        "pid": pid,
        "tid": 0,
        "ts": span.start_us - origin_us,
        "dur": span.duration_us,
        "args": {
            "owner": span.owner,
            "round": span.round,
            "epoch": span.epoch,
            "batch": span.batch,
            "micro": span.micro,
        },
    }


def busy(folder: Path) -> dict[str, dict[str, float]]:
    """Adds up the seconds each role spent on each op over the whole run; roles that kept no trace are not there."""
    totals: dict[str, dict[str, int]] = {}
    for role, span in _spans(folder):
        ops = totals.setdefault(role, {})
        ops[span.op] = ops.get(span.op, 0) + span.duration_us
    return {role: {op: us / 1e6 for op, us in ops.items()} for role, ops in totals.items()}


def round_starts(folder: Path) -> dict[int, int]:
    """Tells when the first work of each round began, Unix microseconds; rounds in ascending order."""
    starts: dict[int, int] = {}
    for _, span in _spans(folder):
        starts[span.round] = min(span.start_us, starts.get(span.round, span.start_us))
    return dict(sorted(starts.items()))


def spans(folder: Path, round: int, until_us: int | None = None) -> dict[str, list[Span]]:
    """Gives the work of one round.

    Args:
        folder: The run's `timeline` folder.
        round: The round, from 0.
        until_us: Leaves out work that began at this Unix time (microseconds) or later.

    Returns:
        Role to its spans, by start; roles in natural order, those without work in that round not there.
    """
    found: dict[str, list[Span]] = {}
    for role, span in _spans(folder):
        if span.round == round and (until_us is None or span.start_us < until_us):
            found.setdefault(role, []).append(span)
    for work in found.values():
        work.sort(key=lambda span: span.start_us)
    return {role: found[role] for role in sorted(found, key=natural)}
