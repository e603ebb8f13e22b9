"""A member's answer when the manager asks for a profile: measured now, or kept from an earlier run on this device.

Kept profiles lie in $ZMPSL_CACHE, else in $XDG_CACHE_HOME/zmpsl, else in ~/.cache/zmpsl. Their names tell apart all
that seconds depend on, other work on the device excepted: a profile that was measured amid such work is not kept.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zmpsl.engine.profile import Effort, conditions, measure
from zmpsl.errors import JobError
from zmpsl.job.schema import Job
from zmpsl.messages import Profiled
from zmpsl.plan import Block, fingerprint
from zmpsl.profiles import Profile, optimizer_name, read_profile, write_profile
from zmpsl.trials.store import storing_cost

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["profile_for", "profiled"]

REPEATS = 9
# A role that waits between its tasks finds the processor cold; longer rests make it no colder.
REST_S = 0.02
# Where the middle half of the measurements is as wide as half a median, somebody else was at work.
CALM = 0.5


def profiled(
    job: Job,
    summary: tuple[Block, ...],
    wanted: Collection[int],
    inputs: Tensor,
    rests: bool = False,
    runs: Path | None = None,
) -> Profiled:
    """Gives the answer for the manager. A model that cannot be profiled may still be trained, so that is no trouble.

    Arguments are those of `profile_for`, and `runs`, the folder in which checkpoints are stored.
    """
    try:
        found = profile_for(job, summary, wanted, inputs, rests)
        store_s, each_s = storing_cost(runs)
        return Profiled(profile=msgspec.structs.replace(found, store_s=store_s, store_s_per_byte=each_s))
    except JobError as error:
        return Profiled(profile=None, text=str(error)[:3900])


def profile_for(
    job: Job, summary: tuple[Block, ...], wanted: Collection[int], inputs: Tensor, rests: bool = False
) -> Profile:
    """Profiles blocks for a job, or finds them profiled already.

    Args:
        job: The job.
        summary: The block list of its model.
        wanted: Numbers of the blocks.
        inputs: One micro-batch for block 0.
        rests: The role waits or sleeps between its tasks.

    Raises:
        JobError: A block cannot be run.
    """
    effort = Effort(REPEATS, job.planning.budget_s, REST_S if rests else 0.0)
    path = _kept_at(job, summary, wanted, inputs, effort)
    try:
        return read_profile(path)
    except JobError:  # none there, or damaged
        pass
    from zmpsl.trials.message import message_cost  # loads zmq, which roles do without

    found = measure(job.model, summary, wanted, inputs, job.optimizer, effort)
    largest = max(block.output_bytes for block in found.blocks.values())
    found = msgspec.structs.replace(found, messages=message_cost(largest, effort.rest_s))
    if found.spread < CALM:
        try:
            write_profile(path, found)
        except JobError:  # a device may have nowhere to keep anything
            pass
    return found


def _kept_at(
    job: Job, summary: tuple[Block, ...], wanted: Collection[int], inputs: Tensor, effort: Effort
) -> Path:  # fmt: skip
    """Names the file after all that the measured seconds depend on."""
    what = (
        job.model, fingerprint(summary), sorted(wanted), list(inputs.shape), str(inputs.dtype),
        optimizer_name(job.optimizer), conditions(), effort.repeats, effort.budget_s,
        effort.rest_s, "messages",
    )  # fmt: skip
    name = sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:16]
    base = os.environ.get("ZMPSL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zmpsl"
    return Path(base) / "profiles" / f"{name}.json"
