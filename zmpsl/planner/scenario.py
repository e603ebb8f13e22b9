"""What-if questions: classes of owners and compute nodes in a YAML file; how fast and how dear each choice would be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from zmpsl.errors import JobError
from zmpsl.job.emulate import read_scenario
from zmpsl.job.emulation import Emulate, NodeClass, Scenario
from zmpsl.job.load import parse_job
from zmpsl.job.schema import Job
from zmpsl.planner.cost import aggregation_time, pace, paper_time
from zmpsl.planner.measured import Measured, MeasuredNode, chain_of, link_of, owners_of, problem_of, transfers_of
from zmpsl.planner.simulate import simulate
from zmpsl.planner.solution import Infeasible
from zmpsl.planner.solver import solve
from zmpsl.planner.terms import Chain, Owners, Transfers
from zmpsl.profiles import Profile, read_profile

__all__ = ["Choice", "choices", "load_scenario", "pareto"]

MOST_CHOICES = 2000
Method = Literal["estimate", "simulate"]


class Choice(Struct, frozen=True):
    """One choice of nodes, and what comes of it.

    Attributes:
        nodes: How many of each class.
        layout: Nodes in path order with their blocks.
        epoch_s: Seconds of one global epoch, averaging included; None where it cannot be done.
        cost: Of all epochs, in the unit of the prices.
        paper_s: What the paper's eq. (5) says instead.
        bottleneck: What sets the pace.
        full: Whether the owners fill the pipe.
        text: Why it cannot be done.
    """

    nodes: dict[str, int]
    layout: str = ""
    epoch_s: float | None = None
    cost: float | None = None
    paper_s: float | None = None
    bottleneck: str = ""
    full: bool = False
    text: str = ""


def load_scenario(path: Path) -> tuple[Scenario, Profile]:
    """Reads a scenario and its profile.

    Raises:
        JobError: A file cannot be read, or says what cannot be; the message names file, line and key.
    """
    scenario = read_scenario(path)
    if scenario.profile is None:
        raise JobError(f"{path}: profile: an estimate needs the file that `zmpsl profile` wrote")
    return scenario, read_profile(path.parent / scenario.profile)


def choices(scenario: Scenario, profile: Profile, method: Method) -> Iterator[Choice]:
    """Tries every choice of nodes.

    Args:
        scenario: The question.
        profile: Of all blocks, on the device that `slow_down` refers to.
        method: `estimate` for closed forms, `simulate` to play every epoch.

    Raises:
        JobError: There are too many choices, or the profile does not go with the scenario.
    """
    kinds, available = scenario.nodes, sum(kind.count for kind in scenario.nodes)
    lengths = scenario.hops or tuple(range(1, available + 1))
    ways = sum(math.comb(len(kinds) + hops - 1, hops) for hops in lengths)
    if ways > MOST_CHOICES:
        raise JobError(
            f"{len(kinds)} classes of nodes and up to {max(lengths)} hops make {ways:,} choices, more than"
            f" {MOST_CHOICES:,}: list fewer hops"
        )
    for hops in lengths:
        for chosen in combinations_with_replacement(range(len(kinds)), hops):
            numbers = Counter(chosen)
            if all(numbers[index] <= kinds[index].count for index in numbers):
                yield _try(scenario, profile, [kinds[index] for index in chosen], method)


def pareto(found: list[Choice]) -> list[Choice]:
    """Gives the choices that no other beats in both time and cost, fastest first."""
    front: list[Choice] = []
    done = [choice for choice in found if choice.epoch_s is not None and choice.cost is not None]
    for choice in sorted(done, key=lambda one: (one.epoch_s, one.cost)):
        if not front or (choice.cost or 0.0) < (front[-1].cost or 0.0):
            front.append(choice)
    return front


def _try(scenario: Scenario, profile: Profile, chosen: list[NodeClass], method: Method) -> Choice:
    names = _names(chosen)
    counts = dict(Counter(kind.name for kind in chosen))
    measured = _measured(scenario, profile, dict(zip(names, chosen, strict=True)))
    try:
        plan = solve(problem_of(measured))
    except Infeasible as error:
        return Choice(counts, text=str(error))
    order = [piece.node for piece in plan.pieces]
    bounds = (0, plan.pieces[0].first, *(piece.stop for piece in plan.pieces), profile.model_blocks)
    chain, moved, owners = (
        chain_of(measured, bounds, order),
        transfers_of(measured, bounds),
        _owners(scenario, measured),
    )
    average_s = aggregation_time(owners, moved.owner_bytes)
    if method == "simulate":
        seconds = simulate(chain, owners, moved, micro_batches=measured.micro_batches, backward_first=True).epoch_s
    else:
        seconds = estimate_s(chain, owners, moved)
    flow = pace(chain, owners, moved)
    hourly = math.fsum(kind.price_per_hour for kind in chosen)
    kind, _, number = flow.bottleneck.partition(" ")
    return Choice(
        counts,
        ", ".join(f"{node} {first}-{stop - 1}" for node, first, stop in plan.assignment),
        seconds + average_s,
        scenario.epochs * (seconds + average_s) / 3600 * hourly,
        paper_time(chain, owners, moved).total_s,
        order[int(number)] if kind == "node" else f"the link behind {order[int(number)]}",
        flow.full,
    )


def estimate_s(chain: Chain, owners: Owners, transfers: Transfers) -> float:
    """Gives the batches of an epoch in closed form: eq. (4) with the true pace, and never below an owner's own way.

    Eq. (4) of MP-SL assumes a full pipe with pace max f + max b; the pace is max (f + b), and an owner cannot be
    faster than its round trips.
    """
    flow, paper = pace(chain, owners, transfers), paper_time(chain, owners, transfers)
    full_s = paper.start_s + paper.empty_s + (paper.batches - 1) * flow.pace_s + paper.end_s
    own = zip(owners.each(), flow.round_trip_s, strict=True)
    return max(full_s, max(owners.local_epochs * one.batches * trip for one, trip in own))


def _names(chosen: list[NodeClass]) -> list[str]:
    seen: Counter[str] = Counter()
    names = []
    for kind in chosen:
        seen[kind.name] += 1
        names.append(f"{kind.name}-{seen[kind.name]}")
    return names


def _measured(scenario: Scenario, profile: Profile, nodes: dict[str, NodeClass]) -> Measured:
    count, micro = sum(kind.count for kind in scenario.owners), scenario.micro_batches or 1
    overrides = [
        f"owners={count}", f"compute_nodes={len(nodes)}", f"first_cut={scenario.first_cut or 1}",
        f"train.batch_size={profile.batch_size * micro}", f"train.micro_batches={micro}",
    ]  # fmt: skip
    name, _, momentum = profile.optimizer.partition("+")
    overrides += [f"optimizer.name={name}", f"optimizer.momentum={0.9 if momentum else 0.0}"]
    if scenario.last_cut is not None:
        overrides.append(f"last_cut={scenario.last_cut}")
    job: Job = parse_job("", "scenario", overrides)
    job = msgspec.structs.replace(job, emulate=Emulate(owners=list(scenario.owners)))
    each = tuple(
        MeasuredNode(
            name,
            msgspec.structs.replace(profile, slow_down=profile.slow_down * kind.slow_down),
            kind.memory_bytes,
            link_of(kind),
        )
        for name, kind in nodes.items()
    )
    return Measured(job, each, profile, replicas=scenario.replicas)


def _owners(scenario: Scenario, measured: Measured) -> Owners:
    batches = tuple(kind.batches for kind in scenario.owners for _ in range(kind.count))
    return msgspec.structs.replace(owners_of(measured, batches), local_epochs=scenario.local_epochs or 1)
