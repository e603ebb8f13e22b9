"""What a manager would plan, told before any role has joined: cuts, and how many owners the nodes have memory for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence

import msgspec

from zmpsl.errors import JobError
from zmpsl.job.schema import Job
from zmpsl.messages import Join
from zmpsl.plan import Block, micro_samples, node_name, owner_name
from zmpsl.planner.advice import Advice, Memory, advise, bounds_of
from zmpsl.planner.measured import Measured
from zmpsl.planner.predict import batch_s, owners_to_fill, predict
from zmpsl.planner.solution import Infeasible
from zmpsl.pool.budget import limits_here
from zmpsl.profiles import Profile
from zmpsl.roles.admission import Places, rooms_of

__all__ = ["foresee"]


def foresee(measured: Measured, batches: tuple[int, ...]) -> Advice:
    """Lays out the plan of a job, with as many owners at a time as the nodes have memory for.

    A compute node is taken for a process on the host that its profile is of. What that host has is known where it is
    this one, and what a process takes by itself is taken to be what this one does. Where the model's code is not here,
    nothing is said of memory.

    Args:
        measured: What was measured, with the job.
        batches: Batches of each owner in one round, over all local epochs.

    Raises:
        Infeasible: No split meets all limits.
        JobError: The nodes have too little memory for the owners that the job asks for.
    """
    from zmpsl.engine.build import summarise

    measured, advice = _advised(measured, batches)
    try:
        blocks = summarise(measured.job.model)
    except JobError:
        return advice
    order, bounds = [piece.node for piece in advice.solution.pieces], bounds_of(measured, advice.solution)

    def again(nodes: Collection[str]) -> Measured:
        # Places names nodes by hop; here they keep the names of their profiles.
        return measured.with_recompute({order[int(name.removeprefix("node-"))] for name in nodes})

    places = _places(
        measured, blocks, order, bounds, lambda owners, nodes: batch_s(again(nodes), bounds, order, owners)
    )
    chosen, training = again(places.recompute), places.training
    training.aim(owners_to_fill(chosen, bounds, order), more=measured.job.owners_in_flight == "auto")
    expected = predict(chosen, bounds, order, batches, None, training.limit)
    memory = Memory(
        str(places),
        training.most,
        training.limit,
        tuple(node.name for node in chosen.nodes if node.recompute),
        advice.epoch_s + expected.round_s - advice.prediction.round_s,
    )
    return msgspec.structs.replace(advice, memory=memory)


def _advised(measured: Measured, batches: tuple[int, ...]) -> tuple[Measured, Advice]:
    """Solves within the nodes' memory, as a manager does."""
    job, rooms = measured.job, _rooms(measured)
    nodes = tuple(msgspec.structs.replace(node, memory_bytes=rooms[node.name]) for node in measured.nodes)
    replicas = 1 if job.owners_in_flight == "auto" else job.owners_in_flight
    measured = msgspec.structs.replace(measured, nodes=nodes, replicas=replicas)
    if job.recompute == "always":
        measured = measured.with_recompute()
    try:
        return measured, advise(measured, batches, job.planning.solver)
    except Infeasible:
        if job.recompute != "auto":
            raise
        measured = measured.with_recompute()
        return measured, advise(measured, batches, job.planning.solver)


def _rooms(measured: Measured) -> dict[str, float | None]:
    """Bytes that each node has for its part, by name."""
    here, own = socket.gethostname(), limits_here()

    def join(profile: Profile) -> Join:
        known = own.host_bytes if profile.host == here else 0
        return Join(role="compute", host=profile.host, host_bytes=known, used_bytes=own.used_bytes)

    joins = {node.name: join(node.profile) for node in measured.nodes}
    return dict(zip(joins, rooms_of(measured.job, joins), strict=True))


def _places(
    measured: Measured, blocks: tuple[Block, ...], order: Sequence[str], bounds: tuple[int, ...],
    pace: Callable[[int, Collection[str]], float | None],
) -> Places:  # fmt: skip
    from zmpsl.engine.footprint import model_footprints
    from zmpsl.engine.profile import inputs_like

    job, rooms = measured.job, {node.name: node.memory_bytes for node in measured.nodes}
    inputs = inputs_like(measured.owner.input_shape, measured.owner.input_dtype, micro_samples(job))
    prints = model_footprints(job.model, tuple(inputs.shape), inputs.dtype)
    joins = {owner_name(index): Join(role="owner") for index in range(job.owners)}
    for hop, name in enumerate(order):
        room = rooms[name]
        joins[node_name(hop)] = Join(role="compute", memory="" if room is None else str(int(room)))
    # What the job says of nodes by name is in their rooms already, and these may be in another order now.
    planning = msgspec.structs.replace(job.planning, node_memory={})
    known: Job = msgspec.structs.replace(job, memory="100%", planning=planning, compute_nodes=len(order))
    return Places(known, blocks, bounds, prints, joins, pace)
