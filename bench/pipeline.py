"""How well the chain is used, against the clock and against torch.distributed.pipelining; what a round costs.

    python bench/pipeline.py [--repeats 5] [--json FILE]

1. Fill. An epoch's wall time over the busiest compute node's own forward + backward + update seconds, for enough
   owners to fill the chain and for one owner with micro-batches. 1.00 would be a node that never waits.
2. Peer. Samples per second of one owner with micro-batches against torch.distributed.pipelining over gloo: same
   blocks, same cuts, same micro-batches, one thread per process, both in turns. torch's chain is linear, so it needs a
   process more (the last part); zmpsl's first and last part share the owner's process.
3. Round. Seconds per round of a model that computes next to nothing, and the memory of manager and aggregator.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil
from peer_pipeline import torch_samples_per_s
from report import machine, table

from zmpsl.job import Job, parse_job
from zmpsl.launch.local import run
from zmpsl.observe.events import Event, RoundEvent, read_events

HERE = Path(__file__).parent
WARM_UP = 1


def train(folder: Path, name: str, *overrides: str) -> list[RoundEvent]:
    """Runs a job; gives its rounds without the first."""
    job: Job = parse_job("", "bench", ["evaluate.every=0", "data.name=synthetic", "codec=none", *overrides])
    result = run(job, folder, name)
    rounds = [event for event in read_events(result.folder / "metrics.jsonl") if isinstance(event, RoundEvent)]
    return rounds[WARM_UP:]


def images(samples: int, owners: int, batch: int, rounds: int) -> list[str]:
    """Synthetic images for each owner."""
    return [
        f"data.args.samples={samples * owners}",
        "data.args.shape=[3, 32, 32]",
        f"owners={owners}",
        f"train.batch_size={batch}",
        f"train.rounds={rounds + WARM_UP}",
        "train.local_epochs=1",
    ]


def fill(folder: Path, repeats: int, label: str, hops: int, owners: int, micro: int, depth: int) -> dict[str, Any]:
    """One row of the first table."""
    cuts = [1, *(1 + depth * (hop + 1) // hops for hop in range(hops))]
    rounds = train(
        folder,
        f"fill-{label}",
        *images(1024 // owners, owners, 64, repeats),
        f"compute_nodes={hops}",
        f"cuts={cuts}",
        "model.name=nets:middle_heavy",
        f"model.args.depth={depth}",
        f"train.micro_batches={micro}",
        "train.schedule=gpipe",
    )
    ratios, busy = [], []
    for event in rounds:
        own = max(
            stats.forward_s + stats.backward_s + stats.update_s
            for place, stats in event.roles.items()
            if place.startswith("node")
        )
        ratios.append(event.seconds / own)
        busy.append(own)
    return {
        "case": label,
        "hops": hops,
        "owners": owners,
        "micro": micro,
        "epoch_s": statistics.median(e.seconds for e in rounds),
        "node_s": statistics.median(busy),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def peer(folder: Path, repeats: int, hops: int, micro: int, depth: int) -> dict[str, Any]:
    """One row of the second table: both in turns, ratios per turn."""
    samples, batch = 1024, 64
    cuts = [1, *(1 + depth * (hop + 1) // hops for hop in range(hops))]
    ours, theirs = [], []
    for turn in range(repeats):
        rounds = train(
            folder,
            f"peer-{hops}-{micro}-{turn}",
            *images(samples, 1, batch, 2),
            f"compute_nodes={hops}",
            f"cuts={cuts}",
            "model.name=nets:middle_heavy",
            f"model.args.depth={depth}",
            f"train.micro_batches={micro}",
        )
        ours.append(samples / min(event.seconds for event in rounds))
        theirs.append(torch_samples_per_s(cuts, depth, batch, micro, samples // batch, rounds=2))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "hops": hops,
        "micro": micro,
        "zmpsl": statistics.median(ours),
        "torch": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


def round_cost(folder: Path, rounds: int) -> dict[str, Any]:
    """Time per round and memory of the roles that hold no model."""
    rss: dict[str, float] = {}

    def look(event: Event) -> None:
        if isinstance(event, RoundEvent) and event.round == rounds // 2:
            for child in psutil.Process().children(recursive=True):
                for file in child.open_files():
                    if "/logs/" in file.path:
                        rss[Path(file.path).stem] = child.memory_info().rss / 1e6

    job = parse_job(
        "",
        "bench",
        [
            "evaluate.every=0",
            "codec=none",
            "data.name=synthetic",
            "data.args.samples=64",
            "data.args.shape=[1, 8, 8]",
            "owners=4",
            "train.batch_size=16",
            "train.local_epochs=1",
            f"train.rounds={rounds}",
            "model.name=nets:trivial",
        ],
    )
    result = run(job, folder, "round", on_event=look)
    commits = [event.time for event in read_events(result.folder / "metrics.jsonl") if isinstance(event, RoundEvent)]
    gaps = sorted((b - a) * 1e3 for a, b in pairwise(commits))
    return {
        "rounds": rounds,
        "median_ms": statistics.median(gaps),
        "p90_ms": gaps[int(0.9 * len(gaps))],
        "manager_mb": rss.get("manager"),
        "aggregator_mb": rss.get("aggregator"),
    }


def show(fills: list[dict[str, Any]], peers: list[dict[str, Any]], cost: dict[str, Any]) -> None:
    """Prints the three tables."""
    print(
        table(
            ["case", "hops", "owners", "micro-batches", "epoch s", "busiest node s", "wall / busiest (min-max)"],
            [
                [
                    f["case"],
                    f["hops"],
                    f["owners"],
                    f["micro"],
                    f"{f['epoch_s']:.2f}",
                    f"{f['node_s']:.2f}",
                    f"**{f['ratio']:.2f}** ({f['low']:.2f}-{f['high']:.2f})",
                ]
                for f in fills
            ],
        )
    )
    print(
        table(
            ["hops", "micro-batches", "zmpsl samples/s", "torch samples/s", "ratio (min-max)"],
            [
                [
                    p["hops"],
                    p["micro"],
                    f"{p['zmpsl']:.0f}",
                    f"{p['torch']:.0f}",
                    f"**{p['ratio']:.2f}** ({p['low']:.2f}-{p['high']:.2f})",
                ]
                for p in peers
            ],
        )
    )
    print(
        table(
            ["round of 4 owners, median", "90th percentile", "manager RSS", "aggregator RSS"],
            [
                [
                    f"**{cost['median_ms']:.1f} ms**",
                    f"{cost['p90_ms']:.1f} ms",
                    f"{cost['manager_mb']:.0f} MB",
                    f"{cost['aggregator_mb']:.0f} MB",
                ]
            ],
        )
    )


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Measured epochs, and turns against the peer.")
@click.option("--depth", default=6, show_default=True, help="Heavy blocks of the net.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures to this file."
)
def main(repeats: int, depth: int, json_path: Path | None) -> None:
    """Measures and prints three tables."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(HERE))
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fills = [
            fill(folder, repeats, "owners fill the chain", 1, 4, 1, depth),
            fill(folder, repeats, "one owner, micro-batches", 1, 1, 8, depth),
            fill(folder, repeats, "owners, two hops", 2, 6, 1, depth),
            fill(folder, repeats, "one owner, two hops", 2, 1, 8, depth),
        ]
        peers = [peer(folder, repeats, hops, micro, depth) for hops, micro in ((1, 4), (2, 4), (2, 8))]
        cost = round_cost(folder, 200)
    print(machine("python bench/pipeline.py " + " ".join(sys.argv[1:])))
    show(fills, peers, cost)
    print(f"took {time.time() - began:.0f} s")
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode({"fill": fills, "peer": peers, "round": cost})))


if __name__ == "__main__":
    main()
