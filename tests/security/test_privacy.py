"""Data and labels stay with their owner: nothing that leaves a role holds them, in any form a program might send.

A run in memory with all its bytes captured, on data of which every sample is a canary. What the scan looks for is
recorded where the owner's engine is handed its inputs and targets, so it is exactly what a leak would send.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from helpers import job
from packed_frames import tensors
from torch import nn

from zmpsl.codecs import NONE, by_number
from zmpsl.data import Samples, Split
from zmpsl.engine.owner import OwnerEngine
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.messages import encode
from zmpsl.transport.task import Op, Task
from zmpsl.transport.wire import CHUNK, messages

RARE = np.array([37, 91, 173, 211, 250])
FEATURES = 48
# A leak shorter than this could be met by chance, and tells next to nothing.
PIECE = 8


# -- data and models of the run ----------------------------------------------------------------------------------------


def canaries(folder: str | None, kind: str = "float32") -> Split:
    """64 + 32 samples of random bits nobody would come up with, and rare labels."""
    rng = np.random.default_rng(77)
    count = 96
    inputs: np.ndarray[Any, Any]
    if kind == "float32":
        inputs = rng.random((count, FEATURES), np.float32)
    else:
        inputs = rng.integers(0, 256, (count, 1, 6, 8), np.uint8)
    targets = rng.choice(RARE, count)
    return Split(Samples(inputs[:64], targets[:64]), Samples(inputs[64:], targets[64:]), 256)


def net(leaky: bool = False) -> list[nn.Module]:
    """Four blocks; the first of the leaky one hands the inputs on as they are."""
    first = nn.Flatten() if leaky else nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 8), nn.ReLU())
    return [first, nn.Linear(FEATURES if leaky else 8, 8), nn.Linear(8, 8), nn.Linear(8, 256)]


def settings(*overrides: str) -> Job:
    """Two owners, two rounds with evaluation, micro-batches of eight samples."""
    return job(
        "owners=2", "train.rounds=2", "train.local_epochs=1", "train.batch_size=16", "train.micro_batches=2",
        "evaluate.batch_size=16", "model.name=test_privacy:net", "data.name=test_privacy:canaries", *overrides,
    )  # fmt: skip


# -- what is looked for, and where -------------------------------------------------------------------------------------


@dataclass
class Secrets:
    """What owners were handed."""

    inputs: list[np.ndarray[Any, Any]] = field(default_factory=list)
    targets: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def needles(self) -> Iterator[tuple[str, bytes]]:
        """Every form in which a row of the inputs, or the labels of a batch, could travel."""
        for rows in self.inputs:
            for row in rows.reshape(len(rows), -1):
                # A run of a row is enough to give it away; whole rows would miss one that is cut.
                for start in range(0, row.size - 15, 16):
                    yield from (("inputs", form) for form in forms(row[start : start + 16]))
        for labels in self.targets:
            yield from (("labels", form) for form in forms(labels))


def forms(values: np.ndarray[Any, Any]) -> set[bytes]:
    """The bytes of some numbers in the types and orders in use, and as msgpack and JSON write them."""
    numbers = values.astype(np.float64)
    found = {values.astype(kind).tobytes() for kind in ("<f2", "<f4", "<f8", ">f4", ">f8")}
    whole = np.rint(numbers * 255) if values.dtype.kind == "f" and numbers.max() <= 1 else np.rint(numbers)
    found |= {whole.astype(kind).tobytes() for kind in ("u1", "<i2", "<i4", "<i8", ">i4", ">i8")}
    for plain in (values.tolist(), whole.astype(int).tolist()):
        found |= {b"".join(msgspec.msgpack.encode(each) for each in plain), msgspec.json.encode(plain)[1:-1]}
    return {form for form in found if len(form) >= PIECE}


def found_in(haystacks: Iterable[bytes], secrets: Secrets) -> set[str]:
    """Which secrets some bytes hold."""
    # One string to search; the gap cannot be part of any needle.
    text = b"\xa5ZzZ\xa5".join(haystacks)
    return {what for what, needle in set(secrets.needles()) if needle in text}


class Captured:
    """A finished run with everything that was said."""

    def __init__(self, wanted: Job, monkeypatch: pytest.MonkeyPatch, runs: Path | None = None) -> None:
        self.secrets = Secrets()
        self.control: list[bytes] = []
        self._record(monkeypatch)
        self.run = MemoryRun(wanted, seed=3, runs=runs, capture=True)
        hear = self.run.manager.hear

        def overhear(who: bytes, message: Any) -> Iterator[Any]:
            self.control.append(encode(message))
            for action in hear(who, message):
                if hasattr(action, "message"):
                    self.control.append(encode(action.message))
                yield action

        monkeypatch.setattr(self.run.manager, "hear", overhear)
        self.run.run()
        self.tensors = tensors(self.run.frames)

    @property
    def data(self) -> list[bytes]:
        """Everything that travelled between members: as it was, and with chunks joined and unpacked."""
        return [*self.run.frames, *(data for _, data in self.tensors.values())]

    def _record(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, position in (("first_forward", 0), ("evaluate_first", 0), ("last_part", 1), ("evaluate_last", 1)):
            keep = self.secrets.targets if position else self.secrets.inputs
            monkeypatch.setattr(OwnerEngine, name, _listening(getattr(OwnerEngine, name), position, keep))


def _listening(method: Any, position: int, keep: list[np.ndarray[Any, Any]]) -> Any:
    def listen(self: OwnerEngine, *args: Any, **named: Any) -> Any:
        keep.append(args[position].detach().clone().numpy())
        return method(self, *args, **named)

    return listen


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["data.args.kind=uint8"],
        ["codec.activations=lz4", "codec.gradients=lz4", "codec.parts=lz4"],
        ["evaluate.data=owners", "evaluate.share=0.5", "optimizer.state=average", "train.schedule=gpipe"],
        ["compute_nodes=1", "cuts=[2, 3]"],
    ],
    ids=["float32", "uint8", "lz4", "own-test-data", "longer-first-part"],
)
def test_no_frame_holds_inputs_or_labels(more: list[str], monkeypatch: pytest.MonkeyPatch):
    """Neither data plane nor control plane, as sent or with chunks joined and unpacked."""
    captured = Captured(settings(*more), monkeypatch)
    secrets = captured.secrets
    assert sum(len(rows) for rows in secrets.inputs) >= 2 * 48 + 2 * 16
    assert all(len(labels) >= PIECE for labels in secrets.targets)
    assert found_in(captured.data, secrets) == set()
    assert found_in(captured.control, secrets) == set()


def test_nothing_that_travels_looks_like_labels(monkeypatch: pytest.MonkeyPatch):
    """Activations and gradients are float32 with more than a number per sample; parts are as long as their weights."""
    captured = Captured(settings(), monkeypatch)
    seen = set()
    for header, _ in captured.tensors.values():
        seen.add(header.task.op)
        if header.task.op in (Op.PART, Op.GLOBAL):
            assert header.shape == captured.run.members["aggregator"].layout.nbytes * np.ones(1, int)
            assert header.dtype == np.uint8
        else:
            assert header.dtype == np.float32
            assert len(header.shape) == 2
            assert header.shape[1] == 8
    assert seen == {Op.FORWARD, Op.BACKWARD, Op.EVALUATE, Op.PART, Op.GLOBAL}


def test_run_folder_holds_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Record, metrics, timelines and checkpoints, which may be copied about, tell nothing of single samples."""
    captured = Captured(settings(), monkeypatch, tmp_path)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 10
    assert found_in(files, captured.secrets) == set()


def test_scan_finds_inputs_that_are_sent(monkeypatch: pytest.MonkeyPatch):
    """A first part that hands its inputs on is the user's own leak, and shows that the scan sees one."""
    captured = Captured(settings("model.args.leaky=true"), monkeypatch)
    assert found_in(captured.data, captured.secrets) == {"inputs"}


@pytest.mark.parametrize("kind", ["int64", "int32", "int16", "uint8", "float32", "float64"])
def test_scan_finds_labels_that_are_sent(kind: str):
    """In each type, also across the border of two chunks and through a codec."""
    secrets = Secrets(targets=[np.random.default_rng(1).choice(RARE, 8)])
    size = np.dtype(kind).itemsize
    tensor = np.zeros(2 * CHUNK // size, kind)
    tensor[CHUNK // size - 4 : CHUNK // size + 4] = secrets.targets[0]
    for codec in (NONE, by_number(1)):
        sent = messages(Task(Op.FORWARD, 1, 0, 0, tensor=tensor), codec, 0)
        frames = [bytes(part or b"") for message in sent for part in message]
        assert found_in(frames, secrets) == set()
        assert found_in((data for _, data in tensors(frames).values()), secrets) == {"labels"}


def test_scan_finds_what_is_said(monkeypatch: pytest.MonkeyPatch):
    """Numbers in a control message, as msgpack writes them."""
    secrets = Secrets([np.random.default_rng(1).random((2, 32), np.float32)], [np.resize(RARE, 9)])
    assert found_in([msgspec.msgpack.encode({"x": secrets.inputs[0].tolist()})], secrets) == {"inputs"}
    assert found_in([msgspec.msgpack.encode({"y": secrets.targets[0].tolist()})], secrets) == {"labels"}
    assert found_in([msgspec.json.encode({"y": secrets.targets[0].tolist()})], secrets) == {"labels"}
    assert found_in([torch.zeros(1000).numpy().tobytes()], secrets) == set()
