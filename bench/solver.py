"""The split solver: seconds of every backend, and what its plan gains over splits made by hand.

    python bench/solver.py [--repeats 3] [--limit 20] [--nodes 2-8] [--no-long]

Every row is one problem, solved by all backends in turn; seconds are the median of the repeats. `even` and `greedy` are
the value of the split by hand over the optimum. Where a backend gives no proof, the table says how far its split can be
above the optimum at most, by a bound that divides the work at will. Backends that disagree on a proven optimum end the
bench with an error.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Sequence

import click
from report import machine, table

from zmpsl.planner.limits import lower_bound
from zmpsl.planner.manual import even_split, greedy_split
from zmpsl.planner.problem import BlockCost, NodeSpec, Objective, Problem
from zmpsl.planner.solution import Solution
from zmpsl.planner.solver import Backend, solve

OBJECTIVES: tuple[tuple[Objective, int], ...] = (("pace", 1), ("sum", 1), ("micro", 8))
# The share of forward work is not the same in every block, as in measured profiles: worst forward and worst backward
# stages differ. Stages of a residual network: few large blocks, many of one size, few small ones.
STAGE_SIZES = ((3, 1.6), (4, 1.2), (24, 1.0), (4, 0.9), (2, 0.2))


def blocks(seed: int) -> tuple[BlockCost, ...]:
    """37 blocks whose costs scatter by +-30 % around those of a residual network's stages, in seconds."""
    rng = random.Random(seed)
    sizes = [size for count, size in STAGE_SIZES for _ in range(count)]
    return tuple(
        BlockCost(
            f"block{j}", 0.01 * size * rng.uniform(0.7, 1.3), 0.04 * size * rng.uniform(0.7, 1.3),
            0.005 * rng.uniform(0.2, 2.0),
        )
        for j, size in enumerate(sizes)
    )  # fmt: skip


def long_chain(seed: int, length: int) -> tuple[BlockCost, ...]:
    """Blocks of a chain as long as a language model's, no two alike, in seconds."""
    rng = random.Random(seed)
    return tuple(BlockCost(f"block{j}", rng.uniform(0.5, 1.5), rng.uniform(1, 3), 0.1) for j in range(length))


def timed(problem: Problem, backend: Backend, repeats: int, limit: float) -> tuple[float, Solution]:
    """Solves the problem a few times; a run that reaches the limit is not repeated."""
    found = [solve(problem, backend, limit)]
    while len(found) < repeats and found[0].seconds < limit / 2:
        found.append(solve(problem, backend, limit))
    return statistics.median(solution.seconds for solution in found), found[0]


def cells(problem: Problem, backends: Sequence[Backend], repeats: int, limit: float) -> tuple[list[str], Solution]:
    """Gives one cell per backend, and the best solution.

    Raises:
        click.ClickException: Two backends prove different optima.
    """
    answers = [timed(problem, backend, repeats, limit) for backend in backends]
    best = min((solution for _, solution in answers), key=lambda solution: solution.value)
    for _, solution in answers:
        if solution.optimal and solution.value > best.value * (1 + 1e-7):
            raise click.ClickException(f"{solution.backend} proves {solution.value}, {best.backend} has {best.value}")
    texts = []
    for seconds, solution in answers:
        above = solution.value / lower_bound(problem) - 1
        texts.append(f"{seconds:.3f}" if solution.optimal else f"{seconds:.1f}, not proven, bound {above:.1%}")
    return texts, best


def short_rows(numbers: range, repeats: int, limit: float) -> list[list[str]]:
    """37 blocks, N nodes of N speeds."""
    rows = []
    for objective, micro in OBJECTIVES:
        for number in numbers:
            rng = random.Random(number)
            nodes = tuple(NodeSpec(f"c{i}", slowdown=rng.uniform(1, 4)) for i in range(number))
            problem = Problem(blocks(number), nodes, objective=objective, micro_batches=micro)
            texts, best = cells(problem, ("dp", "mip", "path"), repeats, limit)
            by_hand = [f"{plan(problem).value / best.value:.2f}" for plan in (even_split, greedy_split)]
            rows.append([objective, str(number), *texts, *by_hand])
            click.echo(f"{objective} N={number} done", err=True)
    return rows


def long_rows(repeats: int, limit: float) -> list[list[str]]:
    """1,000 blocks on 16 nodes of 1, 2, 4 or 16 speeds."""
    rows = []
    for objective, micro in OBJECTIVES:
        for kinds in (1, 2, 4, 16):
            nodes = tuple(NodeSpec(f"c{i}", slowdown=1 + 0.5 * (i % kinds)) for i in range(16))
            problem = Problem(long_chain(1, 1000), nodes, objective=objective, micro_batches=micro)
            texts, best = cells(problem, ("dp", "path"), repeats, limit)
            by_hand = [f"{plan(problem).value / best.value:.2f}" for plan in (even_split, greedy_split)]
            rows.append([objective, str(kinds), *texts, *by_hand])
            click.echo(f"{objective} with {kinds} kinds of nodes done", err=True)
    return rows


@click.command(help=__doc__)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Times each problem is solved.")
@click.option("--limit", default=20.0, show_default=True, type=float, help="Seconds a backend may take.")
@click.option("--nodes", default="2-8", show_default=True, help="Numbers of nodes, LOW-HIGH.")
@click.option("--long/--no-long", default=True, help="Also the chain of 1,000 blocks.")
def main(repeats: int, limit: float, nodes: str, long: bool) -> None:
    low, _, high = nodes.partition("-")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) <= 16):
        raise click.BadParameter(f"{nodes!r} is no range such as 2-8, of 1 to 16 nodes", param_hint="--nodes")
    solve(Problem(blocks(0), (NodeSpec("c0"),)), "mip")  # the library is loaded before anything is timed
    click.echo(machine("python " + " ".join(sys.argv)))
    click.echo("37 blocks on N nodes, all of different speed (slowdown 1 to 4):\n")
    head = ("objective", "N", "dp s", "mip s", "path s", "even", "greedy")
    click.echo(table(head, short_rows(range(int(low), int(high) + 1), repeats, limit)))
    if long:
        click.echo("1,000 blocks on 16 nodes:\n")
        head = ("objective", "speeds", "dp s", "path s", "even", "greedy")
        click.echo(table(head, long_rows(repeats, limit)))


if __name__ == "__main__":
    main()
