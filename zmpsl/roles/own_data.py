"""What a data owner reads: the whole data set for the first description, its share once it knows which owner it is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zmpsl.data import OwnerData, Split, load, owner_data
from zmpsl.errors import DataError
from zmpsl.job.schema import Data, Job

__all__ = ["OwnData"]


class OwnData:
    """Reads each data set once, and each share once per job.

    Args:
        folder: Folder of this owner's data, instead of the job's `data.dir`.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._whole: tuple[tuple[Data, int], Split] | None = None  # kept until the share is known
        self._share: tuple[tuple[Job, int], OwnerData] | None = None

    def whole(self, job: Job, place: str) -> Split:
        """Gives the job's whole data set.

        Args:
            job: The job.
            place: Who reads, for messages.

        Raises:
            DataError: It cannot be read.
        """
        if self._whole is None or self._whole[0] != (job.data, job.seed):
            data = job.data if self.folder is None else msgspec.structs.replace(job.data, dir=str(self.folder))
            try:
                self._whole = (job.data, job.seed), load(data, job.seed)
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
        return self._whole[1]

    def share(self, job: Job, index: int, place: str) -> OwnerData:
        """Gives an owner's own samples; a plan that only follows a lost role changes nothing.

        Args:
            job: The job.
            index: The owner.
            place: Who reads, for messages.

        Raises:
            DataError: They cannot be read, or are fewer than one batch.
        """
        if self._share is None or self._share[0] != (job, index):
            split, self._whole = self.whole(job, place), None
            try:
                mine = owner_data(split, job.data, job.evaluate, job.owners, index, job.seed)
            except DataError as error:
                raise DataError(f"{place}: {error}") from error
            if len(mine.train) < job.train.batch_size:
                raise DataError(
                    f"owner {index} has {len(mine.train)} training samples, fewer than one batch of"
                    f" {job.train.batch_size} (train.batch_size); use a smaller batch, fewer owners or another"
                    " data.partition"
                )
            self._share = (job, index), mine
        return self._share[1]
