"""Profiles together with what a job says of nodes and links: what is solved and predicted with."""

from __future__ import annotations

import msgspec

from zmpsl.job.schema import Job
from zmpsl.planner.measured import Measured, MeasuredNode, link_of
from zmpsl.planner.problem import NodeLink
from zmpsl.profiles import Profile

__all__ = ["measured_of"]


def measured_of(job: Job, owner: Profile, nodes: dict[str, Profile]) -> Measured:
    """Puts profiles together with what the job says of nodes and links.

    Args:
        job: The job.
        owner: Profile of an owner's ends.
        nodes: Profile of each compute node, in hop order.

    Raises:
        JobError: A profile is damaged or of something else.
    """
    plan = job.planning
    node_link = None if plan.node_bytes_per_s is None else NodeLink(plan.node_bytes_per_s, plan.latency_s)
    owner_link = None if plan.owner_bytes_per_s is None else NodeLink(plan.owner_bytes_per_s, plan.latency_s)
    found = tuple(
        _imitated(
            job, hop, MeasuredNode(name, profile, plan.node_memory.get(name), node_link, "planning.node_bytes_per_s")
        )
        for hop, (name, profile) in enumerate(nodes.items())
    )
    return Measured(job, found, owner, owner_link, "planning.owner_bytes_per_s")


def _imitated(job: Job, hop: int, node: MeasuredNode) -> MeasuredNode:
    """Gives the node as slow, and its link and memory as small, as the job has it."""
    emulate = job.emulate
    kind, factor = emulate.node(hop), emulate.slow_down.get(node.name, 1.0)
    if kind is not None:
        memory = node.memory_bytes if kind.memory_bytes is None else kind.memory_bytes
        link = link_of(kind, emulate.time_scale)
        node = msgspec.structs.replace(node, memory_bytes=memory, link=link, link_from="imitated")
        factor *= kind.slow_down / emulate.time_scale
    slowed = msgspec.structs.replace(node.profile, slow_down=node.profile.slow_down * factor)
    return msgspec.structs.replace(node, profile=slowed)
