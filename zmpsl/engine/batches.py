"""What a data owner feeds into the chain: training batches cut into micro-batches, and evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zmpsl.data import OwnerData
from zmpsl.job.schema import Job
from zmpsl.randomness import generator

__all__ = ["Batch", "Evaluation", "Tally", "count_batches", "training_batches"]


@dataclass
class Batch:
    """One training batch, and how far its micro-batches are.

    Attributes:
        epoch: Local epoch.
        number: Batch inside the epoch.
        inputs: One tensor per micro-batch.
        targets: Labels of the same.
        sent: Micro-batches that have entered the chain.
        turned: Those that came back and went in again as gradients.
        done: Those whose gradient has come back.
    """

    epoch: int
    number: int
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    sent: int = 0
    turned: int = 0
    done: int = 0

    @property
    def micros(self) -> int:
        """Number of micro-batches."""
        return len(self.inputs)

    @property
    def samples(self) -> int:
        """Samples of the whole batch."""
        return sum(map(len, self.inputs))


@dataclass
class Tally:
    """What the owner has trained in this round."""

    batches: int = 0
    samples: int = 0
    loss_sum: float = 0.0


@dataclass
class Evaluation:
    """Evaluation of a round's model, under way.

    Attributes:
        round: Which round's.
        batches: Sample indices of each batch.
        targets: Labels of the batches that are in the chain.
        sent: Batches that have entered it.
    """

    round: int
    batches: list[NDArray[np.int64]]
    targets: dict[int, Tensor] = field(default_factory=dict)
    sent: int = 0
    correct: int = 0
    total: int = 0
    samples: int = 0
    loss_sum: float = 0.0

    @property
    def over(self) -> bool:
        """True when every batch has come back."""
        return self.sent == len(self.batches) and not self.targets


def _epoch(data: OwnerData, job: Job, owner: int, round_: int, epoch: int) -> list[NDArray[np.int64]]:
    train = job.train
    return data.batches(job.seed, owner, round_, epoch, train.batch_size, train.drop_last, train.max_batches)


def count_batches(data: OwnerData, job: Job, owner: int) -> int:
    """Gives the number of batches of one round."""
    return sum(len(_epoch(data, job, owner, 0, epoch)) for epoch in range(job.train.local_epochs))


def training_batches(data: OwnerData, job: Job, owner: int, round_: int) -> Iterator[Batch]:
    """Gives an owner's batches of a round, all local epochs, made when they are asked for.

    A batch of n samples is cut into min(micro_batches, n) pieces whose sizes differ by at most one, larger ones first.
    """
    for epoch in range(job.train.local_epochs):
        for number, indices in enumerate(_epoch(data, job, owner, round_, epoch)):
            wild = job.data.augment != "none"
            rng = generator(job.seed, "augment", owner, round_, epoch, number) if wild else None
            inputs, targets = (torch.from_numpy(array) for array in data.train.batch(indices, rng))
            pieces = min(job.train.pieces, len(indices))
            yield Batch(epoch, number, torch.tensor_split(inputs, pieces), torch.tensor_split(targets, pieces))
