"""Profiles of a few blocks with round numbers, put together as the manager does."""

from __future__ import annotations

import msgspec
from helpers import job

from zmpsl.planner.measured import Measured, MeasuredNode
from zmpsl.profiles import BlockProfile, Profile, Timing

__all__ = ["SETTINGS", "block", "measured", "profile"]

SETTINGS = ["train.batch_size=8", "owners=3", "compute_nodes=2"]


def block(seconds: float, parameters: int = 10, saved: int = 100, output: int = 7) -> BlockProfile:
    """Forward takes `seconds`, backward twice that, the update a tenth."""
    times = [Timing(s, s, s) for s in (seconds, 2 * seconds, 0.1 * seconds)]
    return BlockProfile(
        name="B", forward=times[0], backward=times[1], update=times[2], parameter_bytes=parameters,
        state_bytes=parameters + 2, optimizer_bytes=parameters, saved_bytes=saved, output_bytes=output,
    )  # fmt: skip


def profile(seconds: list[float], **changes: object) -> Profile:
    made = Profile(
        model="m", fingerprint="f", model_blocks=len(seconds), batch_size=8, optimizer="sgd+momentum", threads=1,
        cores=2, torch="2", host="h", repeats=1, input_shape=(1,), input_dtype="float32", task_s=0.5, step_s=0.25,
        blocks={index: block(s) for index, s in enumerate(seconds)},
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def measured(*overrides: str, seconds: tuple[float, ...] = (1, 2, 3, 4, 5, 6), **node: object) -> Measured:
    one = profile(list(seconds))
    settings = job(*SETTINGS, *overrides)
    names = [f"node-{hop}" for hop in range(settings.nodes)]
    return Measured(settings, tuple(MeasuredNode(name, one, **node) for name in names), one)
