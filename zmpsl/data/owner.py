"""What one data owner holds: its training samples, its test samples, and the batches of each local epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zmpsl.data.partitions import partition
from zmpsl.data.samples import Samples, Split
from zmpsl.errors import DataError
from zmpsl.job.schema import Data, Evaluate
from zmpsl.randomness import generator

__all__ = ["OwnerData", "owner_data"]

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class OwnerData:
    """The samples of one data owner; `test` may be empty where there are fewer test samples than owners."""

    train: Samples
    test: Samples

    def batches(
        self,
        seed: int,
        owner: int,
        round: int,
        epoch: int,
        batch_size: int,
        drop_last: bool = False,
        max_batches: int | None = None,
    ) -> list[Indices]:
        """Gives the batches of one local epoch, as indices into `train`.

        The order is `generator(seed, "shuffle", owner, round, epoch).permutation(n)`, cut into consecutive pieces.

        Args:
            seed: The job's seed.
            owner: Which owner this is.
            round: The round.
            epoch: The local epoch within the round.
            batch_size: Samples per batch.
            drop_last: Leave out a last batch that is shorter.
            max_batches: Give no more than this many.

        Returns:
            Index arrays `(B,) int64`, the last one shorter where the samples do not divide.

        Raises:
            DataError: `drop_last` would leave no batch at all.
        """
        count = len(self.train)
        if drop_last and count < batch_size:
            raise DataError(
                f"owner {owner} has {count} training samples, fewer than batch_size {batch_size}, and train.drop_last "
                "leaves it no batch: take a smaller batch_size or drop_last: false"
            )
        order = generator(seed, "shuffle", owner, round, epoch).permutation(count)
        end = count - count % batch_size if drop_last else count
        batches = [order[start : start + batch_size] for start in range(0, end, batch_size)]
        return batches if max_batches is None else batches[:max_batches]


def owner_data(split: Split, job_data: Data, evaluate: Evaluate, owners: int, owner: int, seed: int) -> OwnerData:
    """Takes one owner's samples out of a data set, as copies, so that the rest can be freed.

    Args:
        split: The whole data set.
        job_data: The job's section `data`: how samples are dealt out.
        evaluate: The job's section `evaluate`: what the owner tests on. `shared`: the test samples `owner`,
            `owner + owners`, ..., or all where owners have data of their own; `owners`: a share of
            its own samples, drawn by `generator(seed, "partition", owner)`, rounded, at least one.
        owners: Number of owners.
        owner: Which one, from 0.
        seed: The job's seed.

    Returns:
        Training samples, in the order of the data set, and test samples.

    Raises:
        DataError: The samples do not suffice, or are no images but are to be augmented.
    """
    if job_data.augment != "none" and split.train.inputs.ndim != 4:
        raise DataError(
            f"data.augment {job_data.augment!r} is for images (N, C, H, W), but the inputs of {job_data.name!r} are "
            f"{split.train.inputs.shape}: set data.augment: none"
        )
    if not 0 <= owner < owners:
        raise DataError(f"owner {owner} has no data: the job has {owners} owners, numbered from 0")
    own = job_data.partition.kind == "own"
    mine = (
        np.arange(len(split.train)) if own else partition(split.train.targets, owners, job_data.partition, seed)[owner]
    )
    if evaluate.data == "shared" and own:
        return OwnerData(split.train, split.test)
    if evaluate.data == "shared":
        return OwnerData(split.train.subset(mine), split.test.subset(np.arange(owner, len(split.test), owners)))
    if len(mine) < 2:
        raise DataError(f"owner {owner} has {len(mine)} sample, but evaluate.data 'owners' needs one more to test on")
    held = min(max(1, round(evaluate.share * len(mine))), len(mine) - 1)
    order = generator(seed, "partition", owner).permutation(len(mine))
    return OwnerData(split.train.subset(np.sort(mine[order[held:]])), split.train.subset(np.sort(mine[order[:held]])))
