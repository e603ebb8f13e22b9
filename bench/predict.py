"""How well does the planner foresee a round, and what does solving the cuts bring against cutting by hand?

    python bench/predict.py --json /tmp/predict.json

Every case is a real run: all roles are processes on this machine, over TCP, with `cuts: auto`, so the roles profile the
blocks themselves and the manager predicts each round before the run's first one begins. The first round warms up and is
not counted; measured is the median of the others. The error is |predicted - measured| / measured, of whole rounds:
averaging and storing the weights are in what is measured, storing is not in what is predicted. The second table tells
where an error comes from: seconds of work of every node as foreseen and as measured, and what a round takes before its
first and behind its last task is in neither.

All roles share this machine's cores, but the devices that are imitated would not. So every role is slowed down
(`emulate.slow_down`): it computes for one part of the time and sleeps for the rest, and the cases keep the sum of these
parts over all roles below one core. A role's sleep is counted from its own processor time, so what it waits for a core
is not multiplied. Blocks are large enough for messages to cost little, for the planner knows loopback only roughly.

Unequal nodes are run again with `cuts: even` and with the greedy cuts people make by hand (node after node is filled up
to an equal share of the seconds, as if nodes were equal): the last table has how much longer a round takes with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from report import machine, table

from zmpsl.job import Job, parse_job
from zmpsl.launch.local import run
from zmpsl.observe.events import PlanEvent, RoundEvent

COMMON = ["data.name=synthetic", "train.local_epochs=1", "evaluate.every=0", "codec=none"]


@dataclass(frozen=True)
class Net:
    """A model with the shape of its samples and a batch that takes some milliseconds per block."""

    name: str
    args: str
    shape: tuple[int, ...]
    batch: int

    def overrides(self, samples: int) -> list[str]:
        """Model, data and batch, as overrides."""
        return [
            f"model.name={self.name}", f"model.args={self.args}", f"train.batch_size={self.batch}",
            f"data.args={{shape: {list(self.shape)}, classes: 10, samples: {samples * self.batch}}}",
        ]  # fmt: skip


RESNET18 = Net("resnet18", "{small_input: true, width: 16}", (3, 32, 32), 16)
RESNET34 = Net("resnet34", "{small_input: true, width: 12}", (3, 32, 32), 16)
RESNET50 = Net("resnet50", "{small_input: true, width: 8}", (3, 32, 32), 16)
LENET = Net("lenet5", "{channels: 3, size: 64}", (3, 64, 64), 64)
DIGITS = Net("digits_cnn", "{}", (1, 8, 8), 512)


@dataclass(frozen=True)
class Case:
    """One configuration: `slow` are the nodes' factors in hop order, owners are slowed by `owner`."""

    name: str
    net: Net
    owners: int
    slow: tuple[float, ...]
    owner: float = 16.0
    batches: int = 8
    more: tuple[str, ...] = ()

    @property
    def unequal(self) -> bool:
        """Whether the nodes differ."""
        return len(set(self.slow)) > 1

    def overrides(self, rounds: int) -> list[str]:
        """The job, as overrides."""
        slow = ", ".join(f"node-{hop}: {factor}" for hop, factor in enumerate(self.slow))
        return [
            *COMMON, *self.net.overrides(self.batches * self.owners), f"owners={self.owners}",
            f"compute_nodes={len(self.slow)}", f"train.rounds={rounds}",
            f"emulate.slow_down={{owner: {self.owner}, {slow}}}", *self.more,
        ]  # fmt: skip


CASES = (
    Case("resnet18, equal", RESNET18, 3, (8, 8)),
    Case("resnet18, slow first", RESNET18, 3, (16, 6)),
    Case("resnet18, slow last", RESNET18, 3, (6, 16)),
    Case("resnet18, 3 hops, equal", RESNET18, 4, (10, 10, 10)),
    Case("resnet18, 3 hops, slow middle", RESNET18, 4, (8, 20, 8)),
    Case("resnet18, one owner", RESNET18, 1, (8, 8)),
    Case("resnet18, one owner, 4 micro-batches", RESNET18, 1, (8, 8), more=("train.micro_batches=4",)),
    Case("resnet34, slow first", RESNET34, 3, (16, 6)),
    Case("resnet34, 3 hops, slow last", RESNET34, 4, (8, 8, 24)),
    Case("resnet50, slow last", RESNET50, 3, (6, 16)),
    Case("resnet50, 3 hops, slow first", RESNET50, 4, (20, 8, 8)),
    Case("lenet5, slow first", LENET, 3, (24, 8), batches=10),
    Case("digits_cnn, equal", DIGITS, 3, (8, 8), batches=10),
    Case("digits_cnn, 3 hops, all unequal", DIGITS, 4, (8, 16, 32), batches=10),
)


@dataclass(frozen=True)
class Outcome:
    """What a run gave: cuts, seconds of a round as predicted (None without a profile) and as measured.

    `busy_s` has for every compute node its seconds of work in a round, predicted and measured (median).
    """

    cuts: list[int]
    predicted_s: float | None
    measured_s: float
    busy_s: dict[str, tuple[float, float]]

    @property
    def error(self) -> float:
        """|predicted - measured| / measured."""
        return abs((self.predicted_s or 0.0) - self.measured_s) / self.measured_s


def outcome(job: Job, folder: Path) -> Outcome:
    """Runs a job and reads off its rounds."""
    plans: list[PlanEvent] = []
    rounds: list[RoundEvent] = []

    def note(event: object) -> None:
        if isinstance(event, PlanEvent):
            plans.append(event)
        elif isinstance(event, RoundEvent):
            rounds.append(event)

    run(job, folder, on_event=note)
    counted = rounds[1:] or rounds
    busy = {
        name: (expected, statistics.median(_work(one, name) for one in counted))
        for name, expected in counted[-1].predicted_busy_s.items()
    }
    return Outcome(plans[0].cuts, counted[-1].predicted_s, statistics.median(one.seconds for one in counted), busy)


def _work(event: RoundEvent, name: str) -> float:
    role = event.roles[name]
    return role.forward_s + role.backward_s + role.update_s


def greedy_cuts(job: Job) -> list[int]:
    """Cuts as people make them who take the nodes for equal: each gets an equal share of the blocks' seconds."""
    import torch

    from zmpsl.engine.build import summarise
    from zmpsl.engine.profile import Effort, inputs_like, measure
    from zmpsl.planner.manual import greedy_split
    from zmpsl.planner.measured import Measured, MeasuredNode, problem_of

    torch.set_num_threads(1)
    blocks = summarise(job.model)
    inputs = inputs_like(tuple(job.data.args["shape"]), "float32", job.train.batch_size)
    profile = measure(job.model, blocks, range(len(blocks)), inputs, job.optimizer, Effort(5, 5.0))
    nodes = tuple(MeasuredNode(f"node-{hop}", profile) for hop in range(job.nodes))
    pieces = greedy_split(problem_of(Measured(job, nodes, profile))).pieces
    return [pieces[0].first, *(piece.stop for piece in pieces)]


def compare(case: Case, rounds: int, by_hand: bool, folder: Path) -> dict[str, Outcome]:
    """Runs a case with solved cuts and, where asked for and its nodes differ, with cuts by hand."""
    overrides = case.overrides(rounds)
    found = {"auto": outcome(parse_job("", case.name, overrides), folder / "auto")}
    if by_hand and case.unequal:
        found["even"] = outcome(parse_job("", case.name, [*overrides, "cuts=even"]), folder / "even")
        cuts = greedy_cuts(parse_job("", case.name, overrides))
        found["greedy"] = outcome(parse_job("", case.name, [*overrides, f"cuts={cuts}"]), folder / "greedy")
    return found


def slower(found: dict[str, Outcome], way: str) -> str:
    """Says what cuts by hand took, by how much more than the solved ones, and how much more was foreseen."""
    hand, auto = found[way], found["auto"]
    measured = hand.measured_s / auto.measured_s - 1
    foreseen = (hand.predicted_s or 0) / (auto.predicted_s or math.nan) - 1
    return f"{hand.measured_s:.2f} ({100 * measured:+.0f} %, foreseen {100 * foreseen:+.0f} %)"


def show(results: dict[str, dict[str, Outcome]]) -> str:
    """Gives both tables."""
    rows = []
    for name, found in results.items():
        auto = found["auto"]
        rows.append(
            [name, auto.cuts, f"{auto.predicted_s or 0:.2f}", f"{auto.measured_s:.2f}", f"{100 * auto.error:.2f} %"]
        )
    text = table(["case", "cuts", "predicted s", "measured s", "error"], rows)
    errors = [found["auto"].error for found in results.values()]
    text += f"\nmean absolute error {100 * statistics.mean(errors):.2f} %, worst {100 * max(errors):.2f} %\n"
    rows = [
        [name, node, f"{expected:.2f}", f"{measured:.2f}", f"{100 * (expected / measured - 1):+.2f} %"]
        for name, found in results.items() for node, (expected, measured) in found["auto"].busy_s.items()
    ]  # fmt: skip
    text += "\n" + table(["case", "node", "work predicted s", "measured s", "off by"], rows)
    hand = [
        [name, *(slower(found, way) for way in ("even", "greedy")), f"{found['auto'].measured_s:.2f}"]
        for name, found in results.items() if "even" in found
    ]  # fmt: skip
    given = [found[way].error for found in results.values() for way in ("even", "greedy") if way in found]
    if given:
        text += f"\nmean absolute error of the cuts by hand {100 * statistics.mean(given):.2f} %\n"
    return text + ("\n" + table(["case", "even s", "greedy s", "auto s"], hand) if hand else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the cases and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each run; the first is not counted")
    parser.add_argument("--no-hand", action="store_true", help="leave out the cuts by hand")
    parser.add_argument("--quick", action="store_true", help="two batches per owner: to see that it runs")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    results = {}
    for case in CASES[options.skip : options.skip + options.cases]:
        case = dataclasses.replace(case, batches=2) if options.quick else case
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ZMPSL_CACHE"] = folder  # every case profiles anew
            results[case.name] = compare(case, options.rounds, not options.no_hand, Path(folder))
        auto = results[case.name]["auto"]
        print(f"{case.name}: predicted {auto.predicted_s:.2f} s, measured {auto.measured_s:.2f} s", file=sys.stderr)
    print(machine("python bench/predict.py " + " ".join(arguments if arguments is not None else sys.argv[1:])))
    print(show(results))
    if options.json is not None:
        plain = {name: {way: asdict(one) for way, one in found.items()} for name, found in results.items()}
        options.json.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
