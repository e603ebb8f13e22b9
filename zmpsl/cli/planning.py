"""Commands about plans: profile a model, lay out the plan of a job, and answer what-if questions of a scenario."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zmpsl.cli.options import PATH, errors

if TYPE_CHECKING:
    from zmpsl.job import Job
    from zmpsl.planner.advice import Advice
    from zmpsl.planner.scenario import Choice
    from zmpsl.profiles import Profile

__all__ = ["estimate", "plan", "profile", "simulate"]

FORMAT = click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
MOST_CHOICES_SHOWN = 30


@click.command()
@click.argument("model", required=False)
@click.option("--arg", "args", multiple=True, metavar="KEY=VALUE", help="Argument of the model.")
@click.option("--job", "path", type=PATH, default=None, help="Job whose model, batch size, optimiser and data count.")
@SET
@click.option("--shape", default=None, metavar="1,28,28", help="Shape of one sample; from the job's data or the model.")
@click.option("--repeats", type=click.IntRange(1), default=15, show_default=True, help="Measurements per block.")
@click.option("--budget", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds to measure in all.")
@click.option("--out", type=PATH, default=None, help="Write the profile here, as JSON.")
@FORMAT
def profile(
    model: str | None, args: tuple[str, ...], path: Path | None, overrides: tuple[str, ...], shape: str | None,
    repeats: int, budget: float, out: Path | None, form: str,
) -> None:  # fmt: skip
    """Measure what the blocks of MODEL cost on this device, for a job's batch size and optimiser."""
    with errors():
        from zmpsl.job import load_job
        from zmpsl.profiles import write_profile

        more = ([f"model.name={model}"] if model else []) + [f"model.args.{arg}" for arg in args]
        job = load_job(path, [*overrides, *more])
        found = _measure(job, shape, repeats, budget, from_data=path is not None)
        if out is not None:
            write_profile(out, found)
        _show_profile(found, form)


@click.command()
@click.argument("path", metavar="JOB", type=PATH, required=False)
@SET
@click.option(
    "--profile", "files", type=PATH, multiple=True,
    help="File of `zmpsl profile`: one for all, or the owners' and then each node's. Measured here where not given.",
)  # fmt: skip
@click.option("--nodes", type=click.IntRange(1), default=None, help="Number of compute nodes, instead of the job's.")
@click.option("--batches", type=click.IntRange(1), default=None, help="Batches of a local epoch; else counted.")
@FORMAT
def plan(
    path: Path | None, overrides: tuple[str, ...], files: tuple[Path, ...], nodes: int | None, batches: int | None,
    form: str,
) -> None:  # fmt: skip
    """Show where JOB would be cut, what each node would hold and do, and how else it could be done."""
    with errors():
        from zmpsl.job import load_job
        from zmpsl.planner.advice import advise

        more = [f"compute_nodes={nodes}", "multihop_level=null"] if nodes is not None else []
        job = load_job(path, [*overrides, *more])
        measured = _measured(job, files)
        decided, job = job.train.micro_batches == "auto", measured.job
        each = job.train.local_epochs * batches if batches is not None else 0
        counts = (each,) * job.owners if each else _batches(job)
        advice = advise(measured, counts, job.planning.solver)
        if form == "json":
            _echo_json(advice)
        else:
            _show_plan(job, advice)
            if decided:
                click.echo(f"train.micro_batches: auto takes {job.train.micro_batches}")


@click.command()
@click.argument("path", metavar="SCENARIO", type=PATH)
@FORMAT
def estimate(path: Path, form: str) -> None:
    """Answer the what-if questions of SCENARIO (a YAML file) in closed form."""
    _answer(path, form, "estimate")


@click.command()
@click.argument("path", metavar="SCENARIO", type=PATH)
@FORMAT
def simulate(path: Path, form: str) -> None:
    """Answer the what-if questions of SCENARIO (a YAML file) by playing an epoch of every choice of nodes."""
    _answer(path, form, "simulate")


# -- measuring --------------------------------------------------------------------------------------------------------


def _measure(job: Job, shape: str | None, repeats: int, budget: float, from_data: bool) -> Profile:
    from zmpsl.engine.build import summarise
    from zmpsl.engine.profile import Effort, inputs_like, measure, use_threads
    from zmpsl.plan import micro_samples

    use_threads(job.threads)
    blocks = summarise(job.model)
    sample, dtype = _sample(job, shape, from_data)
    inputs = inputs_like(sample, dtype, micro_samples(job))
    return measure(job.model, blocks, range(len(blocks)), inputs, job.optimizer, Effort(repeats, budget))


def _sample(job: Job, shape: str | None, from_data: bool) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of one sample: as told, of the job's data, or what a model of the zoo is meant for."""
    from zmpsl.errors import JobError
    from zmpsl.models import ModelError, input_spec

    if shape is not None:
        try:
            return tuple(int(size) for size in shape.split(",")), "float32"
        except ValueError as error:
            raise JobError(f"--shape {shape}: must be whole numbers with commas, such as 1,28,28") from error
    if from_data:
        import numpy as np

        from zmpsl.data import load

        inputs, _ = load(job.data, job.seed).train.batch(np.arange(1))
        return inputs.shape[1:], inputs.dtype.name
    try:
        sample, dtype = input_spec(job.model.name, **job.model.args)
    except ModelError as error:
        raise JobError(f"{error}; give --shape, or --job with the data") from error
    return sample, dtype


def _measured(job: Job, files: Sequence[Path]) -> Any:
    from zmpsl.errors import JobError
    from zmpsl.plan import micro_samples
    from zmpsl.profiles import cut_profile, read_profile
    from zmpsl.roles.planning import measured_of

    found = [read_profile(file) for file in files]
    if not found and job.planning.profile is not None:
        found = [read_profile(Path(job.planning.profile))]
    found = found or [_measure(job, None, 7, 10.0, from_data=True)]
    if len(found) not in (1, job.nodes + 1):
        raise JobError(
            f"{len(found)} profiles for the owners and {job.nodes} compute nodes: give one for all, or {job.nodes + 1},"
            " the owners' first"
        )
    found = [cut_profile(one, job, micro_samples(job)) for one in found]
    nodes = found[1:] or [found[0]] * job.nodes
    return _in_pieces(job, measured_of(job, found[0], {f"node-{hop}": one for hop, one in enumerate(nodes)}))


def _in_pieces(job: Job, measured: Any) -> Any:
    """Cuts batches into as many pieces as are best, where the job leaves that open and the model allows it."""
    from zmpsl.engine.build import summarise
    from zmpsl.planner.advice import bounds_of
    from zmpsl.planner.measured import problem_of
    from zmpsl.planner.pieces import choose, in_pieces, mixes_samples
    from zmpsl.planner.solver import solve

    if job.train.micro_batches != "auto":
        return measured

    def split(one: Any) -> tuple[tuple[int, ...], list[str]]:
        solution = solve(problem_of(one), job.planning.solver)
        return bounds_of(one, solution), [piece.node for piece in solution.pieces]

    return in_pieces(measured, 1 if mixes_samples(summarise(job.model)) else choose(measured, split))


def _batches(job: Job) -> tuple[int, ...]:
    """Batches of each owner in a round, counted in the job's data."""
    from zmpsl.data import load, owner_data
    from zmpsl.engine.batches import count_batches
    from zmpsl.errors import DataError

    try:
        split = load(job.data, job.seed)
    except DataError as error:
        raise DataError(
            f"{error}; where the data are not here, give the batches of a local epoch: --batches"
        ) from error
    each = range(job.owners)
    data = [owner_data(split, job.data, job.evaluate, job.owners, owner, job.seed) for owner in each]
    return tuple(count_batches(data[owner], job, owner) for owner in each)


def _answer(path: Path, form: str, method: Any) -> None:
    with errors():
        from zmpsl.planner.scenario import choices, load_scenario, pareto

        scenario, found = load_scenario(path)
        every = list(choices(scenario, found, method))
        front = pareto(every)
        if form == "json":
            _echo_json({"choices": every, "pareto": front})
        else:
            _show_choices(every, front)


# -- showing ----------------------------------------------------------------------------------------------------------


def _echo_json(value: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1).decode())


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: with rich where that is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        click.echo(title)
        for row in (columns, *rows):
            click.echo("  ".join(row))
        return
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160).print(table)


def _show_profile(found: Profile, form: str) -> None:
    from zmpsl.observe.readable import amount

    if form == "json":
        _echo_json(found)
        return
    rows = [
        [
            str(index), block.name,
            *(f"{1e3 * one.median_s:.3f} ({1e3 * one.low_s:.3f}-{1e3 * one.high_s:.3f})"
              for one in (block.forward, block.backward, block.update)),
            amount(block.parameter_bytes), amount(block.optimizer_bytes), amount(block.saved_bytes),
            amount(block.output_bytes),
        ]
        for index, block in found.blocks.items()
    ]  # fmt: skip
    title = (
        f"{found.model}: {found.batch_size} samples, {found.optimizer}, {found.threads} thread(s), torch {found.torch},"
        f" {found.host}; median and middle half in ms"
    )
    columns = ["block", "kind", "forward", "backward", "update", "weights", "optimiser", "saved", "output"]
    _table(title, columns, rows)
    per_task = f"{1e6 * found.task_s:.0f} µs per task and {1e6 * found.step_s:.0f} µs per optimiser step"
    click.echo(f"besides, {per_task}, whatever the blocks; measurements spread by {100 * found.spread:.0f} %")


def _show_plan(job: Job, advice: Advice) -> None:
    from zmpsl.observe.readable import amount, duration

    rows = []
    for held in advice.parts:
        memory = "" if held.memory_bytes is None else amount(held.memory_bytes)
        memory += "" if held.budget_bytes is None else f" of {amount(held.budget_bytes)}"
        busy_s = held.forward_s + held.backward_s + held.update_s
        rows.append(
            [
                str(held.part), held.where, f"{held.first}-{held.stop - 1}", amount(held.parameter_bytes), memory,
                f"{1e3 * held.forward_s:.3f}", f"{1e3 * held.backward_s:.3f}", f"{1e3 * held.update_s:.3f}",
                f"{1e3 * busy_s:.3f}",
            ]
        )  # fmt: skip
    columns = ["part", "where", "blocks", "weights", "memory", "forward", "backward", "update", "ms per batch"]
    _table(f"{job.name}: {job.owners} owners, {job.nodes} compute nodes", columns, rows)
    click.echo(f"solved in {advice.solution.seconds:.2f} s by {advice.solution.backend}: {advice.solution.proof}")
    expected = advice.prediction
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
    _show_ways(advice)


def _show_ways(advice: Advice) -> None:
    from zmpsl.observe.readable import duration

    _table(
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


def _show_choices(every: Sequence[Choice], front: Sequence[Choice]) -> None:
    from zmpsl.observe.readable import duration

    best = {id(choice) for choice in front}
    done = sorted((one for one in every if one.epoch_s is not None), key=lambda one: one.epoch_s or 0.0)
    rows = [
        [
            ("* " if id(one) in best else "  ") + ", ".join(f"{count} {name}" for name, count in one.nodes.items()),
            duration(one.epoch_s or 0.0), f"{one.cost or 0.0:.4g}", duration(one.paper_s or 0.0), one.bottleneck,
            "full" if one.full else "not full", one.layout,
        ]
        for one in done[:MOST_CHOICES_SHOWN]
    ]  # fmt: skip
    columns = ["nodes", "epoch", "cost", "eq. (5)", "bottleneck", "pipe", "layout"]
    _table("fastest first; * no other is both faster and cheaper", columns, rows)
    if len(done) > MOST_CHOICES_SHOWN:
        click.echo(f"{len(done) - MOST_CHOICES_SHOWN} slower choices are left out; --format json has them")
    for one in every:
        if one.epoch_s is None:
            click.echo(f"not possible with {', '.join(f'{n} {name}' for name, n in one.nodes.items())}: {one.text}")
