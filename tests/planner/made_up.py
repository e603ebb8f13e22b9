"""Profiles made up for a job's model."""

from __future__ import annotations

import msgspec

from zmpsl.engine.build import summarise
from zmpsl.job.schema import Job
from zmpsl.plan import fingerprint
from zmpsl.profiles import BlockProfile, Profile, Timing, optimizer_name

__all__ = ["profile"]


def profile(settings: Job, seconds: list[float], **changes: object) -> Profile:
    """A profile of the job's model in which block i takes `seconds[i]` each way."""
    blocks = summarise(settings.model)
    return msgspec.structs.replace(
        Profile(
            model=settings.model.name, fingerprint=fingerprint(blocks), model_blocks=len(blocks),
            batch_size=settings.train.batch_size, optimizer=optimizer_name(settings.optimizer), threads=1, cores=64,
            torch="2", host="h", repeats=1, input_shape=(1, 8, 8), input_dtype="float32", task_s=0.0, step_s=0.0,
            blocks={
                index: BlockProfile(
                    name="B", forward=Timing(s, s, s), backward=Timing(s, s, s), update=Timing(0.0, 0.0, 0.0),
                    parameter_bytes=4, state_bytes=4, optimizer_bytes=4, saved_bytes=4, output_bytes=4,
                )
                for index, s in enumerate(seconds)
            },
        ),
        **changes,
    )  # fmt: skip
