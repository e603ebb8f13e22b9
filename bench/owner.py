"""Memory of a data owner that holds the first and the last part, beside training the whole model on the device.

    python bench/owner.py [--models vgg19_mpsl,resnet101_mpsl] [--batch 32] [--batches 3]

Both are processes of their own that train the same batches with the same optimiser. The owner is what `zmpsl owner`
starts, in a run over one compute node that holds all but the first and the last block; the other trains the whole model
in plain PyTorch. Peaks are the operating system's count (VmHWM). What the process had before it held data or weights
(interpreter, PyTorch, libraries) is shown apart: it is the same for both.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import click
import torch
from pool import aggregator_process, node_process, status
from report import machine, table
from torch import nn

from zmpsl.data import load, owner_data
from zmpsl.engine.batches import training_batches
from zmpsl.engine.build import build_blocks, summarise
from zmpsl.engine.owner import loss_of
from zmpsl.engine.replica import make_optimizer
from zmpsl.job import Job, parse_job
from zmpsl.job.schema import Model
from zmpsl.launch.process import make_member
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.plan import node_name, owner_name
from zmpsl.roles.manager import Manager
from zmpsl.transport.allocator import keep_freed_memory


def job_of(model: str, batch: int, batches: int) -> Job:
    """One owner with synthetic images, one compute node with all but the ends."""
    last = len(summarise(Model(name=model))) - 1
    return parse_job(
        "",
        "bench",
        [
            f"model.name={model}", f"cuts=[1, {last}]", "compute_nodes=1", "owners=1", f"train.batch_size={batch}",
            "train.rounds=1", "train.local_epochs=1", f"train.max_batches={batches}", "evaluate.every=0",
            "data.name=synthetic", "data.args={shape: [3, 32, 32]}", "network.join_timeout_s=300",
        ],
    )  # fmt: skip


def owner_process(job: Job, manager: str, into: str) -> None:
    """The data owner of a run."""
    torch.set_num_threads(1)
    member = make_member("owner", None, owner_name(0))
    before = status("VmHWM")
    Node(member, manager, reach_s=120).run()
    Path(into).write_text(json.dumps([before, status("VmHWM")]), encoding="utf-8")


def whole_process(job: Job, manager: str, into: str) -> None:
    """Training of the whole model, as on a device of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    before = status("VmHWM")
    data = owner_data(load(job.data, job.seed), job.data, job.evaluate, 1, 0, job.seed)
    model = nn.Sequential(
        *(block for _, block in build_blocks(job.model, job.seed, range(len(summarise(job.model)))))
    ).train()
    optimizer = make_optimizer(job.optimizer, list(model.parameters()))
    for batch in training_batches(data, job, 0, 0):
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            loss_of(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    Path(into).write_text(json.dumps([before, status("VmHWM")]), encoding="utf-8")


def peak_of(what: Callable[[Job, str, str], None], job: Job, manager: str, folder: str) -> tuple[int, int]:
    """Runs one of the two in a process of its own; gives bytes at its start and at most."""
    file = Path(folder) / what.__name__
    process = multiprocessing.get_context("spawn").Process(target=what, args=(job, manager, str(file)), daemon=True)
    process.start()
    process.join(600)
    if process.exitcode != 0:
        process.kill()
        raise click.ClickException(f"{what.__name__} ended with {process.exitcode}")
    before, peak = json.loads(file.read_text(encoding="utf-8"))
    return before, peak


def owner_peak(job: Job, folder: str) -> tuple[int, int]:
    """Runs all roles; gives bytes of the owner at its start and at most."""
    context = multiprocessing.get_context("spawn")
    with ManagerNode(Manager(None, job, "owner")) as manager:
        node = (node_name(0), manager.endpoint, "80%", str(Path(folder) / "node"), 0, False)
        others: list[BaseProcess] = [
            context.Process(target=node_process, args=node, daemon=True),
            context.Process(target=aggregator_process, args=(manager.endpoint,), daemon=True),
        ]
        for process in others:
            process.start()
        found = peak_of(owner_process, job, manager.endpoint, folder)
        manager.drain(60)
        for process in others:
            process.join(30)
    return found


@click.command()
@click.option("--models", default="vgg19_mpsl,resnet101_mpsl", show_default=True, help="Models of the zoo.")
@click.option("--batch", default=32, show_default=True, help="Samples per batch.")
@click.option("--batches", default=3, show_default=True, help="Batches that are trained.")
def main(models: str, batch: int, batches: int) -> None:
    """Measures what a data owner needs, and what training without help would need."""
    print(machine(f"python bench/owner.py --models {models} --batch {batch} --batches {batches}"))
    rows = []
    for model in models.split(","):
        job = job_of(model, batch, batches)
        with tempfile.TemporaryDirectory() as folder:
            before, owner = owner_peak(job, folder)
            start, whole = peak_of(whole_process, job, "", folder)
        of = 1 - (owner - before) / (whole - start)
        figures = [f"{value / 2**20:.0f}" for value in (before, owner, owner - before, start, whole, whole - start)]
        rows.append([model, *figures, f"**{owner / whole - 1:+.0%}**", f"{-of:+.0%}"])
    head = ["MiB", "owner's process", "peak", "of it training", "whole model's process", "peak", "of it training",
            "owner / whole", "training alone"]  # fmt: skip
    print(table(head, rows))


if __name__ == "__main__":
    main()
