"""The lines of metrics.jsonl: what happened in a run, as typed events, with their writer and readers.

One JSON object per line, told apart by the key "event", for instance

    {"event":"evaluation","time":1700000000.25,"round":0,"accuracy":0.958,"loss":0.1312,"samples":360}

Rounds count from 0. Times are Unix seconds, durations seconds, sizes bytes. A number that is not finite is written
as null. A run that is continued appends to the same file, starting with another plan event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
from msgspec import Struct

from zmpsl.errors import ZmpslError
from zmpsl.observe.jsonl import follow_lines, mend, read_lines
from zmpsl.pool.spill import SpillStats

__all__ = [
    "CommitEvent", "EndEvent", "EvaluationEvent", "Event", "EventLog", "LinkTraffic", "NoticeEvent", "PlanEvent",
    "PlanPart", "ProgressEvent", "RoleStats", "RoundEvent", "follow", "read_events",
]  # fmt: skip


class PlanPart(Struct, frozen=True, kw_only=True):
    """One part of the model: `where` is "owners" or a compute node, blocks are [first, stop), `bytes` its weights."""

    part: int
    where: str
    first: int
    stop: int
    parameters: int
    bytes: int


class RoleStats(Struct, frozen=True, kw_only=True):
    """What one role did in one round; `tasks` counts the forward, backward and evaluation tasks it worked off."""

    forward_s: float
    backward_s: float
    update_s: float
    idle_s: float
    sent_bytes: int
    received_bytes: int
    tasks: int


class LinkTraffic(Struct, frozen=True, kw_only=True):
    """What was sent on one kind of link in one round, as `owner>node-0`: all owners together.

    `raw_bytes` are those of the tensors, `packed_bytes` what was sent of them, `codecs` counts tensors by codec;
    `bytes_per_s` is the link's rate as `codec: auto` measured it, None where it did not.
    """

    raw_bytes: int
    packed_bytes: int
    encode_s: float
    decode_s: float
    codecs: dict[str, int]
    bytes_per_s: float | None = None


class _Event(Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events; `time` is in Unix seconds."""

    time: float


class PlanEvent(_Event, frozen=True, kw_only=True, tag="plan"):
    """The plan was published: rounds start_round to rounds - 1 follow.

    `cuts` are the first blocks of parts 1, 2, ..., P-1; a part's blocks are [first, stop).
    """

    job: str
    version: int
    start_round: int
    rounds: int
    cuts: list[int]
    parts: list[PlanPart]
    owners: int
    nodes: list[str]
    emulated: bool = False


class ProgressEvent(_Event, frozen=True, kw_only=True, tag="progress"):
    """How far the round is.

    `batches` are those done in this round over all owners, `busy` is each compute node's share of time (0 to 1) spent
    working since the last progress event, `bytes` are all bytes that all roles have sent since the run began,
    `predicted_busy` is the share of the round that the planner expects each node to work.
    """

    round: int
    phase: Literal["train", "evaluate", "commit"]
    batches: int
    batches_total: int
    batches_per_s: float
    loss: float | None
    busy: dict[str, float]
    bytes: int
    predicted_busy: dict[str, float] = {}


class RoundEvent(_Event, frozen=True, kw_only=True, tag="round"):
    """A round is over; `bytes` are those that all roles sent in it, `loss` is the mean over its samples.

    `predicted_s` is how long the planner expected it to take until it is committed;
    `predicted_busy_s` how long it expected each compute node to train. `spill` tells what keeping optimiser states
    cost each role, where owners keep theirs, `aside` what setting stalled owners aside cost each node.
    """

    round: int
    seconds: float
    loss: float | None
    samples: int
    batches: int
    bytes: int
    roles: dict[str, RoleStats]
    predicted_s: float | None = None
    predicted_busy_s: dict[str, float] = {}
    links: dict[str, LinkTraffic] = {}
    spill: dict[str, SpillStats] = {}
    aside: dict[str, SpillStats] = {}


class EvaluationEvent(_Event, frozen=True, kw_only=True, tag="evaluation"):
    """The global model after a round; `accuracy` is a share, 0 to 1."""

    round: int
    accuracy: float
    loss: float | None
    samples: int


class CommitEvent(_Event, frozen=True, kw_only=True, tag="commit"):
    """A round counts from now on; `digests` tells what each role stored."""

    round: int
    digests: dict[str, str]


class NoticeEvent(_Event, frozen=True, kw_only=True, tag="notice"):
    """Something a person should know; `place` and `pid` tell of a role that was lost."""

    text: str
    place: str = ""
    pid: int = 0


class EndEvent(_Event, frozen=True, kw_only=True, tag="end"):
    """The run is over; `place` and `pid` tell of a role whose loss has ended it."""

    status: Literal["finished", "failed", "interrupted"]
    text: str
    exit_code: int
    seconds: float
    place: str = ""
    pid: int = 0


Event = PlanEvent | ProgressEvent | RoundEvent | EvaluationEvent | CommitEvent | NoticeEvent | EndEvent


def _decoder() -> msgspec.json.Decoder[Event]:
    decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
    return decoder


class EventLog:
    """Appends events to a file; each is on its way to the disk before `append` returns.

    Args:
        path: The file; it and its folder are made where needed. A half-written last line of an earlier writer is
            cut off.

    Raises:
        ZmpslError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            mend(path, _decoder())
            self._file = path.open("ab")
        except OSError as error:
            raise ZmpslError(f"cannot write {path}: {error.strerror}") from error

    def append(self, event: Event) -> None:
        """Writes one event as one line."""
        self._file.write(msgspec.json.encode(event) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(path: Path) -> Iterator[Event]:
    """Reads the events of a file; a half-written last line is left out.

    Raises:
        ZmpslError: The file cannot be opened, or a finished line is not an event; the message names file and line.
    """
    return read_lines(path, _decoder())


def follow(path: Path, stop: Callable[[], bool], pause: Callable[[], None]) -> Iterator[Event]:
    """Reads the events of a file as it grows; the file need not be there yet.

    Args:
        path: The file.
        stop: Asked before each look at the file; once it says True, what the file holds by then is still read.
        pause: Called between two looks.

    Yields:
        The events of finished lines, in the file's order.

    Raises:
        ZmpslError: A finished line is not an event; the message names file and line.
    """
    return follow_lines(path, _decoder(), stop, pause)
