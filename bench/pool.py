"""Memory of compute nodes against their budget, and what folding owners costs in throughput.

    python bench/pool.py [--owners 10,50,100,200] [--nodes 2,4] [--total 10GiB] [--json FILE]

Compute nodes, manager and aggregator are what `zmpsl` starts, each a process. Data owners are light stand-ins
(fake_owner.py): they send tensors of the right shapes over real sockets and hold no model, so that a hundred of them
fit one machine. For every number of nodes the budget is dealt out so that the same number M of owners fits all nodes:

1. the run with the most owners that fit at once (K = M): nothing waits, nothing is folded early; left out under a
   cgroup, where nothing is timed;
2. runs with many more owners than fit.

Memory is the operating system's count: the high-water mark of each node's resident set (VmHWM), summed over the nodes.
With `--hard` each node also has a limit that the system enforces, its budget and 10 %: on private memory, or with
`--cgroup FOLDER` that of a cgroup, which kills who takes more (hard_limit.py).
"""

from __future__ import annotations

import cProfile
import json
import multiprocessing
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from fake_owner import Shape, start_owners
from hard_limit import Cgroup
from report import machine, table
from zmpsl.models import input_spec

from zmpsl.engine.build import build_blocks, summarise
from zmpsl.engine.footprint import model_footprints
from zmpsl.errors import PeerLostError
from zmpsl.job import Job, parse_job
from zmpsl.job.schema import Model
from zmpsl.launch.process import make_member
from zmpsl.loops.manager import ManagerNode
from zmpsl.loops.member import Node
from zmpsl.messages import Described
from zmpsl.observe.events import Event, ProgressEvent, RoundEvent
from zmpsl.plan import AGGREGATOR, check_cuts, node_name
from zmpsl.pool.account import PartMemory, part_memory
from zmpsl.pool.budget import parse_memory, readable
from zmpsl.pool.ceiling import cap_private
from zmpsl.roles.manager import Manager

# Cuts of the authors' VGG-19 (25 blocks) whose nodes take about as long as one another, as far as its one huge block
# allows; the first and the last block are on the owners.
CUTS = {1: [1, 24], 2: [1, 22, 24], 3: [1, 9, 22, 24], 4: [1, 8, 14, 22, 24]}
# Where a node's time goes: file and function of each kind of work.
KINDS = {
    "training": [("roles/compute.py", "_work")],
    "admission": [("engine/compute.py", "has_room")],
    "accounting": [("pool/budget.py", "look"), ("pool/pool.py", "get")],
    "copies of the base": [("engine/replica.py", "own")],
    "fold": [("roles/compute.py", "_close")],
}
# What a node's process takes beside parts and replicas, with some to spare: interpreter, torch, receive buffers.
PROCESS_BYTES = 448 << 20
TELL_EVERY_S = 60


def job_of(model: str, cuts: list[int], owners: int, batch: int, rounds: int, in_flight: int | None = None) -> Job:
    """The job of one run."""
    return parse_job(
        "",
        "bench",
        [
            f"model.name={model}", f"cuts={cuts}", f"compute_nodes={len(cuts) - 1}", f"owners={owners}",
            f"train.batch_size={batch}", f"train.rounds={rounds}", "train.local_epochs=1", "evaluate.every=0",
            f"owners_in_flight={in_flight or 'auto'}", "data.name=synthetic", "network.join_timeout_s=600",
            "network.lost_after_s=300", "recover.wait_s=600", "codec=none",
            # Gradients are made up, so a usual rate would let long runs diverge.
            "optimizer.lr.initial=1e-6",
            "recover.stalled_s=never",  # the owners say too seldom how far they are
        ],
    )  # fmt: skip


def node_process(place: str, manager: str, memory: str, into: str, limit: int, profile: bool) -> None:
    """A compute node; leaves the high-water mark of its memory and its pool's figures."""
    torch.set_num_threads(1)
    if limit:
        cap_private(limit)
    member = make_member("compute", None, place, memory=memory)
    before = status("VmHWM")
    profiler = cProfile.Profile()
    # A node that still works when its neighbour has gone home takes that for a loss; the manager knows better.
    with suppress(PeerLostError), ExitStack() as stack:
        if profile:
            stack.enter_context(profiler)
        Node(member, manager, reach_s=300).run()
    pool = member.engine.pool  # type: ignore[attr-defined]
    found = {
        "place": place, "start": before, "peak": status("VmHWM"), "waits": pool.waits, "reserved": pool.peak_bytes,
        "capacity": pool.capacity, "given_back": member._watch.times,  # type: ignore[attr-defined]
        "profile": seconds_of(profiler) if profile else {},
    }  # fmt: skip
    Path(into).write_text(json.dumps(found), encoding="utf-8")


def status(what: str) -> int:
    """What the system counts of this process; `VmHWM`: the most bytes it has ever held."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def seconds_of(profiler: cProfile.Profile) -> dict[str, float]:
    """Seconds of each kind of work, all that is called from there included."""
    found = dict.fromkeys(KINDS, 0.0)
    for (file, _line, name), (_, _, _, cumulative, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        for kind, places in KINDS.items():
            if any(file.endswith(end) and name == function for end, function in places):
                found[kind] += cumulative
    return found


def touch(nbytes: int) -> None:
    """Writes to so much memory once: a virtual machine gets a page from its host when it first needs it, slowly."""
    _ = [np.ones(1 << 28, np.uint8) for _ in range(nbytes >> 28)]


def aggregator_process(manager: str) -> None:
    """The aggregator."""
    Node(make_member("aggregator", None, AGGREGATOR), manager, reach_s=300).run()


def describe(model: str, batch: int, first_cut: int) -> tuple[Described, tuple[int, ...]]:
    """Gives what owner 0 would tell of the model, and the shape of part 0's output."""
    spec, dtype = input_spec(model)
    known = Model(name=model)
    prints = model_footprints(known, (batch, *spec), getattr(torch, dtype))
    here = torch.empty((batch, *spec), device="meta")
    for _, block in zip(range(first_cut), (block for _, block in build_blocks(known, 0, None)), strict=False):
        here = block(here)
    return Described(blocks=summarise(known), footprints=prints), tuple(here.shape)


def deal(parts: Sequence[PartMemory], total: int) -> tuple[int, list[int]]:
    """Gives the most owners in flight for which all nodes together keep to the total, and the budget of each node."""
    fit = 0
    while sum(part.need(fit + 1) + PROCESS_BYTES for part in parts) <= total:
        fit += 1
    if fit == 0:
        raise click.UsageError(f"{readable(total)} do not hold one replica per node")
    needs = [part.need(fit) + PROCESS_BYTES for part in parts]
    return fit, needs


def start_nodes(
    manager: str, folder: Path, budgets: list[int], opts: Any, stack: ExitStack
) -> tuple[list[BaseProcess], list[Path], list[Cgroup]]:
    """Starts the compute nodes, each under its limit; gives them, the files they will leave, and their cgroups."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []
    files, groups = [folder / node_name(hop) for hop in range(len(budgets))], list[Cgroup]()
    for hop, (budget, file) in enumerate(zip(budgets, files, strict=True)):
        limit = int(1.1 * budget)
        about = node_name(hop), manager, str(budget), str(file), limit if opts["hard"] else 0, opts["profile"]
        processes.append(context.Process(target=node_process, args=about, daemon=True))
        processes[-1].start()
        if opts["cgroup"] is not None:
            name = f"zmpsl-{os.getpid()}-{node_name(hop)}"
            groups.append(stack.enter_context(Cgroup(opts["cgroup"], name, limit)))
            groups[-1].take(processes[-1].pid or 0)
    return processes, files, groups


def measure(job: Job, described: Described, shape: tuple[int, ...], budgets: list[int], opts: Any) -> dict[str, Any]:
    """One run; gives memory and throughput."""
    rounds: list[RoundEvent] = []
    told = time.monotonic()

    def listen(event: Event) -> None:
        nonlocal told
        if isinstance(event, RoundEvent):
            rounds.append(event)
        elif isinstance(event, ProgressEvent) and time.monotonic() - told > TELL_EVERY_S:
            told = time.monotonic()
            click.echo(
                f"round {event.round + 1}, {event.phase}: {event.batches} of {event.batches_total} batches", err=True
            )

    role = Manager(None, job, "pool")
    role.board.listeners.append(listen)
    with tempfile.TemporaryDirectory() as folder, ManagerNode(role) as manager, ExitStack() as stack:
        processes, files, groups = start_nodes(manager.endpoint, Path(folder), budgets, opts, stack)
        context = multiprocessing.get_context("spawn")
        processes.append(context.Process(target=aggregator_process, args=(manager.endpoint,), daemon=True))
        processes[-1].start()
        fake = Shape(described, shape, opts["batches"], opts["think_ms"] / 1e3)
        processes += start_owners(fake, job.owners, opts["processes"], manager.endpoint)
        over = manager.drain(opts["timeout_s"])
        for process in processes:
            process.join(60 if over else 0)
            if process.is_alive():
                process.kill()
                process.join(10)
        limits = [{"peak": group.peak, "kills": group.kills, "reached": group.reached} for group in groups]
        if not over or manager.error is not None or role.plan is None:
            words = f"; cgroups: {limits}" if limits else ""
            raise click.ClickException(f"the run did not end well: {manager.error or 'it took too long'}{words}")
        nodes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    batches = job.owners * opts["batches"]
    return {
        "nodes": job.nodes,
        "owners": job.owners,
        "in_flight": role.plan.in_flight,
        "peak": [node["peak"] for node in nodes],
        "start": [node["start"] for node in nodes],
        "waits": sum(node["waits"] for node in nodes),
        "given_back": sum(node["given_back"] for node in nodes),
        "budgets": budgets,
        "cgroups": limits,
        "profiles": [node["profile"] for node in nodes],
        "seconds": [event.seconds for event in rounds],
        "batches_per_s": max(batches / event.seconds for event in rounds),
    }


def show_account(parts: Sequence[PartMemory], fit: int, run: dict[str, Any]) -> None:
    """Prints where the bytes go, node by node, next to what the system counted."""
    kinds = [name for name, _ in parts[0].rows(1)]
    rows = [
        [node_name(hop), *(f"{nbytes / 2**20:.0f}" for _, nbytes in part.rows(fit)), f"{run['start'][hop] / 2**20:.0f}",
         f"{(part.need(fit) + run['start'][hop]) / 2**20:.0f}", f"**{run['peak'][hop] / 2**20:.0f}**"]
        for hop, part in enumerate(parts)
    ]  # fmt: skip
    print(table([f"MiB, {fit} in flight", *kinds, "process", "sum", "peak RSS"], rows))


def show_limits(runs: Sequence[dict[str, Any]]) -> None:
    """Prints what the system says of the nodes' cgroups."""
    rows = [
        [
            node_name(hop), run["owners"], run["in_flight"], readable(run["budgets"][hop]),
            readable(int(1.1 * run["budgets"][hop])), f"**{readable(found['peak'])}**", found["reached"],
            f"**{found['kills']}**",
        ]
        for run in runs for hop, found in enumerate(run["cgroups"])
    ]  # fmt: skip
    head = ["node", "owners", "in flight", "budget", "limit", "cgroup's peak", "times full", "killed for memory"]
    print(table(head, rows))


def show_profile(run: dict[str, Any], batches: int) -> None:
    """Prints what the pool takes of a node's time: per batch, and once per owner and round."""
    owners, steps = run["owners"] * len(run["seconds"]), run["owners"] * len(run["seconds"]) * batches
    rows = []
    for hop, found in enumerate(run["profiles"]):
        step_s = (found["training"] - found["fold"]) / steps
        per_step = (found["admission"] + found["accounting"]) / steps
        rows.append([
            node_name(hop), run["owners"], f"{1e3 * step_s:.1f}", f"{1e3 * per_step:.2f}",
            f"**{per_step / step_s:.2%}**", f"{1e3 * found['copies of the base'] / owners:.0f}",
            f"{1e3 * found['fold'] / owners:.0f}", f"{found['fold'] / owners / step_s:.1f}",
        ])  # fmt: skip
    head = ["node", "owners", "step ms", "admission and accounting ms per step", "of a step", "copy ms per owner",
            "fold ms per owner", "= steps"]  # fmt: skip
    print(table(head, rows))


def show_runs(runs: Sequence[dict[str, Any]], total: int) -> None:
    """Prints memory and throughput of all runs."""
    rows = []
    for run in runs:
        alone = next(each for each in runs if each["nodes"] == run["nodes"])
        rows.append([
            run["nodes"], run["owners"], run["in_flight"], f"**{sum(run['peak']) / 2**30:.2f} GiB**",
            readable(total), f"{max(p / b for p, b in zip(run['peak'], run['budgets'], strict=True)):.0%}",
            f"{run['batches_per_s']:.2f}",
            f"{run['batches_per_s'] / alone['batches_per_s']:.2f}", run["waits"], f"{max(run['seconds']):.0f}",
        ])  # fmt: skip
    head = [
        "nodes",
        "owners",
        "in flight",
        "summed peak RSS",
        "budget",
        "nearest to its own",
        "batches/s",
        "x unfolded",
        "waits",
        "round s",
    ]
    print(table(head, rows))


@click.command()
@click.option("--model", default="vgg19_mpsl", show_default=True, help="A model of the zoo.")
@click.option("--owners", default="10,50,100,200", show_default=True, help="Numbers of owners.")
@click.option("--nodes", default="2,4", show_default=True, help="Numbers of compute nodes.")
@click.option("--total", default="10GiB", show_default=True, help="Budget of all nodes together.")
@click.option("--cuts", default="", help="Cuts, such as 1,22,24, instead of the built-in ones.")
@click.option("--batch", default=16, show_default=True, help="Samples per batch.")
@click.option("--batches", default=2, show_default=True, help="Batches per owner and round.")
@click.option("--rounds", default=1, show_default=True, help="Rounds per run; the fastest counts.")
@click.option("--think-ms", default=0, show_default=True, help="Time an owner takes for each of its two parts.")
@click.option("--processes", default=2, show_default=True, help="Processes that hold the owners.")
@click.option("--timeout-s", default=3600, show_default=True, help="Longest time of one run.")
@click.option("--hard", is_flag=True, help="Each node may have 10 % above its budget of private memory (RLIMIT_DATA).")
@click.option("--cgroup", type=click.Path(path_type=Path), help="Folder to make cgroups in, with budget and 10 %.")
@click.option("--profile", is_flag=True, help="Show what the pool takes of the nodes' time.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here too.")
def main(model: str, owners: str, nodes: str, total: str, cuts: str, json_path: Path | None, **opts: Any) -> None:
    """Measures memory and throughput of the replica pool."""
    print(machine(f"python bench/pool.py {' '.join(sys.argv[1:])}"))
    budget = parse_memory(total, 0)
    if opts["cgroup"] is None:  # that is for what is counted, not for what is timed
        touch(budget)
    runs: list[dict[str, Any]] = []
    for count in map(int, nodes.split(",")):
        chosen = [int(cut) for cut in cuts.split(",")] if cuts else CUTS[count]
        described, shape = describe(model, opts["batch"], chosen[0])
        probe = job_of(model, chosen, 1, opts["batch"], opts["rounds"])
        bounds = check_cuts(probe, len(described.blocks))
        parts = [part_memory(probe, described.blocks, bounds, described.footprints, hop + 1) for hop in range(count)]
        fit, budgets = deal(parts, budget)
        more = [int(each) for each in owners.split(",") if int(each) > fit]
        for number in more if more and opts["cgroup"] is not None else [fit, *more]:
            job = job_of(model, chosen, number, opts["batch"], opts["rounds"], fit)
            start = time.monotonic()
            runs.append(measure(job, described, shape, budgets, opts))
            took, last = time.monotonic() - start, runs[-1]
            click.echo(
                f"{count} nodes, {number} owners, {last['in_flight']} in flight: {took:.0f} s, peak"
                f" {readable(sum(last['peak']))}, {last['batches_per_s']:.2f} batches/s, {last['waits']} waits,"
                f" memory given back {last['given_back']} times",
                err=True,
            )
        show_account(parts, fit, runs[-1])
        if opts["profile"]:
            show_profile(runs[-1], opts["batches"])
    show_runs(runs, budget)
    if opts["cgroup"] is not None:
        show_limits(runs)
    if json_path is not None:
        json_path.write_text(json.dumps(runs, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
