"""How the tensors of one link are packed and unpacked: codec, known mask, error feedback, and what it all took.

    engine -> task -> Outbox -> Packer (a packing for this tensor) -> wire.messages -> chunks -> Unpacker -> Assembly

A masked chunk holds only the values under the mask, packed by its codec (`none`: as they are).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from zmpsl.codecs import NONE, Codec, Packed, by_name, by_number, qz_of, scratch, topk_of
from zmpsl.errors import RemoteProtocolError
from zmpsl.job.codec import Spec
from zmpsl.kernels import KERNELS
from zmpsl.transport.choice import Chooser, Cost, Rate
from zmpsl.transport.mask import KnownMask, count
from zmpsl.transport.task import FLOAT32, LOSSY_OPS, Op, Task
from zmpsl.transport.wire import CHUNK, Header, Packing

__all__ = ["Packer", "Tally", "Unpacker", "codec_of"]

log = logging.getLogger("zmpsl")
Clock = Callable[[], float]
Bytes = NDArray[np.uint8]


def codec_of(spec: Spec) -> Codec:
    """Gives the codec that a job's text names; `auto` names none."""
    if spec.name == "qz":
        return qz_of(spec.number)
    return topk_of(spec.number) if spec.name == "topk" else by_name(spec.name)


@dataclass(slots=True)
class Tally:
    """What packing did on one link so far; `codecs` counts tensors."""

    raw_bytes: int = 0
    packed_bytes: int = 0
    encode_s: float = 0.0
    codecs: dict[str, int] = field(default_factory=dict)


class _Tensor:
    """Packs the chunks of one tensor."""

    def __init__(self, task: Task, codec: Codec, tally: Tally, clock: Clock, residual: Bytes | None) -> None:
        self._codec = codec
        self._mask = task.mask
        self._backward = task.op is Op.BACKWARD
        self._tally = tally
        self._clock = clock
        self._residual = residual

    def __call__(self, chunk: memoryview, offset: int) -> Packed:
        began = self._clock()
        residual = None if self._residual is None else self._residual[offset : offset + len(chunk)]
        if residual is not None:
            chunk = (np.frombuffer(chunk, np.float32) + residual.view(np.float32)).view(np.uint8).data
        if self._backward and self._mask is not None:
            packed = _pack_masked(self._codec, chunk, self._mask.bits(offset, len(chunk)))
        else:
            packed = self._codec(chunk, offset)
        lossy_forward = self._mask is not None and not self._backward and not self._codec.exact
        if residual is not None or (lossy_forward and packed.number != NONE.number):
            self._look(chunk, offset, packed, residual)
        self._tally.encode_s += self._clock() - began
        self._tally.packed_bytes += len(packed.body)
        return packed

    def _look(self, chunk: memoryview, offset: int, packed: Packed, residual: Bytes | None) -> None:
        """Unpacks a chunk as the receiver will: its zeros are the mask, and what it lost stays for the next tensor."""
        seen = scratch("seen", len(chunk))
        bits = self._mask.bits(offset, len(chunk)) if self._mask is not None and packed.masked else None
        _unpack(packed.number, memoryview(packed.body), seen, bits)
        if self._mask is not None and not self._backward:
            self._mask.note(offset, seen)
        if residual is not None:
            with np.errstate(invalid="ignore"):
                left = np.frombuffer(chunk, np.float32) - seen.view(np.float32)
            if bits is not None:
                left[~np.unpackbits(bits, count=left.size, bitorder="little").astype(bool)] = 0
            residual.view(np.float32)[:] = np.where(np.isfinite(left), left, np.float32(0))


def _pack_masked(codec: Codec, chunk: memoryview, bits: Bytes) -> Packed:
    kept = 4 * count(bits)
    if kept == len(chunk):
        return codec(chunk)
    if not kept:  # no value travels, but some byte must
        return by_name("huff")(memoryview(bytes(len(chunk))))
    dense = scratch("dense", kept)
    KERNELS.pack_into(chunk, bits, dense)
    # A bitmap of what is left would tell nothing that the mask does not.
    body = None if codec.name == "bitmap" else codec.pack(dense.data)
    return Packed(NONE.number, True, dense.tobytes()) if body is None else Packed(codec.number, True, body)


def _unpack(number: int, data: memoryview, destination: Bytes, bits: Bytes | None) -> None:
    codec = by_number(number)
    if bits is None:
        codec.unpack_into(data, destination)
        return
    dense = np.frombuffer(data, np.uint8)
    if codec is not NONE:
        dense = scratch("dense", 4 * count(bits))
        codec.unpack_into(data, dense)
    try:
        KERNELS.unpack_into(dense, bits, destination)
    except ValueError as error:
        raise RemoteProtocolError(f"a masked chunk of {len(data)} bytes cannot be unpacked: {error}") from error


class Packer:
    """Gives the packing of each tensor on one link.

    Args:
        name: Of the link, for the log.
        spec_of: Gives the codec of each kind of task.
        clock: Gives seconds.

    Attributes:
        tally: What it did so far.
        rate: The link's; a driver keeps it up to date where `adaptive`.
    """

    def __init__(self, name: str, spec_of: Callable[[Op], Spec], clock: Clock = time.perf_counter) -> None:
        self.name = name
        self.tally = Tally()
        self.rate = Rate()
        self._specs = {op: spec_of(op) for op in Op}
        self._codecs = {op: codec_of(spec) for op, spec in self._specs.items() if spec.name != "auto"}
        self._choosers = {
            op: Chooser(spec.within if op in LOSSY_OPS else "lossless")
            for op, spec in self._specs.items()
            if spec.name == "auto"
        }
        self._chosen: dict[Op, str] = {}
        self._clock = clock
        self._residuals: dict[tuple[Op, int, int], tuple[tuple[int, int], Bytes]] = {}

    @property
    def adaptive(self) -> bool:
        """Whether any codec is chosen by measurement."""
        return bool(self._choosers)

    @property
    def chosen(self) -> str:
        """What is chosen by measurement at present, such as `forward huff, backward none`."""
        return ", ".join(f"{op.name.lower()} {name}" for op, name in sorted(self._chosen.items()))

    def __call__(self, task: Task) -> Packing:
        """Gives the packing of a task's tensor."""
        if task.tensor is None:
            return NONE
        codec, tally, nbytes = self._codec_for(task), self.tally, task.nbytes
        tally.raw_bytes += nbytes
        tally.codecs[codec.name] = tally.codecs.get(codec.name, 0) + 1
        if codec is NONE:
            tally.packed_bytes += nbytes
            return NONE
        return _Tensor(task, codec, self.tally, self._clock, self._residual(task))

    def queued(self, task: Task) -> Task:
        """Gives a task that is about to wait, without the activation that its mask would hold on to."""
        if task.mask is None or task.op is not Op.BACKWARD:
            return task
        if self._specs[task.op].name == "none":
            return structs.replace(task, mask=None)
        task.mask.settle()
        return task

    def _codec_for(self, task: Task) -> Codec:
        codec = self._codecs.get(task.op) or self._choose(task)
        if codec.exact:
            return codec
        fits = task.op in LOSSY_OPS and task.tensor is not None and task.tensor.dtype == FLOAT32
        return codec if fits else NONE

    def _choose(self, task: Task) -> Codec:
        chooser, rate, now = self._choosers[task.op], self.rate.bytes_per_s, self._clock()
        before = chooser.name
        for name in chooser.wanted(now, rate, task.nbytes):
            chooser.note(name, self._try(by_class(name), task), now)
        name = chooser.choose(now, rate, task.nbytes, -(-task.nbytes // CHUNK))
        if rate is not None:
            self._chosen[task.op] = chooser.name
        if chooser.name != before and rate is not None:
            log.info(
                "%s: %s packs by %s instead of %s, the link carries %.4g Mbit/s",
                self.name, task.op.name, chooser.name, before, 8e-6 * rate,
            )  # fmt: skip
        return by_class(name)

    def _try(self, codec: Codec, task: Task) -> Cost:
        """Packs and unpacks a task's first chunk, and gives what that took."""
        if task.tensor is None:
            raise ValueError(f"{task} has no tensor to try a codec on")
        chunk = task.tensor.reshape(-1).view(np.uint8)[:CHUNK]
        mask = task.mask if task.op is Op.BACKWARD else None
        bits = None if mask is None else mask.bits(0, chunk.nbytes)
        began = self._clock()
        packed = codec(chunk.data) if bits is None else _pack_masked(codec, chunk.data, bits)
        between = self._clock()
        _unpack(packed.number, memoryview(packed.body), scratch("seen", chunk.nbytes), bits if packed.masked else None)
        ended = self._clock()
        return Cost(len(packed.body) / chunk.nbytes, (between - began) / chunk.nbytes, (ended - between) / chunk.nbytes)

    def _residual(self, task: Task) -> Bytes | None:
        """Gives what the last tensor of this owner and micro-batch lost in this round, where that is to be made up."""
        if not self._specs[task.op].feedback or task.tensor is None:
            return None
        key = (task.op, task.owner, task.micro)
        now = (task.plan, task.round)
        before, residual = self._residuals.get(key, (now, None))
        if residual is None or before != now or residual.nbytes != task.nbytes:
            residual = np.zeros(task.nbytes, np.uint8)
            self._residuals[key] = now, residual
        return residual


def by_class(name: str) -> Codec:
    """Gives a codec that `auto` may choose; qz is that of the class slow-link."""
    return qz_of(0.5) if name == "qz" else by_name(name)


class Unpacker:
    """Unpacks what arrives at one role.

    Args:
        known: Gives the mask of the activation that a gradient belongs to; None where we have none.
        clock: Gives seconds.

    Attributes:
        seconds: Time spent so far, by place code of the sender.
    """

    def __init__(self, known: Callable[[Task], KnownMask | None], clock: Clock = time.perf_counter) -> None:
        self._known = known
        self._clock = clock
        self.seconds: dict[int, float] = {}

    def __call__(self, header: Header, data: memoryview, destination: Bytes) -> None:
        """Unpacks a chunk.

        Args:
            header: Its header.
            data: The chunk as it arrived.
            destination: Exactly as many bytes as the chunk has unpacked.

        Raises:
            RemoteProtocolError: The bytes are not what their header says, or masked and there is no such mask.
        """
        if header.codec == NONE.number and not header.masked:
            NONE.unpack_into(data, destination)
            return
        began = self._clock()
        bits = None
        if header.masked:
            mask = self._known(header.task)
            if mask is None or mask.nbytes != header.total:
                raise RemoteProtocolError(f"{header.task}: masked, but no activation behind a ReLU waits for it here")
            bits = mask.bits(header.offset, header.raw)
        _unpack(header.codec, data, destination, bits)
        sender = header.task.sender
        self.seconds[sender] = self.seconds.get(sender, 0.0) + self._clock() - began
