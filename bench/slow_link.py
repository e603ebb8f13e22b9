"""Epoch time of a data owner behind a slow link, with each codec, and what `codec: auto` costs on a fast one.

    python bench/slow_link.py                      # 20 Mbit/s each way
    python bench/slow_link.py --mbit 0             # loopback as it is

One owner, one compute node; both cuts lie right behind a ReLU. All that the owner sends and receives, its parts for
averaging too, shares one rate per direction. Every codec trains the same epochs; the first one is not counted, as
`auto` measures the link in it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import click
import torch
from report import machine, table

from zmpsl.job import Job, parse_job
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.observe.events import Event, NoticeEvent, RoundEvent
from zmpsl.roles.aggregator import Aggregator
from zmpsl.roles.compute import ComputeNode
from zmpsl.roles.manager import Manager
from zmpsl.roles.owner import DataOwner
from zmpsl.trials.slow_link import Bucket, Shaper

FOLDER = Path(os.environ.get("ZMPSL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "fashion-mnist"
CODECS = "none,lossless,bf16-huff,slow-link,auto,auto(slow-link)"
SHAPED = "127.0.0.2"


def job_of(codec: str, samples: int, epochs: int, batch: int, micro: int) -> Job:
    """One owner, one compute node between two cuts behind a ReLU."""
    fashion = FOLDER.exists()
    data = (
        ["data.name=fashion-mnist", f"data.dir={FOLDER}"]
        if fashion
        else ["data.name=synthetic", "data.args.shape=[1, 28, 28]"]
    )
    size = f"data.args.limit={samples}" if fashion else f"data.args.samples={samples}"
    return parse_job(
        "model: {name: 'nets:relu_cuts'}\nowners: 1\ncompute_nodes: 1\ncuts: [1, 3]\nevaluate: {every: 0}",
        "bench",
        [
            *data, size, f"codec={codec}", f"train.rounds={epochs}", "train.local_epochs=1",
            f"train.batch_size={batch}", f"train.micro_batches={micro}", "train.schedule=gpipe",
        ],
    )  # fmt: skip


def run(job: Job, mbit: float) -> list[Event]:
    """Trains with every role in a thread; the owner behind the link if there is a rate."""
    events: list[Event] = []
    manager = Manager(None, job)
    manager.board.listeners.append(events.append)
    members = [Aggregator(), ComputeNode(), DataOwner()]
    up, down = Bucket(mbit * 125_000), Bucket(mbit * 125_000)
    with ManagerNode(manager) as server:
        nodes = [Node(member, server.endpoint, advertise=SHAPED if mbit else None) for member in members]
        # What aggregator and node receive comes from the owner.
        shapers = [Shaper(node.endpoint, way) for node, way in zip(nodes, (up, up, down), strict=True) if mbit]
        try:
            for node in nodes:
                node.start()
            if not server.drain(600):
                raise click.ClickException("the run did not end")
            if server.error is not None:
                raise server.error
        finally:
            for node in nodes:
                node.close()
            for shaper in shapers:
                shaper.close()
    return events


def row(codec: str, events: list[Event], base: float | None) -> list[object]:
    """Words one codec's run; `base` is the epoch time with none."""
    rounds = [event for event in events if isinstance(event, RoundEvent)][1:]
    seconds = statistics.median(event.seconds for event in rounds)
    links = [link for event in rounds for link in event.links.values()]
    raw, packed = sum(link.raw_bytes for link in links), sum(link.packed_bytes for link in links)
    busy = sum(link.encode_s + link.decode_s for link in links) / len(rounds)
    used = {name for link in links for name in link.codecs}
    low, high = min(event.seconds for event in rounds), max(event.seconds for event in rounds)
    return [
        codec, f"{seconds:.2f} ({low:.2f}-{high:.2f})", f"{base / seconds:.2f}" if base else "1.00",
        f"{raw / packed:.2f}", f"{1000 * busy:.0f}", f"{rounds[-1].loss:.4f}", ", ".join(sorted(used)),
    ]  # fmt: skip


@click.command()
@click.option(
    "--mbit", default=20.0, show_default=True, help="Rate of the owner's link each way; 0: loopback as it is."
)
@click.option("--samples", default=512, show_default=True, help="Training samples of an epoch.")
@click.option("--epochs", default=4, show_default=True, help="Epochs of each run, the first of them not counted.")
@click.option("--batch", default=64, show_default=True, help="Samples in a batch.")
@click.option("--micro", default=4, show_default=True, help="Micro-batches in a batch.")
@click.option("--codecs", default=CODECS, show_default=True, help="What to compare; the first is the base.")
@click.option("--repeats", default=1, show_default=True, help="Runs of each, one after the other in turn.")
def main(mbit: float, samples: int, epochs: int, batch: int, micro: int, codecs: str, repeats: int) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    names = codecs.split(",")
    found: dict[str, list[Event]] = {name: [] for name in names}
    began = time.monotonic()
    for _ in range(repeats):
        for name in names:
            events = run(job_of(name, samples, epochs, batch, micro), mbit)
            skip = len([event for event in found[name] if isinstance(event, RoundEvent)])
            # `row` leaves out the first round of all; later runs' first rounds are left out here.
            found[name] += [e for e in events if not (skip and isinstance(e, RoundEvent) and e.round == 0)]
    rows: list[list[object]] = []
    base: float | None = None
    for name in names:
        rows.append(row(name, found[name], base))
        if base is None:
            rounds = [event for event in found[name] if isinstance(event, RoundEvent)][1:]
            base = statistics.median(event.seconds for event in rounds)
    link = f"{mbit:g} Mbit/s each way" if mbit else "loopback as it is"
    print(machine(" ".join(["python", *sys.argv])))
    print(f"{link}; {samples} samples, batches of {batch} in {micro}; {time.monotonic() - began:.0f} s in all\n")
    print(table(["codec", "s per epoch", "x none", "ratio", "ms packing and unpacking", "last loss", "used"], rows))
    for name in names:
        for text in dict.fromkeys(event.text for event in found[name] if isinstance(event, NoticeEvent)):
            print(f"{name}: {text}")


if __name__ == "__main__":
    main()
