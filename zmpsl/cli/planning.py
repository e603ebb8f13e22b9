"""Commands about plans: profile a model, lay out the plan of a job, and answer what-if questions of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zmpsl.cli.options import PATH, errors
from zmpsl.cli.tables import echo_json, table

if TYPE_CHECKING:
    from zmpsl.job import Job
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
        from zmpsl.cli.plan_text import show_infeasible, show_plan
        from zmpsl.job import load_job
        from zmpsl.planner.solution import Infeasible
        from zmpsl.roles.beforehand import foresee

        more = [f"compute_nodes={nodes}", "multihop_level=null"] if nodes is not None else []
        job = load_job(path, [*overrides, *more])
        measured = _measured(job, files)
        decided, job = job.train.micro_batches == "auto", measured.job
        each = job.train.local_epochs * batches if batches is not None else 0
        counts = (each,) * job.owners if each else _batches(job)
        try:
            advice = foresee(measured, counts)
        except Infeasible as error:
            if form == "json":
                show_infeasible(error)
            raise
        if form == "json":
            echo_json(advice)
        else:
            show_plan(job, advice)
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
    import msgspec

    from zmpsl.engine.build import summarise
    from zmpsl.engine.profile import Effort, inputs_like, measure, use_threads
    from zmpsl.plan import micro_samples
    from zmpsl.trials.message import message_cost

    use_threads(job.threads)
    blocks = summarise(job.model)
    sample, dtype = _sample(job, shape, from_data)
    inputs = inputs_like(sample, dtype, micro_samples(job))
    found = measure(job.model, blocks, range(len(blocks)), inputs, job.optimizer, Effort(repeats, budget))
    largest = max(block.output_bytes for block in found.blocks.values())
    return msgspec.structs.replace(found, messages=message_cost(largest))


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
    from zmpsl.planner.from_job import measured_of
    from zmpsl.profiles import cut_profile, read_profile

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
            echo_json({"choices": every, "pareto": front})
        else:
            _show_choices(every, front)


# -- showing ----------------------------------------------------------------------------------------------------------


def _show_profile(found: Profile, form: str) -> None:
    from zmpsl.observe.readable import amount

    if form == "json":
        echo_json(found)
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
    table(title, columns, rows)
    if (cost := found.messages) is not None:
        rate = amount(1 / max(cost.transit_s_per_byte, 1e-11))
        each = f"{1e6 * cost.send_s:.0f} µs to send, {1e6 * cost.receive_s:.0f} µs to receive"
        click.echo(f"a message to itself takes {each}, and {1e6 * cost.transit_s:.0f} µs on the way, at {rate}/s")
    per_task = f"{1e6 * found.task_s:.0f} µs per task and {1e6 * found.step_s:.0f} µs per optimiser step"
    click.echo(f"besides, {per_task}, whatever the blocks; measurements spread by {100 * found.spread:.0f} %")


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
    table("fastest first; * no other is both faster and cheaper", columns, rows)
    if len(done) > MOST_CHOICES_SHOWN:
        click.echo(f"{len(done) - MOST_CHOICES_SHOWN} slower choices are left out; --format json has them")
    for one in every:
        if one.epoch_s is None:
            click.echo(f"not possible with {', '.join(f'{n} {name}' for name, n in one.nodes.items())}: {one.text}")
