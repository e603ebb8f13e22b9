"""What a model's blocks cost on one device, as measured: the values, their file, and what is checked in them.

A profile is small JSON. It holds for one model, one (micro-)batch size, one optimiser and one number of threads; the
blocks are keyed by their number in the model, for a device measures only those it could hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.job.schema import Job, Optimizer
from zmpsl.whole_file import replacing

__all__ = [
    "BlockProfile",
    "MessageCost",
    "Profile",
    "Timing",
    "check_profile",
    "cut_profile",
    "optimizer_name",
    "read_profile",
    "require",
    "write_profile",
]

VERSION = 1


class Timing(Struct, frozen=True, array_like=True):
    """Seconds of one kind of work: median over repeats, and the middle half of them from `low_s` to `high_s`."""

    median_s: float
    low_s: float
    high_s: float


class MessageCost(Struct, frozen=True, forbid_unknown_fields=True):
    """What a message costs a role through the sockets of its own device, without a codec: seconds, and seconds a byte.

    Attributes:
        send_s: Of the role that sends, which does not compute meanwhile.
        receive_s: Likewise of the one that receives.
        transit_s: Between the two, on one device: nobody waits for it but the task.
        processor_s: Of all threads on both ends.
    """

    send_s: float = 0.0
    receive_s: float = 0.0
    transit_s: float = 0.0
    processor_s: float = 0.0
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0
    transit_s_per_byte: float = 0.0
    processor_s_per_byte: float = 0.0

    def sending_s(self, messages: float, nbytes: float) -> float:
        """Gives the sender's seconds for some messages with so many bytes in all."""
        return messages * self.send_s + nbytes * self.send_s_per_byte

    def receiving_s(self, messages: float, nbytes: float) -> float:
        """Gives the receiver's, likewise."""
        return messages * self.receive_s + nbytes * self.receive_s_per_byte

    def working_s(self, messages: float, nbytes: float) -> float:
        """Gives the processor's on both ends, likewise."""
        return messages * self.processor_s + nbytes * self.processor_s_per_byte


class BlockProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One block for one micro-batch.

    Attributes:
        name: Class of the block.
        forward: Forward in training mode; of the model's last block without the loss.
        backward: Backward; of the model's last block with the loss.
        update: One optimiser step of the block's parameters.
        parameter_bytes: Trained parameters; their gradients need as much again.
        state_bytes: Parameters and buffers.
        optimizer_bytes: What the optimiser keeps for the parameters.
        saved_bytes: What autograd keeps from forward to backward: each storage once, no parameters and no buffers.
        output_bytes: Activations at the cut behind the block; gradients there are as large.
    """

    name: str
    forward: Timing
    backward: Timing
    update: Timing
    parameter_bytes: int
    state_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    output_bytes: int


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Blocks of one model on one device.

    Attributes:
        version: Of this form.
        model: Name of the model.
        fingerprint: Of the model's block list.
        model_blocks: How many blocks the model has.
        batch_size: Samples in what was measured: a micro-batch where batches are cut into several.
        optimizer: Name, with `+momentum` where there is one.
        threads: torch threads.
        cores: Processor cores the process may use.
        torch: torch's version.
        host: Name of the device.
        repeats: Fewest measurements a median was taken of.
        input_shape: Of one sample.
        input_dtype: NumPy name of the input's dtype.
        task_s: Fixed seconds of one forward or backward task, whatever blocks it runs through.
        step_s: Fixed seconds of one optimiser step, whatever parameters it has.
        add_s_per_byte: Seconds to take one byte of a replica's state into the average.
        mean_s_per_byte: Seconds to make one byte of the mean, and of its digest.
        store_s: Seconds to store a file of a checkpoint where the device keeps its runs.
        store_s_per_byte: And of each byte in it.
        slow_down: By how much the device's speed is imitated to be lower; all seconds are to be multiplied by it.
        messages: What a message costs; None where it was not measured.
        blocks: By number in the model.
    """

    version: int = VERSION
    model: str
    fingerprint: str
    model_blocks: int
    batch_size: int
    optimizer: str
    threads: int
    cores: int
    torch: str
    host: str
    repeats: int
    input_shape: tuple[int, ...]
    input_dtype: str
    task_s: float
    step_s: float
    add_s_per_byte: float = 0.0
    mean_s_per_byte: float = 0.0
    store_s: float = 0.0
    store_s_per_byte: float = 0.0
    slow_down: float = 1.0
    messages: MessageCost | None = None
    blocks: dict[int, BlockProfile]

    @property
    def spread(self) -> float:
        """How far apart the middle half of the measurements lies, as a share of the medians; over all blocks."""
        each = [time for block in self.blocks.values() for time in (block.forward, block.backward, block.update)]
        whole = math.fsum(timing.median_s for timing in each)
        return math.fsum(timing.high_s - timing.low_s for timing in each) / whole if whole else 0.0


def optimizer_name(settings: Optimizer) -> str:
    """Gives the name under which a profile knows the optimiser: what it keeps per parameter depends on it."""
    return f"{settings.name}+momentum" if settings.name == "sgd" and settings.momentum else settings.name


def check_profile(profile: Profile, where: str) -> None:
    """Checks the numbers of a profile, which came from a file or over the network.

    Args:
        profile: The profile.
        where: Names file or node in messages.

    Raises:
        JobError: Another version, no block, or a number that is negative or not finite; the message names the block.
    """
    again = "profile the model again"
    if profile.version != VERSION:
        raise JobError(f"{where}: the profile has version {profile.version}, this zmpsl reads {VERSION}: {again}")
    if not profile.blocks:
        raise JobError(f"{where}: the profile is empty: it has no block of {profile.model}; {again}")
    for field in ("batch_size", "threads", "cores", "model_blocks"):
        if getattr(profile, field) < 1:
            raise JobError(f"{where}: {field} is {getattr(profile, field)}; it must be at least 1: {again}")
    names = ("task_s", "step_s", "add_s_per_byte", "mean_s_per_byte", "store_s", "store_s_per_byte")
    numbers = [(name, getattr(profile, name), -1) for name in names]
    if profile.messages is not None:
        numbers += [(f"messages.{name}", value, -1) for name, value in msgspec.structs.asdict(profile.messages).items()]
    if not (math.isfinite(profile.slow_down) and profile.slow_down > 0):
        raise JobError(f"{where}: slow_down is {profile.slow_down}; it must be a finite number above 0")
    for index, block in profile.blocks.items():
        if not 0 <= index < profile.model_blocks:
            raise JobError(f"{where}: block {index} is not one of the model's {profile.model_blocks}: {again}")
        for kind in ("forward", "backward", "update"):
            timing = getattr(block, kind)
            numbers += [(f"{kind}.{name}", getattr(timing, name), index) for name in ("median_s", "low_s", "high_s")]
        for name in ("parameter_bytes", "state_bytes", "optimizer_bytes", "saved_bytes", "output_bytes"):
            numbers.append((name, getattr(block, name), index))
    for name, value, index in numbers:
        if not (math.isfinite(value) and value >= 0):
            place = f"block {index} ({profile.blocks[index].name}): " if index >= 0 else ""
            raise JobError(f"{where}: {place}{name} is {value}; it must be a finite number of at least 0: {again}")


def require(
    profile: Profile, where: str, fingerprint: str, samples: int, optimizer: str, wanted: Iterable[int]
) -> None:
    """Checks that a profile is of this model, batch size and optimiser, and has the blocks wanted.

    Raises:
        JobError: It is not, or has not; the message has both figures.
    """
    if profile.fingerprint != fingerprint:
        raise JobError(
            f"{where}: the profile is of a model with fingerprint {profile.fingerprint} ({profile.model}), the job's"
            f" has {fingerprint}: profile the job's model"
        )
    if profile.batch_size != samples:
        raise JobError(
            f"{where}: the profile is for {profile.batch_size} samples at a time, the job passes {samples}"
            " (train.batch_size / train.micro_batches): profile again with the job's batch size"
        )
    if profile.optimizer != optimizer:
        raise JobError(
            f"{where}: the profile is for optimiser {profile.optimizer}, the job has {optimizer}: profile again"
        )
    missing = [index for index in wanted if index not in profile.blocks]
    if missing:
        numbers = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
        raise JobError(f"{where}: the profile lacks block {numbers} of {profile.model}: profile these blocks too")


def cut_profile(profile: Profile, job: Job, samples: int) -> Profile:
    """Gives a profile of the job's whole batches as one of pieces of them; any other stays as it is.

    Forward, backward and bytes are taken to grow with the samples; a task's fixed seconds and the update do not.

    Args:
        profile: The profile.
        job: Its batch size counts.
        samples: Of a piece.
    """
    whole = job.train.batch_size
    if profile.batch_size != whole or samples == whole:
        return profile

    def part(time: Timing) -> Timing:
        return Timing(*(value * samples / whole for value in (time.median_s, time.low_s, time.high_s)))

    blocks = {
        index: msgspec.structs.replace(
            block,
            forward=part(block.forward),
            backward=part(block.backward),
            saved_bytes=-(-block.saved_bytes * samples // whole),
            output_bytes=-(-block.output_bytes * samples // whole),
        )
        for index, block in profile.blocks.items()
    }
    return msgspec.structs.replace(profile, batch_size=samples, blocks=blocks)


def read_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
        JobError: The file cannot be read, is no profile, or holds a number that cannot be.
    """
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JobError(f"{path}: is no profile: {error}; write one with `zmpsl profile`") from error
    check_profile(profile, str(path))
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    """Writes a profile in one step.

    Raises:
        JobError: The file cannot be written.
    """
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1))
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror}") from error
