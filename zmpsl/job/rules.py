"""What no single field of a job can tell: fields that contradict one another, and names that are not there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from zmpsl.errors import JobError
from zmpsl.job.codec import problems
from zmpsl.job.emulation import OwnerClass
from zmpsl.job.schema import Job

__all__ = ["check_job"]


def _check_secure_average(job: Job, source: str) -> None:
    if not job.privacy.secure_average:
        return
    if job.owners < 3:
        raise JobError(
            f"{source}: privacy.secure_average needs owners: 3 or more, not {job.owners}; of two, each could take its"
            " own part off the average and have the other's"
        )
    if job.optimizer.name == "adam" and job.optimizer.state == "average":
        raise JobError(
            f"{source}: privacy.secure_average rounds what is averaged to steps of 3.7e-9, too coarse for Adam's"
            " squared gradients; use optimizer.state: reset"
        )
    if job.guard.update_norm is not None:
        raise JobError(
            f"{source}: privacy.secure_average hides from the aggregator what guard.update_norm would have it measure;"
            " give one of the two"
        )
    if job.recover.round_s is not None:
        raise JobError(
            f"{source}: with privacy.secure_average a round that owners may have handed in cannot go on without one of"
            " them, so recover.round_s must be null"
        )
    if job.emulate.thin:
        raise JobError(f"{source}: privacy.secure_average needs owners and nodes that compute, not compute: none")


def check_job(job: Job, source: str) -> None:
    """Checks what no single field can tell; `source` names the job in messages.

    Raises:
        JobError: Two fields contradict one another.
    """
    if job.compute_nodes is not None and job.multihop_level not in (None, job.compute_nodes + 2):
        raise JobError(
            f"{source}: compute_nodes {job.compute_nodes} and multihop_level {job.multihop_level} disagree; "
            f"the level is the number of nodes + 2, give one of the two"
        )
    _check_cuts(job, source)
    sizes = job.data.partition.sizes
    if (job.data.partition.kind == "sizes") != (sizes is not None) or (sizes is not None and len(sizes) != job.owners):
        raise JobError(
            f"{source}: data.partition.sizes must list one number for each of the {job.owners} owners, "
            f"with kind: sizes and only then"
        )
    for _, problem in problems(job.codec):
        raise JobError(f"{source}: {problem}")
    if job.privacy.noise and job.privacy.clip_norm is None:
        raise JobError(
            f"{source}: privacy.noise {job.privacy.noise:g} is a multiple of privacy.clip_norm, which is not given; "
            f"without a bound no noise hides anything, give one such as 1.0"
        )
    _check_secure_average(job, source)
    _check_classes(job, source)
    _check_places(job, source)


def _check_places(job: Job, source: str) -> None:
    """Checks what the job says of single roles by their name."""
    known = {
        "owner",
        "aggregator",
        *(f"owner-{i}" for i in range(job.owners)),
        *(f"node-{i}" for i in range(job.nodes)),
    }
    _check_names(source, "emulate.slow_down", job.emulate.slow_down, known - {"aggregator"})
    nodes = {name for name in known if name.startswith("node")}
    _check_names(source, "planning.node_memory", job.planning.node_memory, nodes)
    _check_names(source, "planning.max_blocks or optional_nodes", job.planning.named_nodes, nodes)
    if job.planning.optional_nodes and job.cuts != "auto":
        raise JobError(
            f"{source}: planning.optional_nodes: which nodes go without blocks is solved, so it goes with cuts: auto;"
            f" here cuts are {job.cuts}"
        )
    _check_links(source, job.codec.links, known)


def _check_links(source: str, links: Iterable[str], known: set[str]) -> None:
    for link in links:
        ends = link.split(">")
        if len(ends) != 2 or not set(ends) <= known:
            raise JobError(
                f"{source}: codec.links: {link!r} is no link; write sender>receiver, "
                f"such as owner>node-0 or node-0>node-1"
            )


def _check_names(source: str, key: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise JobError(f"{source}: {key}: {name!r} is not there; the first compute node is node-0, for instance")


def _check_classes(job: Job, source: str) -> None:
    emulate = job.emulate
    for key, classes, there in (("owners", emulate.owners, job.owners), ("nodes", emulate.nodes, job.nodes)):
        count = sum(kind.count for kind in classes)
        if classes and count != there:
            raise JobError(f"{source}: emulate.{key}: the classes have {count} devices, the job {there}")
        for number, kind in enumerate(classes):
            measured = isinstance(kind, OwnerClass) and kind.first is not None and kind.last is not None
            if kind.compute != "real" and not measured and job.planning.profile is None:
                raise JobError(
                    f"{source}: emulate.{key}.{number}: compute: {kind.compute} needs seconds; name the profile of a"
                    " device" + (", or give first and last" if key == "owners" else "")
                )
    if emulate.thin and job.evaluate.every:
        raise JobError(f"{source}: emulate: with compute: none there is nothing to evaluate; set evaluate.every: 0")


def _check_cuts(job: Job, source: str) -> None:
    if isinstance(job.cuts, str):
        return
    cuts = list(job.cuts)
    if job.first_cut is not None or job.last_cut is not None:
        raise JobError(f"{source}: first_cut and last_cut go with cuts: auto or even; here cuts are {cuts}")
    if any(low >= high for low, high in pairwise(job.cuts)):
        raise JobError(f"{source}: cuts {cuts} must rise strictly")
    if len(cuts) != job.parts - 1:
        raise JobError(
            f"{source}: {len(cuts)} cuts make {len(cuts) + 1} parts, "
            f"but {job.nodes} compute nodes need {job.parts - 1} cuts"
        )
