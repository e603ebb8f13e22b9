"""A task: what travels along a hop. Values only; no socket, no torch."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from zmpsl.transport.mask import KnownMask

__all__ = ["DTYPES", "FLOAT32", "LOSSY_OPS", "Array", "Op", "Task"]

Array = NDArray[np.generic]

# What a tensor on the wire may consist of; the position is the code in the header, 0 means no tensor.
DTYPES: tuple[np.dtype[np.generic], ...] = tuple(
    np.dtype(name) for name in ("<f4", "<f8", "<f2", "u1", "i1", "<i2", "<i4", "<i8", "?")
)
FLOAT32 = DTYPES[0]


class Op(IntEnum):
    """What the receiver shall do. The order of the values is no order of urgency; see `loop.URGENCY`."""

    FORWARD = 1  # smashed data of one micro-batch, down the chain
    BACKWARD = 2  # gradient of the same, up the chain
    EVALUATE = 3  # smashed data that want no gradient
    CLOSE = 4  # the owner has finished its local epochs; down the chain
    PART = 5  # an owner's first and last part, to the aggregator
    GLOBAL = 6  # their average, back to the owner
    CREDIT = 7  # room for more bytes of this owner; handled by the link, never by a role


# Whose tensors, if float32, may be packed with loss: never weights.
LOSSY_OPS = (Op.FORWARD, Op.BACKWARD, Op.EVALUATE)


class Task(Struct, frozen=True):
    """One message of the data plane, on behalf of one data owner.

    Attributes:
        op: What to do.
        plan: Version of the plan it belongs to.
        owner: Index of the data owner.
        round: Round (global epoch).
        epoch: Local epoch inside the round.
        batch: Batch inside the local epoch.
        micro: Micro-batch inside the batch.
        micros: Number of micro-batches of this batch.
        count: CLOSE and PART: samples processed in the round; BACKWARD: samples of the whole batch.
        sender: Place code of who sent it, set by the link: 0 aggregator, 1 + hop compute node, 65535 data owner.
        tensor: Payload or None; C-contiguous, not to be written by the sender until the link let go of it. Tasks with
            a tensor are neither compared nor hashed.
        relu: FORWARD: the tensor is a ReLU's output, so the gradients of its zeros need not come back.
        mask: Where the tensor (FORWARD), or the activation it belongs to (BACKWARD), is 0, if that is a ReLU's output.
            Does not travel.
    """

    op: Op
    plan: int
    owner: int
    round: int
    epoch: int = 0
    batch: int = 0
    micro: int = 0
    micros: int = 1
    count: int = 0
    sender: int = 0
    tensor: Array | None = None
    relu: bool = False
    mask: KnownMask | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, unpacked."""
        return 0 if self.tensor is None else self.tensor.nbytes

    def reply(self, op: Op, tensor: Array | None, mask: KnownMask | None = None) -> Task:
        """Gives the task that answers this one: same owner, round, epoch, batch and micro-batch."""
        return Task(
            op,
            self.plan,
            self.owner,
            self.round,
            self.epoch,
            self.batch,
            self.micro,
            self.micros,
            self.count,
            0,
            tensor,
            op is Op.FORWARD and mask is not None,
            mask,
        )

    def __str__(self) -> str:
        size = "" if self.tensor is None else f" {self.tensor.dtype}{list(self.tensor.shape)}"
        return (
            f"{self.op.name} owner {self.owner} round {self.round} epoch {self.epoch} batch"
            f" {self.batch}.{self.micro}{size}"
        )
