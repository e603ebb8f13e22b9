"""What adding up one owner's weights costs, exactly: C and NumPy next to a copy of as many bytes, and to torch's sum.

    python bench/average.py --parameters 20000000

Times are medians of the thread's own seconds into memory that is there already; the ways take turns. torch's running
sum of float64 is what one would write otherwise: in another order of owners it has other last bits.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from report import machine, table

from zmpsl.kernels import KERNELS, Kernels, gather, twins
from zmpsl.state import STEP

WEIGHT = 500
MOVED = 20  # bytes per parameter: a float32 is read, a float64 is read and written


def adding(kernels: Kernels, values: np.ndarray) -> Callable[[], None]:
    """One owner's turn, in the steps of `zmpsl.state.Average`; no weight here leaves a rest."""
    sums, rest = np.zeros(values.size), np.zeros(STEP)

    def work() -> None:
        for low in range(0, values.size, STEP):
            piece = values[low : low + STEP]
            if kernels.add_into(piece, WEIGHT, sums[low : low + STEP], rest[: piece.size]):
                raise ValueError("these weights were to leave no rest")

    return work


@click.command()
@click.option("--parameters", default=20_000_000, show_default=True)
@click.option("--repeats", default=15, show_default=True)
def main(parameters: int, repeats: int) -> None:
    """Prints the table for this machine."""
    torch.set_num_threads(1)
    values = np.random.default_rng(0).integers(-999, 999, parameters).astype(np.float32)
    source, target = (np.ones(MOVED // 2 * parameters, np.uint8) for _ in range(2))
    running = torch.zeros(parameters, dtype=torch.float64)
    ways: dict[str, Callable[[], object]] = {
        "a copy of as many bytes": lambda: np.copyto(target, source),
        f"exact, {KERNELS.isa}": adding(KERNELS, values),
        "exact, numpy": adding(gather(twins), values),
        "torch, float64, not exact": lambda: running.add_(torch.from_numpy(values), alpha=WEIGHT),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way, work in ways.items():
            start = time.thread_time()
            work()
            seconds[way].append(time.thread_time() - start)
    medians = {way: statistics.median(times[1:]) for way, times in seconds.items()}  # the first touches memory
    copy = next(iter(medians.values()))
    print(machine(" ".join(["python", *sys.argv])))
    rows = [[way, f"{1e9 * took / parameters:.2f}", f"{took / copy:.2f}"] for way, took in medians.items()]
    print(table(["way", "ns per parameter", "x copy"], rows))


if __name__ == "__main__":
    main()
