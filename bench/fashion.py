"""Fashion-MNIST, all 60,000 images, over real processes, against the reference trainer: equal accuracy, equal weights.

    python bench/fashion.py --data-dir DIR [--rounds 5]

DIR holds the four IDX files. The reference (tests/reference.py) trains the whole model in one process without any of
the runtime's code; accuracy of every round and the final weights must be equal to the last bit.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
import torch
from report import machine, table

from zmpsl.checkpoint import load_state_dict
from zmpsl.job import parse_job
from zmpsl.launch.local import run
from zmpsl.observe.events import EvaluationEvent, RoundEvent, read_events

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the IDX files."
)
@click.option("--rounds", default=5, show_default=True, help="Rounds to train.")
@click.option("--limit", default=60_000, show_default=True, help="Training images to use.")
def main(data_dir: Path, rounds: int, limit: int) -> None:
    """Trains both ways and compares."""
    from helpers import differing
    from reference import train

    torch.set_num_threads(1)
    job = parse_job(
        "",
        "bench",
        [
            "name=fashion",
            "data.name=fashion-mnist",
            f"data.dir={data_dir}",
            f"data.args.limit={limit}",
            "model.name=lenet5",
            "owners=5",
            "compute_nodes=2",
            f"train.rounds={rounds}",
            "train.local_epochs=2",
            "train.batch_size=64",
            "optimizer.lr.initial=0.05",
            "evaluate.batch_size=500",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        result = run(job, folder, "fashion")
        events = list(read_events(result.folder / "metrics.jsonl"))
        weights = load_state_dict(result.folder)
    began = time.time()
    expected = train(job)
    alone_s = time.time() - began
    scores = [event for event in events if isinstance(event, EvaluationEvent)]
    rounds_s = [event.seconds for event in events if isinstance(event, RoundEvent)]
    print(machine("python bench/fashion.py " + " ".join(sys.argv[1:])))
    print(
        table(
            ["round", "accuracy over the chain", "accuracy of the reference", "seconds"],
            [
                [e.round + 1, f"{100 * e.accuracy:.2f} %", f"{100 * a:.2f} %", f"{s:.1f}"]
                for e, a, s in zip(scores, expected.accuracies, rounds_s, strict=True)
            ],
        )
    )
    different = differing(weights, expected.states[-1])
    equal = [event.accuracy for event in scores] == expected.accuracies
    print(
        f"accuracies equal: {equal}; tensors of the final model that differ: {len(different)} of {len(weights)}; "
        f"chain {result.seconds:.0f} s, reference alone {alone_s:.0f} s"
    )
    sys.exit(0 if equal and not different else 1)


if __name__ == "__main__":
    main()
