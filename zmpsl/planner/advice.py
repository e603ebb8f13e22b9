"""A plan laid out for a person: who holds what at what cost, whether the pipe fills, and how else it could be done."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.plan import micro_samples
from zmpsl.planner.cost import PaperTime, aggregation_time, paper_time, splitnn_time
from zmpsl.planner.handling import handled
from zmpsl.planner.lanes import Lane, allocate
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.measured import Measured, chain_of, own_link_from, owners_of, problem_of, transfers_of
from zmpsl.planner.micro import MicroPlan, best
from zmpsl.planner.predict import Prediction, predict
from zmpsl.planner.problem import BlockCost, NodeSpec, Problem
from zmpsl.planner.simulate import simulate
from zmpsl.planner.solution import Infeasible, Solution, exposed
from zmpsl.planner.solver import Backend, solve
from zmpsl.planner.terms import Chain, Owners, PartTime, Transfers, transfer_s
from zmpsl.profiles import Profile

__all__ = ["Advice", "Alternative", "Held", "Hop", "Memory", "advise", "bounds_of", "micro_problem"]


class Held(Struct, frozen=True):
    """One part of the plan: where it is, its blocks [first, stop), and what it costs there per batch.

    `epoch_busy_s` is what it costs there in an epoch, of the first owner for the owners' parts; `cores` are those of
    the device, `threads` torch's.
    """

    part: int
    where: str
    first: int
    stop: int
    parameter_bytes: float
    forward_s: float
    backward_s: float
    update_s: float
    memory_bytes: float | None = None
    budget_bytes: float | None = None
    epoch_busy_s: float = 0.0
    cores: int = 1
    threads: int = 1
    host: str = ""


class Hop(Struct, frozen=True):
    """One link of the chain: what it is taken for, where that is from, and its seconds per batch in each direction."""

    between: str
    bytes_per_s: float
    latency_s: float
    origin: str
    forward_bytes: float
    backward_bytes: float
    forward_s: float
    backward_s: float


class Alternative(Struct, frozen=True):
    """Another way to do it. `epoch_s` is None where it cannot be done; `text` says why, or how it is laid out."""

    name: str
    epoch_s: float | None
    pace_s: float | None
    text: str


class Memory(Struct, frozen=True):
    """What the nodes' memory allows.

    Attributes:
        words: The same, and where the bytes go.
        most_in_flight: Owners that fit at a time.
        in_flight: Owners that train at a time: no more than fill the chain need to.
        recompute: Nodes that run forward again before backward, to need less.
        epoch_s: Training and averaging with so many owners at a time.
    """

    words: str
    most_in_flight: int
    in_flight: int
    recompute: tuple[str, ...]
    epoch_s: float


class Advice(Struct, frozen=True):
    """A plan with its numbers.

    Attributes:
        parts: P parts, the owners' first.
        links: P - 1 links; those of owners are the first owner's.
        solution: As the solver gave it.
        prediction: Pace, bottleneck, fill and seconds of training in one round.
        aggregate_s: The owners' parts on their way to the aggregator and back, T_aggr.
        epoch_s: Training and averaging.
        paper: The terms of the paper's eqs. (1)-(5), for comparison.
        owners: K.
        full: Whether K owners fill the pipe.
        micro: The best micro-batch with the split that goes with it, by T_f + (m - 1) * T_i for one owner alone.
        alternatives: Other ways.
        memory: What there is memory for, where that was looked into; all else here is with memory for all owners.
    """

    parts: tuple[Held, ...]
    links: tuple[Hop, ...]
    solution: Solution
    prediction: Prediction
    aggregate_s: float
    epoch_s: float
    paper: PaperTime
    owners: int
    full: bool
    micro: MicroPlan
    alternatives: tuple[Alternative, ...]
    memory: Memory | None = None


def bounds_of(measured: Measured, solution: Solution) -> tuple[int, ...]:
    """Gives the bounds of all P parts."""
    return (0, solution.pieces[0].first, *(piece.stop for piece in solution.pieces), measured.owner.model_blocks)


def advise(measured: Measured, batches: tuple[int, ...], backend: Backend = "dp") -> Advice:
    """Solves the split and lays it out.

    Args:
        measured: What was measured.
        batches: Batches of each owner in one round, over all local epochs.
        backend: Who solves.

    Raises:
        Infeasible: No split meets all limits; the message names the nodes and the bytes they lack.
        JobError: A number cannot be.
    """
    solution = solve(problem_of(measured), backend)
    order, bounds = [piece.node for piece in solution.pieces], bounds_of(measured, solution)
    chain, moved, owners = (
        chain_of(measured, bounds, order),
        transfers_of(measured, bounds),
        owners_of(measured, batches),
    )
    expected = predict(measured, bounds, order, batches)
    aggregate_s = aggregation_time(owners, moved.owner_bytes)
    return Advice(
        _parts(measured, solution, chain, owners, batches),
        _links(measured, chain, owners, moved, order),
        solution,
        expected,
        aggregate_s,
        expected.round_s + max(aggregate_s, expected.average_s) + expected.store_s,
        paper_time(chain, owners, moved),
        len(batches),
        len(batches) >= expected.owners_to_fill * (1 - 1e-9),
        best(lambda b: micro_problem(measured, b), measured.job.train.batch_size, backend),
        tuple(_alternatives(measured, batches, solution, backend)),
    )


def micro_problem(measured: Measured, samples: int) -> Problem:
    """Gives the problem for micro-batches of `samples`, with the objective T_f + (m - 1) * T_i.

    Seconds and bytes are taken to grow with the samples; fixed seconds per task, and updates, do not.
    """
    problem, job = problem_of(measured), measured.job
    m, share = -(-job.train.batch_size // samples), samples / job.train.batch_size

    def node(spec: NodeSpec, fixed_s: float) -> NodeSpec:
        times = tuple(
            msgspec.structs.replace(time, forward_s=share * time.forward_s, backward_s=share * time.backward_s)
            for time in spec.times or ()
        )
        return msgspec.structs.replace(spec, times=times, overhead_s=fixed_s)

    fixed = [one.profile.slow_down * one.profile.task_s for one in measured.nodes]
    under_way = m if job.train.schedule == "gpipe" else min(m, job.parts)
    # Activations a node keeps: so many micro-batches of so many samples, or one of them where it runs forward again,
    # against those that `problem_of` counted.
    grow = (1 if measured.recomputes else under_way / measured.in_flight) * samples / micro_samples(job)
    blocks: list[BlockCost] = []
    for index, cost in enumerate(problem.blocks, problem.first_block):
        replicas = 0 if job.planning.memory_model == "paper" else measured.replicas or job.owners
        saved = (1 if measured.recomputes else replicas * measured.in_flight) * measured.block(index).saved_bytes
        need = cost.memory_bytes + (grow - 1) * saved
        blocks.append(
            msgspec.structs.replace(
                cost, forward_s=share * cost.forward_s, backward_s=share * cost.backward_s, memory_bytes=need
            )
        )
    cuts = tuple(
        msgspec.structs.replace(cut, forward_bytes=share * cut.forward_bytes, backward_bytes=share * cut.backward_bytes)
        for cut in problem.cuts
    )
    nodes = tuple(node(spec, fixed_s) for spec, fixed_s in zip(problem.nodes, fixed, strict=True))
    return msgspec.structs.replace(
        problem, blocks=tuple(blocks), nodes=nodes, cuts=cuts, objective="micro", micro_batches=m
    )


def _parts(
    measured: Measured, solution: Solution, chain: Chain, owners: Owners, batches: tuple[int, ...]
) -> tuple[Held, ...]:
    nodes = {node.name: node.profile for node in measured.nodes}

    def held(number: int, where: str, first: int, stop: int, part: PartTime, profile: Profile, count: int) -> Held:
        weights = math.fsum(measured.block(index).parameter_bytes for index in range(first, stop))
        return Held(
            number, where, first, stop, weights, part.forward_s, part.backward_s, part.update_s,
            epoch_busy_s=count * part.all_s, cores=profile.cores, threads=profile.threads, host=profile.host,
        )  # fmt: skip

    owner, count = owners.each()[0], measured.owner.model_blocks
    found = [held(0, "each owner", 0, measured.first_cut, owner.first, measured.owner, batches[0])]
    for number, (piece, part) in enumerate(zip(solution.pieces, chain.parts, strict=True), 1):
        here = held(number, piece.node, piece.first, piece.stop, part, nodes[piece.node], sum(batches))
        found.append(msgspec.structs.replace(here, memory_bytes=piece.memory_bytes, budget_bytes=piece.budget_bytes))
    last = held(len(found), "each owner", measured.last_cut, count, owner.last, measured.owner, batches[0])
    return (*found, last)


def _links(measured: Measured, chain: Chain, owners: Owners, moved: Transfers, order: Sequence[str]) -> tuple[Hop, ...]:
    """Lists the links in the order of the chain, the owner at both ends."""
    nodes, kind, owner = {node.name: node for node in measured.nodes}, measured.job.emulate.owner(0), owners.each()[0]
    own = measured.owner_link_from if measured.owner_link is not None else own_link_from(measured.owner)
    own = own if kind is None else "imitated"
    origins = [own_link_from(nodes[name].profile) if nodes[name].link is None else nodes[name].link_from
               for name in order[1:]]  # fmt: skip
    links = [owner.uplink, *chain.links, owner.downlink]
    names = ["owner", *order, "owner"]
    return tuple(
        Hop(
            f"{names[cut]} > {names[cut + 1]}", link.bytes_per_s, link.latency_s, origin, forward, backward,
            transfer_s(forward, link), transfer_s(backward, link),
        )
        for cut, (link, origin, forward, backward) in enumerate(
            zip(links, [own, *origins, own], moved.forward_bytes, moved.backward_bytes, strict=True)
        )
    )  # fmt: skip


def _alternatives(
    measured: Measured, batches: tuple[int, ...], solution: Solution, backend: Backend
) -> list[Alternative]:
    """Plans made by hand, other numbers of hops, nodes side by side, and owners one after the other."""
    problem, count = problem_of(measured), len(measured.nodes)
    # By hand everybody gets blocks, who must and who may.
    nodes = tuple(msgspec.structs.replace(node, optional=False) for node in problem.nodes)
    by_hand = msgspec.structs.replace(problem, nodes=nodes)
    ways: list[tuple[str, Callable[[], Solution]]] = [
        ("even", lambda: even_split(by_hand)),
        ("greedy", lambda: greedy_split(by_hand)),
    ]
    for hops in range(1, count):
        few = msgspec.structs.replace(problem, nodes=problem.nodes[:hops])
        ways.append((f"multihop level {hops + 2}", lambda few=few: solve(few, backend)))  # type: ignore[misc]
    found = [_alternative(measured, batches, problem, name, way) for name, way in ways]
    if count > 1:
        found.append(_horizontal(measured, batches, problem))
    order, bounds = [piece.node for piece in solution.pieces], bounds_of(measured, solution)
    chain, moved = chain_of(measured, bounds, order), transfers_of(measured, bounds)
    alone = splitnn_time(*handled(measured, chain, owners_of(measured, batches), moved, order), moved)
    found.append(Alternative("SplitNN", alone, None, "owners one after the other, no averaging"))
    return found


def _alternative(
    measured: Measured, batches: tuple[int, ...], problem: Problem, name: str, make: Callable[[], Solution]
) -> Alternative:
    try:
        plan = make()
        short = [f"{one.node} lacks {one.lacks_bytes:,.0f} bytes" for one in plan.short]
        if broken := exposed(problem, plan.assignment) + short:
            raise Infeasible("; ".join(broken), plan.short)
    except JobError as error:
        return Alternative(name, None, None, str(error))
    order, bounds = [piece.node for piece in plan.pieces], bounds_of(measured, plan)
    expected = predict(measured, bounds, order, batches)
    average_s = aggregation_time(owners_of(measured, batches), transfers_of(measured, bounds).owner_bytes)
    text = ", ".join(f"{node} {first}-{stop - 1}" for node, first, stop in plan.assignment)
    return Alternative(name, expected.round_s + average_s, expected.pace_s, text)


def _horizontal(measured: Measured, batches: tuple[int, ...], problem: Problem) -> Alternative:
    """Every node holds all blocks of the middle and serves some of the owners; the slowest lane counts."""
    name = "horizontal"
    if seen := exposed(problem, [(node.name, measured.first_cut, measured.last_cut) for node in measured.nodes]):
        return Alternative(name, None, None, "; ".join(seen))
    bounds = (0, measured.first_cut, measured.last_cut, measured.owner.model_blocks)
    moved, lanes = transfers_of(measured, bounds), []
    for node in measured.nodes:
        lanes.append(Lane(chain_of(measured, bounds, [node.name]), (node.memory_bytes,)))
    whole = math.fsum(block.memory_bytes for block in problem.blocks) / len(batches)
    try:
        counts = allocate(lanes, len(batches), (whole,))
    except JobError as error:
        return Alternative(name, None, None, str(error))
    seconds, at = 0.0, 0
    for lane, node, count in zip(lanes, measured.nodes, counts, strict=True):
        if count:
            seconds = max(seconds, _lane_s(measured, lane, node.name, batches[at : at + count], bounds))
        at += count
    text = ", ".join(f"{node.name} {count} owners" for node, count in zip(measured.nodes, counts, strict=True))
    pace_s = max(lane.chain.parts[0].all_s for lane in lanes) / len(lanes)
    return Alternative(name, seconds + aggregation_time(owners_of(measured, batches), moved.owner_bytes), pace_s, text)


def _lane_s(measured: Measured, lane: Lane, node: str, batches: tuple[int, ...], bounds: tuple[int, ...]) -> float:
    one = owners_of(measured, 1).each()[0]
    few = Owners(len(batches), one.first, one.last, one.uplink, batches=batches)
    moved = transfers_of(measured, bounds)
    chain, few = handled(measured, lane.chain, few, moved, [node])
    return simulate(chain, few, moved, micro_batches=measured.micro_batches).epoch_s
