"""Hundreds of imitated owners over real sockets: throughput and memory over K, predicted against measured, slow owners.

    python bench/scale.py [--more] [--only scale,mix,links,relay,links-relay] [--rounds N] [--data FOLDER] [--json FILE]

Everything runs as `zmpsl run --emulate` does: manager, aggregator, compute nodes, and a few processes that hold the
owners, each with sockets of its own. Owners compute nothing; they take the time, and send the bytes, of real ones.
Figures are medians over the rounds of a run but the first, in which connections are made and memory is touched first.

1. scale: 10, 30, 100, 300 (1,000 with --more) owners of one kind train digits_cnn on two compute nodes, which compute,
   hold at most 15 replicas at a time, and take the seconds of a device some twenty times slower. All rounds have as
   many batches, but with 1,000 owners, for each has at least one.
2. mix: figure 10 of MP-SL (2402.00208): ResNet with P = 4, 30 owners, of which 0, 15 or 30 are 2.3 times slower. Here
   the nodes compute nothing either: they take the seconds of the authors' profile (VM, `layer_profile.csv`).
3. links: figure 13b: 100 owners, of which 70 % have 8 times slower links.
4. relay: SplitNN measured: the 30 owners of 2, one after the other, with one batch each. What 16 batches each take is
   computed (`splitnn_time`), beside 2 and 3.
5. links-relay: the same for the 100 owners of 3.

In 2 and 3 all owners train at the same time, as in the paper. In 2 to 5 time is scaled, and tensors are those of
batches of 8 instead of 128 over links that are 16 times slower: the seconds of a transfer are those of the paper. They
need the authors' numbers ($ZMPSL_DATA, folder mpsl).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import msgspec
import psutil
from mpsl.published import BATCHES, SLOW, Published, total
from report import machine, table

from zmpsl.job import Job, parse_job
from zmpsl.job.emulate import emulated
from zmpsl.launch.local import run
from zmpsl.observe.events import Event, PlanEvent, ProgressEvent, RoundEvent
from zmpsl.plan import fingerprint, node_name
from zmpsl.planner.cost import splitnn_time
from zmpsl.planner.from_job import measured_of
from zmpsl.planner.measured import chain_of, owners_of, transfers_of
from zmpsl.planner.terms import PartTime
from zmpsl.profiles import BlockProfile, Profile, Timing, read_profile, write_profile

DIGITS = Path(__file__).parents[1] / "docs" / "planning" / "digits-profile.json"
COMMON = ["evaluate.every=0", "codec=none", "network.join_timeout_s=300", "network.lost_after_s=30"]
REPLICAS = 15
# The paper's batch is 128, ours this; links are slower by as much.
SAMPLES, SHRINK = 8, 16
SLOWER = 7.25 / 3.15  # MP-SL section 5: seconds per batch of the slower kind of owner over the faster
FIRST, LAST = 2, 35


def measure(name: str, job: Job, folder: Path) -> dict[str, Any]:
    """Runs a job; gives its rounds with what was predicted, and the peak memory of its compute nodes."""
    found: dict[str, Any] = {"name": name, "owners": job.owners, "scale": job.emulate.time_scale, "rounds_s": []}
    found["peaks"], processes = [0] * job.nodes, list[int]()

    def note(event: Event) -> None:
        if isinstance(event, PlanEvent):
            found["cuts"] = event.cuts
        elif isinstance(event, RoundEvent):
            found["rounds_s"].append(event.seconds)
            found.update(batches=event.batches, predicted_s=event.predicted_s)
        elif isinstance(event, ProgressEvent):
            processes.extend([] if processes else node_processes(folder / "run" / "logs", job.nodes))
            found["peaks"] = [max(pair) for pair in zip(found["peaks"], map(peak, processes), strict=False)]

    start = time.monotonic()
    run(job, folder, "run", on_event=note)
    found["measured_s"] = statistics.median(found["rounds_s"][1:] or found["rounds_s"])
    error = found["predicted_s"] / found["measured_s"] - 1
    rounds = " ".join(f"{seconds:.2f}" for seconds in found["rounds_s"])
    found |= {"error": error, "wall_s": time.monotonic() - start, "rate": found["batches"] / found["measured_s"]}
    click.echo(
        f"{name}: {rounds} s measured, {found['predicted_s']:.2f} s predicted ({100 * error:+.2f} %),"
        f" {found['rate']:.2f} batches/s, {found['wall_s']:.0f} s with start and end",
        err=True,
    )
    return found


def node_processes(logs: Path, nodes: int) -> list[int]:
    """Process of each compute node, known by the log it writes; empty until all are there."""
    wanted = [str(logs / f"{node_name(hop)}.log") for hop in range(nodes)]
    found = {}
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found |= {file.path: child.pid for file in child.open_files() if file.path in wanted}
    return [found[path] for path in wanted] if len(found) == nodes else []


def peak(process: int) -> int:
    """Most bytes that a process has ever held; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def case(name: str, devices: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Writes an emulation file and runs it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "devices.yaml"  # JSON is YAML
        file.write_text(json.dumps(devices), encoding="utf-8")
        rounds = f"train.rounds={click.get_current_context().params['rounds']}"
        job = emulated(parse_job("", name, [*COMMON, rounds, *overrides]), file)
        return {**measure(name, job, Path(folder)), "splitnn_s": splitnn_s(job)}


def splitnn_s(job: Job) -> float:
    """What the same owners would take one after the other, in seconds of the run; even cuts, for it has no pipe."""
    profile = read_profile(Path(job.planning.profile or ""))
    names = [node_name(hop) for hop in range(job.nodes)]
    known = measured_of(job, profile, dict.fromkeys(names, profile))
    bounds = (0, *range(known.first_cut, known.first_cut + job.nodes), known.last_cut, profile.model_blocks)
    batches = tuple(kind.batches for kind in job.emulate.owners for _ in range(kind.count))
    return splitnn_time(chain_of(known, bounds, names), owners_of(known, batches), transfers_of(known, bounds))


def scale_case(owners: int) -> dict[str, Any]:
    """So many owners of one kind on two nodes that compute."""
    kind = {
        "count": owners, "slow_down": 100, "bytes_per_s": 12.5e6, "latency_s": 0.005, "compute": "none",
        "batches": max(1, click.get_current_context().params["batches"] // owners),
    }  # fmt: skip
    node = {"name": "node", "count": 2, "slow_down": 20, "compute": "timed"}
    devices = {"profile": str(DIGITS), "owners": [kind], "nodes": [node], "replicas": min(owners, REPLICAS)}
    return case(f"{owners} owners", devices, ["train.local_epochs=1"])


class Paper:
    """The authors' ResNet and devices, as emulation files."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.known = Published(data).profile("resnet101")
        self.path = folder / "resnet.json"
        write_profile(self.path, self._profile())

    def run(self, name: str, owners: list[dict[str, Any]], time_scale: float, replicas: int = 0) -> dict[str, Any]:
        """Runs owners on two nodes, all at a time if not told otherwise.

        `owners` are what differs from the Raspberry Pi 4 at 8 Mbit/s.
        """
        first, last = total(self.known.owner[:FIRST]), total(self.known.owner[LAST:])
        kinds = []
        for each in owners:
            by = each.pop("slower", 1.0)
            kind = {"first": seconds(first, by), "last": seconds(last, by), "compute": "none", "batches": BATCHES}
            kinds.append({**kind, "bytes_per_s": SLOW.bytes_per_s / SHRINK, **each})
        devices = {
            "profile": str(self.path), "time_scale": time_scale, "first_cut": FIRST, "last_cut": LAST, "owners": kinds,
            "nodes": [{"name": "vm", "count": 2, "compute": "none"}],
            "replicas": replicas or sum(kind.get("count", 1) for kind in kinds),
        }  # fmt: skip
        overrides = [
            "model.name=resnet101_mpsl", "data.name=synthetic", "train.local_epochs=1",
            "data.args={shape: [3, 32, 32], classes: 10, samples: 64}", f"train.batch_size={SAMPLES}",
        ]  # fmt: skip
        return case(name, devices, overrides)

    def _profile(self) -> Profile:
        """The authors' seconds per block on a VM."""
        from zmpsl.engine.build import summarise
        from zmpsl.job.schema import Model

        blocks = summarise(Model(name="resnet101_mpsl"))
        rows = zip(blocks, self.known.node, self.known.activation_bytes, self.known.weight_bytes, strict=True)
        profiles = {
            index: BlockProfile(
                name=block.kind, forward=timing(part.forward_s), backward=timing(part.backward_s),
                update=timing(part.update_s), parameter_bytes=int(weights), state_bytes=int(weights),
                optimizer_bytes=int(weights), saved_bytes=0, output_bytes=round(sent / SHRINK),
            )
            for index, (block, part, sent, weights) in enumerate(rows)
        }  # fmt: skip
        return msgspec.structs.replace(
            read_profile(DIGITS), model="resnet101_mpsl", fingerprint=fingerprint(blocks), model_blocks=len(blocks),
            batch_size=SAMPLES, host="VM of the authors", input_shape=(3, 32, 32), task_s=0.0, step_s=0.0,
            add_s_per_byte=0.0, mean_s_per_byte=0.0, blocks=profiles,
        )  # fmt: skip


def timing(value_s: float) -> Timing:
    """One measured value without a spread."""
    return Timing(value_s, value_s, value_s)


def seconds(part: PartTime, by: float) -> dict[str, float]:
    """As an emulation file has them."""
    return {name: by * getattr(part, name) for name in ("forward_s", "backward_s", "update_s")}


def mix(fast: int, **more: Any) -> list[dict[str, Any]]:
    """Gives 30 owners, so many of them the faster ones."""
    kinds = [{"count": fast, "name": "d1", **more}, {"count": 30 - fast, "name": "d2", "slower": SLOWER, **more}]
    return [kind for kind in kinds if kind["count"]]


def mixes(paper: Paper) -> list[dict[str, Any]]:
    """Figure 10."""
    return [paper.run(f"{fast} d1 + {30 - fast} d2", mix(fast), 50) for fast in (30, 15, 0)]


def far(**more: Any) -> dict[str, list[dict[str, Any]]]:
    """Gives 100 owners with equal links, and with 70 % of them behind links eight times slower."""
    slow = {"count": 70, "name": "slow", "bytes_per_s": SLOW.bytes_per_s / SHRINK / 8, **more}
    return {
        "100 at 8 Mbit/s": [{"count": 100, **more}],
        "30 at 8, 70 at 1 Mbit/s": [{"count": 30, **more}, slow],
    }


def slow_links(paper: Paper) -> list[dict[str, Any]]:
    """Figure 13b."""
    return [paper.run(name, owners, 80) for name, owners in far().items()]


def relay(paper: Paper) -> list[dict[str, Any]]:
    """SplitNN over real sockets: one owner after the other, with one batch each."""
    return [paper.run(f"in turn: {fast} d1 + {30 - fast} d2", mix(fast, batches=1), 20, replicas=1) for fast in (30, 0)]


def links_relay(paper: Paper) -> list[dict[str, Any]]:
    """The same for figure 13b."""
    return [paper.run(f"in turn: {name}", owners, 20, replicas=1) for name, owners in far(batches=1).items()]


def show_scale(runs: Sequence[dict[str, Any]]) -> str:
    """Gives the table of 1."""
    rows = [
        [
            one["owners"], one["batches"], f"**{one['rate']:.2f}**", f"{one['rate'] / runs[0]['rate']:.3f}",
            f"{one['measured_s']:.2f}", f"{one['predicted_s']:.2f}", f"{100 * one['error']:+.2f} %",
            " + ".join(f"{peak / 2**20:.0f}" for peak in one["peaks"]), f"{one['wall_s']:.0f}",
        ]
        for one in runs
    ]  # fmt: skip
    head = ["owners", "batches", "batches/s", "x first", "measured s", "predicted s", "error", "nodes' peak RSS MiB"]
    return table([*head, "whole run s"], rows)


def show_paper(runs: Sequence[dict[str, Any]]) -> str:
    """Gives a table of 2 to 5, in seconds of the imitated devices."""
    rows = []
    for one in runs:
        measured, predicted, alone = (one["scale"] * one[key] for key in ("measured_s", "predicted_s", "splitnn_s"))
        rows.append([
            one["name"], one["cuts"], f"{one['scale']:g}", f"**{measured:.0f}**",
            f"{100 * (one['measured_s'] / runs[0]['measured_s'] - 1):+.2f} %", f"{predicted:.0f}",
            f"{100 * one['error']:+.2f} %", f"{alone:.0f}",
            f"{100 * (one['splitnn_s'] / runs[0]['splitnn_s'] - 1):+.1f} %",
        ])  # fmt: skip
    head = ["owners", "cuts", "time scale", "epoch s, measured", "change", "predicted", "error", "SplitNN s, computed"]
    return table([*head, "its change"], rows)


@click.command()
@click.option("--more", is_flag=True, help="1,000 owners too.")
@click.option("--only", default="scale,mix,links,relay,links-relay", show_default=True, help="Which parts.")
@click.option("--owners", default="10,30,100,300", show_default=True, help="Numbers of owners of the first part.")
@click.option("--rounds", default=3, show_default=True, help="Rounds of each run; the first does not count.")
@click.option("--batches", default=300, show_default=True, help="Of a round of the first part: few fill no pipe.")
@click.option("--data", default=os.environ.get("ZMPSL_DATA", ""), help="Folder with the authors' numbers.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here too.")
def main(more: bool, only: str, owners: str, data: str, json_path: Path | None, **_sizes: int) -> None:
    """Runs the parts and prints their tables."""
    print(machine(f"python bench/scale.py {' '.join(sys.argv[1:])}"))
    parts, found = only.split(","), dict[str, list[dict[str, Any]]]()
    if "scale" in parts:
        counts = [int(count) for count in owners.split(",")] + ([1000] if more else [])
        found["scale"] = [scale_case(count) for count in counts]
        print(show_scale(found["scale"]))
    if not (Path(data) / "mpsl").is_dir():
        print("No numbers of the authors here ($ZMPSL_DATA/mpsl): the other parts are left out.\n")
        parts = []
    with tempfile.TemporaryDirectory() as folder:
        ways = (("mix", mixes), ("links", slow_links), ("relay", relay), ("links-relay", links_relay))
        for part, what in ways:
            if part in parts:
                found[part] = what(Paper(Path(data), Path(folder)))
                print(show_paper(found[part]))
    if not found:
        raise click.UsageError(f"of --only {only} nothing could be measured here")
    errors = [abs(one["error"]) for runs in found.values() for one in runs]
    print(f"mean absolute error {100 * statistics.mean(errors):.2f} %, worst {100 * max(errors):.2f} %")
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
