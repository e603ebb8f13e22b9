"""What lossy codecs cost in accuracy: a fixed small training with every codec in both directions at two cuts.

    python bench/accuracy.py                              # every codec, three seeds
    python bench/accuracy.py --codecs "accurate;slow-link" --seeds 0

One owner, one compute node, a net with batch norm cut behind its first and second stage, Fashion-MNIST; every role, the
wire format and the codecs are those of a real run, only sockets are missing. Evaluation goes through the codec too. The
presets must lie within one point of training without a codec: the command fails if one does not.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import torch
from report import machine, table

from zmpsl.job import Job, parse_job
from zmpsl.launch.memory import MemoryRun
from zmpsl.observe.events import EvaluationEvent, Event, RoundEvent

FOLDER = Path(os.environ.get("ZMPSL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "fashion-mnist"
PRESETS = ("lossless", "accurate", "slow-link")
CODECS = ("none", *PRESETS, "int8", "int4", "qz(0.2)", "qz(1.0)", "topk(0.1)", "topk(0.1, error-feedback)")
POINT = 0.01


class Result(NamedTuple):
    """One run: accuracy on the test images, and bytes of tensors between owner and node before and after packing."""

    accuracy: float
    raw_bytes: int
    packed_bytes: int
    seconds: float


def job_of(codec: str, seed: int, samples: int, tests: int, epochs: int) -> Job:
    """Gives the training; only codec and seed differ between runs."""
    return parse_job(
        "model: {name: 'nets:norm_stages'}\nowners: 1\ncompute_nodes: 1\ncuts: [1, 2]\n"
        "optimizer: {name: adam, state: average, lr: {initial: 0.004, schedule: cosine}}",
        "bench",
        [
            "data.name=fashion-mnist", f"data.dir={FOLDER}", f"data.args.limit={samples}",
            f"data.args.test_limit={tests}", f"seed={seed}", f"codec={codec}", f"train.rounds={epochs}",
            "train.local_epochs=1", "train.batch_size=64", f"evaluate.every={epochs}",
        ],
    )  # fmt: skip


def train(job: Job) -> Result:
    """Runs a job to its end."""
    events: list[Event] = []
    run = MemoryRun(job)
    run.manager.board.listeners.append(events.append)
    began = time.perf_counter()
    run.run()
    seconds = time.perf_counter() - began
    rounds = [event for event in events if isinstance(event, RoundEvent)]
    links = [link for event in rounds for name, link in event.links.items() if "aggregator" not in name]
    scores = [event.accuracy for event in events if isinstance(event, EvaluationEvent)]
    if not scores or scores[-1] is None:
        raise click.ClickException("the run was not evaluated")
    sizes = sum(link.raw_bytes for link in links), sum(link.packed_bytes for link in links)
    return Result(scores[-1], *sizes, seconds)


def kept(path: Path | None, key: str, work: Callable[[], Result]) -> Result:
    """Gives what the file has under a key, or does the work and adds it: a long bench can be done in pieces."""
    if path is None:
        return work()
    lines = path.read_text().splitlines() if path.exists() else []
    found = dict(msgspec.json.decode(line, type=tuple[str, Result]) for line in lines)
    if key not in found:
        found[key] = work()
        with path.open("a") as file:
            file.write(msgspec.json.encode((key, found[key])).decode() + "\n")
    return found[key]


def row(codec: str, results: list[Result], base: list[Result]) -> list[object]:
    """Words one codec's runs."""
    mean, without = (statistics.mean(result.accuracy for result in each) for each in (results, base))
    ratio = sum(result.raw_bytes for result in results) / sum(result.packed_bytes for result in results)
    scores = [f"{100 * result.accuracy:.2f}" for result in results]
    return [codec, *scores, f"{100 * mean:.2f}", f"{100 * (mean - without):+.2f}", f"{ratio:.1f}"]


@click.command()
@click.option(
    "--codecs", default=";".join(CODECS), show_default=True, help="What to compare, with ; between; none always is."
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of weights and shuffling.")
@click.option("--samples", default=3840, show_default=True, help="Training images.")
@click.option("--tests", default=5000, show_default=True, help="Test images.")
@click.option("--epochs", default=6, show_default=True, help="Epochs.")
@click.option("--keep", type=click.Path(path_type=Path), help="File of results: those in it are not computed again.")
def main(codecs: str, seeds: str, samples: int, tests: int, epochs: int, keep: Path | None) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    if not FOLDER.exists():
        raise click.ClickException(f"{FOLDER} does not exist; set ZMPSL_DATA to the folder that holds fashion-mnist/")
    names = ["none", *(name.strip() for name in codecs.split(";") if name.strip() != "none")]
    numbers = [int(seed) for seed in seeds.split(",")]
    found: dict[str, list[Result]] = {name: [] for name in names}
    for name, seed in itertools.product(names, numbers):
        job = job_of(name, seed, samples, tests, epochs)
        key = f"{name} {seed} {samples} {tests} {epochs}"
        found[name].append(kept(keep, key, lambda job=job: train(job)))  # type: ignore[misc]
    print(machine(" ".join(["python", *sys.argv])))
    print(f"{samples} training and {tests} test images, {epochs} epochs in batches of 64; accuracy in %\n")
    head = ["codec", *(f"seed {seed}" for seed in numbers), "mean", "against none", "ratio"]
    print(table(head, [row(name, found[name], found["none"]) for name in names]))
    base = statistics.mean(result.accuracy for result in found["none"])
    far = [
        name
        for name in names
        if name in PRESETS and statistics.mean(result.accuracy for result in found[name]) < base - POINT
    ]
    print(f"presets within one point of none: {'all' if not far else 'not ' + ', '.join(far)}")
    sys.exit(1 if far else 0)


if __name__ == "__main__":
    main()
