"""A plan laid out for a person: who holds what at what cost, whether the pipe fills, and how else it could be done."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.plan import micro_samples
from zmpsl.planner.cost import Chain, Owners, PaperTime, aggregation_time, paper_time, splitnn_time
from zmpsl.planner.lanes import Lane, allocate
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.measured import Measured, chain_of, owners_of, problem_of, transfers_of
from zmpsl.planner.micro import MicroPlan, best
from zmpsl.planner.predict import Prediction, predict
from zmpsl.planner.problem import BlockCost, NodeSpec, Problem
from zmpsl.planner.simulate import simulate
from zmpsl.planner.solution import Infeasible, Solution, exposed
from zmpsl.planner.solver import Backend, solve

__all__ = ["Advice", "Alternative", "Held", "advise", "bounds_of", "micro_problem"]


class Held(Struct, frozen=True):
    """One part of the plan: where it is, its blocks [first, stop), and what it costs there per batch."""

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


class Alternative(Struct, frozen=True):
    """Another way to do it. `epoch_s` is None where it cannot be done; `text` says why, or how it is laid out."""

    name: str
    epoch_s: float | None
    pace_s: float | None
    text: str


class Advice(Struct, frozen=True):
    """A plan with its numbers.

    Attributes:
        parts: P parts, the owners' first.
        solution: As the solver gave it.
        prediction: Pace, bottleneck, fill and seconds of training in one round.
        aggregate_s: The owners' parts on their way to the aggregator and back, T_aggr.
        epoch_s: Training and averaging.
        paper: The terms of the paper's eqs. (1)-(5), for comparison.
        owners: K.
        full: Whether K owners fill the pipe.
        micro: The best micro-batch with the split that goes with it, by T_f + (m - 1) * T_i for one owner alone.
        alternatives: Other ways.
    """

    parts: tuple[Held, ...]
    solution: Solution
    prediction: Prediction
    aggregate_s: float
    epoch_s: float
    paper: PaperTime
    owners: int
    full: bool
    micro: MicroPlan
    alternatives: tuple[Alternative, ...]


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
        _parts(measured, solution, chain, owners),
        solution,
        expected,
        aggregate_s,
        expected.round_s + max(aggregate_s, expected.average_s),
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
    # Activations a node keeps: so many micro-batches of so many samples, against those that `problem_of` counted.
    grow = under_way * samples / (measured.in_flight * micro_samples(job))
    blocks: list[BlockCost] = []
    for index, cost in enumerate(problem.blocks, problem.first_block):
        replicas = 0 if job.planning.memory_model == "paper" else measured.replicas or job.owners
        saved = replicas * measured.in_flight * measured.block(index).saved_bytes
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


def _parts(measured: Measured, solution: Solution, chain: Chain, owners: Owners) -> tuple[Held, ...]:
    def weights(start: int, stop: int) -> float:
        return math.fsum(measured.block(index).parameter_bytes for index in range(start, stop))

    owner, count = owners.each()[0], measured.owner.model_blocks
    held = [
        Held(0, "each owner", 0, measured.first_cut, weights(0, measured.first_cut), owner.first.forward_s,
             owner.first.backward_s, owner.first.update_s),
    ]  # fmt: skip
    for number, (piece, part) in enumerate(zip(solution.pieces, chain.parts, strict=True), 1):
        held.append(
            Held(number, piece.node, piece.first, piece.stop, weights(piece.first, piece.stop), part.forward_s,
                 part.backward_s, part.update_s, piece.memory_bytes, piece.budget_bytes)
        )  # fmt: skip
    held.append(
        Held(len(held), "each owner", measured.last_cut, count, weights(measured.last_cut, count), owner.last.forward_s,
             owner.last.backward_s, owner.last.update_s)
    )  # fmt: skip
    return tuple(held)


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
    alone = splitnn_time(chain, owners_of(measured, batches), moved)
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
    for lane, count in zip(lanes, counts, strict=True):
        if count:
            seconds = max(seconds, _lane_s(measured, lane, batches[at : at + count], bounds))
        at += count
    text = ", ".join(f"{node.name} {count} owners" for node, count in zip(measured.nodes, counts, strict=True))
    pace_s = max(lane.chain.parts[0].all_s for lane in lanes) / len(lanes)
    return Alternative(name, seconds + aggregation_time(owners_of(measured, batches), moved.owner_bytes), pace_s, text)


def _lane_s(measured: Measured, lane: Lane, batches: tuple[int, ...], bounds: tuple[int, ...]) -> float:
    one = owners_of(measured, 1).each()[0]
    few = Owners(len(batches), one.first, one.last, one.uplink, batches=batches)
    return simulate(lane.chain, few, transfers_of(measured, bounds), micro_batches=measured.micro_batches).epoch_s
