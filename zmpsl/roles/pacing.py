"""How long each piece of work takes on an imitated device: by its class in the job, and the plan's cuts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zmpsl.errors import JobError
from zmpsl.job.emulation import NodeClass, OwnerClass, PartSeconds
from zmpsl.plan import Plan, micro_samples, node_name, owner_name
from zmpsl.profiles import Profile, cut_profile, optimizer_name, read_profile, require
from zmpsl.state import ends_layout
from zmpsl.transport.task import Op, Task

__all__ = ["Pace", "pace_of"]

# Seconds that a piece of work shall take, by its kind (see Meter), its task, and the seconds of a processor it took
# here. None where nothing is imitated.
Pace = Callable[[str, Task, float], float | None]


def pace_of(plan: Plan, place: str) -> Pace | None:
    """Gives how long a role's work shall take, None where it is not imitated.

    Evaluation takes as long as it takes on this host times the factor, where computing does; averaging what it takes.

    Raises:
        JobError: The seconds are to be those of a profile that cannot be read, or is of something else; or an owner's
            two parts need more memory than its class has.
    """
    emulate = plan.job.emulate
    role, _, number = place.partition("-")
    by = emulate.slow_down.get(place, emulate.slow_down.get(role, 1.0))
    kinds: dict[str, Callable[[int], OwnerClass | NodeClass | None]] = {"owner": emulate.owner, "node": emulate.node}
    kind = kinds[role](int(number)) if role in kinds and number.isdigit() else None
    if kind is None:
        return _times(by) if by != 1 else None
    if isinstance(kind, OwnerClass):
        _check_memory(plan, place, kind)
    by *= kind.slow_down / emulate.time_scale
    if kind.compute == "real" and getattr(kind, "first", None) is None and getattr(kind, "last", None) is None:
        return _times(by)
    if isinstance(kind, NodeClass):
        return _node(_of_profile(plan, int(number) + 1, by))
    return _owner(*_ends(plan, kind, by))


def _check_memory(plan: Plan, place: str, kind: OwnerClass) -> None:
    """Holds what an owner's two parts take against the memory of its class: base and copy, gradients, activations."""
    ends = [*plan.blocks_of(0), *plan.blocks_of(plan.parts - 1)]
    train = plan.job.train
    micros = min(train.pieces, train.batch_size)
    flying = micros if train.schedule == "gpipe" else min(micros, plan.parts)
    saved = sum(plan.footprints[index].saved for index in ends) if plan.footprints else 0
    gradients = 4 * (plan.parameters_of(0) + plan.parameters_of(plan.parts - 1))
    need = 2 * ends_layout(plan.blocks, plan.bounds, plan.job.optimizer).nbytes + gradients + flying * saved
    if kind.memory_bytes is not None and need > kind.memory_bytes:
        raise JobError(
            f"{place} (emulated {kind.name}): its first and last part need {need:,} bytes, the device has"
            f" {kind.memory_bytes:,.0f} (memory_bytes); cut the model earlier and later, or use smaller batches"
        )


def _times(by: float) -> Pace:
    return lambda op, _task, worked_s: None if op == "A" else by * worked_s


def _node(part: PartSeconds) -> Pace:
    seconds = {"F": part.forward_s, "B": part.backward_s}

    def pace(op: str, task: Task, _worked_s: float) -> float | None:
        return part.update_s if op == "U" else seconds[op] / task.micros if op in seconds else None

    return pace


def _owner(first: PartSeconds, last: PartSeconds) -> Pace:
    seconds = {"F": first.forward_s, "B": first.backward_s, "L": last.forward_s + last.backward_s}

    def pace(op: str, task: Task, _worked_s: float) -> float | None:
        if op == "U":  # of the last part when activations have come, of the first when gradients have
            return last.update_s if task.op is Op.FORWARD else first.update_s
        return seconds[op] / task.micros if op in seconds else None

    return pace


def _ends(plan: Plan, kind: OwnerClass, by: float) -> tuple[PartSeconds, PartSeconds]:
    """Seconds of an owner's two parts in this run: those given, or the profile's."""
    scale = 1 / plan.job.emulate.time_scale
    given = [None if part is None else _scaled(part, scale) for part in (kind.first, kind.last)]
    parts = (0, plan.parts - 1)
    first, last = (
        _of_profile(plan, part, by) if known is None else known for part, known in zip(parts, given, strict=True)
    )
    return first, last


def _scaled(part: PartSeconds, by: float) -> PartSeconds:
    return PartSeconds(
        forward_s=by * part.forward_s, backward_s=by * part.backward_s, update_s=by * part.update_s
    )  # fmt: skip


def _of_profile(plan: Plan, part: int, by: float) -> PartSeconds:
    """Seconds of a part for a whole batch, as the planner reckons them from the profile."""
    job, blocks = plan.job, plan.blocks_of(part)
    profile = cut_profile(_profile(plan), job, micro_samples(job))
    where = owner_name(0) if part in (0, plan.parts - 1) else node_name(part - 1)
    samples = micro_samples(job)
    require(profile, where, profile.fingerprint, samples, optimizer_name(job.optimizer), blocks)
    by, m = by * profile.slow_down, min(job.train.pieces, job.train.batch_size)
    return PartSeconds(
        forward_s=by * m * (profile.task_s + sum(profile.blocks[index].forward.median_s for index in blocks)),
        backward_s=by * m * (profile.task_s + sum(profile.blocks[index].backward.median_s for index in blocks)),
        update_s=by * (profile.step_s + sum(profile.blocks[index].update.median_s for index in blocks)),
    )


def _profile(plan: Plan) -> Profile:
    return read_profile(Path(plan.job.planning.profile or ""))
