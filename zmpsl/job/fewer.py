"""The job for some of its compute nodes: what it says of a node follows that node to its new place, or goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec.structs import replace

from zmpsl.job.emulation import NodeClass, class_of
from zmpsl.job.schema import Job

__all__ = ["with_nodes"]

Value = TypeVar("Value")


def with_nodes(job: Job, kept: Sequence[int]) -> Job:
    """Gives the job for a chain of these nodes.

    Limits and imitated devices stay with the node they were given to; codecs of links stay where both ends do. Cuts
    that were listed are even now, and the owners keep the blocks they had.

    Args:
        job: The job.
        kept: The hops of the nodes that stay, in their new order.
    """
    places = {f"node-{hop}": f"node-{new}" for new, hop in enumerate(kept)}
    gone = {f"node-{hop}" for hop in range(job.nodes)} - set(places)
    links = {}
    for link, codec in job.codec.links.items():
        ends = link.split(">")
        if not gone & set(ends):
            links[">".join(places.get(end, end) for end in ends)] = codec
    emulate, planning = job.emulate, job.planning
    blocks, optional = planning.max_blocks, planning.optional_nodes
    job = replace(
        job,
        compute_nodes=len(kept),
        multihop_level=None,
        codec=replace(job.codec, links=links),
        emulate=replace(
            emulate, slow_down=_moved(emulate.slow_down, places, gone), nodes=_classes(emulate.nodes, kept)
        ),
        planning=replace(
            planning,
            node_memory=_moved(planning.node_memory, places, gone),
            max_blocks=_moved(blocks, places, gone) if isinstance(blocks, dict) else blocks,
            optional_nodes=[places[name] for name in optional if name in places]
            if isinstance(optional, list)
            else optional,
        ),
    )
    if isinstance(job.cuts, str):
        return job
    return replace(job, cuts="even", first_cut=job.cuts[0], last_cut=job.cuts[-1])


def _moved(values: Mapping[str, Value], places: Mapping[str, str], gone: set[str]) -> dict[str, Value]:
    return {places.get(name, name): value for name, value in values.items() if name not in gone}


def _classes(classes: Sequence[NodeClass], kept: Sequence[int]) -> list[NodeClass]:
    """Gives classes that say of every node in its new place what they said of it before."""
    found: list[NodeClass] = []
    for hop in kept:
        kind = class_of(classes, hop)
        if kind is None:
            continue
        one = replace(kind, count=1)
        if found and replace(found[-1], count=1) == one:
            found[-1] = replace(one, count=found[-1].count + 1)
        else:
            found.append(one)
    return found
