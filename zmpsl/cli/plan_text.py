"""`zmpsl plan` in words: parts and links, what paces the chain, how long an epoch takes, and other ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from zmpsl.cli.tables import echo_json, table

if TYPE_CHECKING:
    from zmpsl.job import Job
    from zmpsl.planner.advice import Advice
    from zmpsl.planner.solution import Infeasible

__all__ = ["show_infeasible", "show_plan"]

FAST = 5e10  # bytes/s beyond which a link costs nothing that could be measured


def show_infeasible(error: Infeasible) -> None:
    """Prints, as JSON, why no split meets all limits: what the nearest one lacks, largest first."""
    short = [
        {
            "node": one.node, "first": one.first, "stop": one.stop, "needs_bytes": one.needs_bytes,
            "has_bytes": one.has_bytes, "lacks_bytes": one.lacks_bytes,
        }
        for one in error.shortfalls
    ]  # fmt: skip
    echo_json({"infeasible": str(error), "short": short})


def show_plan(job: Job, advice: Advice) -> None:
    """Prints a plan as tables and sentences."""
    from zmpsl.observe.readable import amount, duration, percent

    rows, expected = [], advice.prediction
    for held in advice.parts:
        memory = "" if held.memory_bytes is None else amount(held.memory_bytes)
        memory += "" if held.budget_bytes is None else f" of {amount(held.budget_bytes)}"
        busy_s = held.forward_s + held.backward_s + held.update_s
        rows.append(
            [
                str(held.part), held.where, f"{held.first}-{held.stop - 1}", amount(held.parameter_bytes), memory,
                f"{1e3 * held.forward_s:.3f}", f"{1e3 * held.backward_s:.3f}", f"{1e3 * held.update_s:.3f}",
                f"{1e3 * busy_s:.3f}",
                f"{duration(held.epoch_busy_s)} ({percent(held.epoch_busy_s / expected.round_s, 0)})", str(held.cores),
            ]
        )  # fmt: skip
    columns = ["part", "where", "blocks", "weights", "memory", "forward", "backward", "update", "ms per batch"]
    columns += ["busy in an epoch", "cores"]
    table(f"{job.name}: {job.owners} owners, {job.nodes} compute nodes", columns, rows)
    _show_links(advice)
    click.echo(f"solved in {advice.solution.seconds:.2f} s by {advice.solution.backend}: {advice.solution.proof}")
    click.echo(f"bottleneck {expected.bottleneck}: {1e3 * expected.pace_s:.3f} ms per batch")
    _show_fill(advice)
    click.echo(
        f"epoch {duration(advice.epoch_s)}: training {duration(expected.round_s)}, averaging"
        f" {duration(advice.aggregate_s)}; roles are taken to have a processor each"
    )
    paper = advice.paper
    click.echo(
        f"the paper's eq. (5): {duration(paper.total_s)} = start {duration(paper.start_s)} + empty"
        f" {duration(paper.empty_s)} + ({paper.batches} - 1) * full {duration(paper.full_s)} + end"
        f" {duration(paper.end_s)} + averaging {duration(paper.aggregate_s)}"
    )
    if advice.memory is not None:
        click.echo(f"memory: {advice.memory.words}")
        if advice.memory.most_in_flight < advice.owners or advice.memory.recompute:
            click.echo(
                f"so an epoch takes {duration(advice.memory.epoch_s)}; all else here is with memory for all owners at"
                " a time"
            )
    _show_ways(advice)


def _show_links(advice: Advice) -> None:
    from zmpsl.observe.readable import amount

    rates = [f"{amount(hop.bytes_per_s)}/s" if hop.bytes_per_s < FAST else "beyond measure" for hop in advice.links]
    rows = [
        [
            hop.between, rate, f"{1e3 * hop.latency_s:.3f}", hop.origin,
            f"{amount(hop.forward_bytes)}, {amount(hop.backward_bytes)}",
            f"{1e3 * hop.forward_s:.3f}, {1e3 * hop.backward_s:.3f}",
        ]
        for hop, rate in zip(advice.links, rates, strict=True)
    ]  # fmt: skip
    table("links", ["link", "rate", "latency ms", "figures from", "per batch, there and back", "ms"], rows)


def _show_ways(advice: Advice) -> None:
    from zmpsl.observe.readable import duration

    table(
        "other ways",
        ["way", "epoch", "against the plan", "ms per batch", "layout, or why not"],
        [
            [
                way.name,
                "-" if way.epoch_s is None else duration(way.epoch_s),
                "-" if way.epoch_s is None else f"{100 * (way.epoch_s / advice.epoch_s - 1):+.0f} %",
                "-" if way.pace_s is None else f"{1e3 * way.pace_s:.3f}",
                way.text,
            ]
            for way in advice.alternatives
        ],
    )


def _show_fill(advice: Advice) -> None:
    expected, micro = advice.prediction, advice.micro
    click.echo(
        f"pipe: one batch alone takes {1e3 * expected.round_trip_s:.3f} ms, so {expected.owners_to_fill:.1f} owners"
        f" fill it; there are {advice.owners}"
    )
    if not advice.full:
        pieces = expected.micro_batches_to_fill
        remedy = f"train.micro_batches: {pieces} would fill it" if pieces else "no number of micro-batches fills it"
        click.echo(f"warning: too few owners to fill the pipe, nodes will wait; {remedy}")
    click.echo(
        f"for one owner alone micro-batches of {micro.samples} samples ({micro.micro_batches} per batch) are fastest:"
        f" {1e3 * micro.solution.value:.3f} ms per batch"
    )
