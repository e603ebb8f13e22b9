"""The 16 published optima of the authors' commercial solver (VGG-19, 5 nodes, 150 owners), by all three backends."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from zmpsl.planner.problem import BlockCost, NodeSpec, Problem
from zmpsl.planner.solver import solve

# Memory in GiB and slowdown per node, and the optimum of max forward + max backward in ms.
RUNS = [
    ((16, 16, 16, 16, 16), (1, 1, 1, 1, 1), 747.48195),
    ((16, 16, 16, 16, 8), (1, 1, 1, 1, 2), 779.807107),
    ((16, 16, 16, 8, 8), (1, 1, 1, 2, 2), 907.5506),
    ((16, 16, 8, 8, 8), (1, 1, 2, 2, 2), 988.10246),
    ((16, 8, 8, 8, 8), (1, 2, 2, 2, 2), 1176.289954),
    ((8, 8, 8, 8, 8), (2, 2, 2, 2, 2), 1649.75708),
    ((16, 16, 16, 16, 4), (1, 1, 1, 1, 2), 779.807107),
    ((16, 16, 16, 4, 4), (1, 1, 1, 2, 2), 983.175),
    ((16, 16, 4, 4, 4), (1, 1, 2, 2, 2), 1091.620877),
    ((4, 4, 8, 8, 9), (2, 2, 2, 2, 2), 1966.35),
    ((4, 8, 8, 8, 8), (2, 2, 2, 2, 2), 1670.90738),
    ((4, 8, 8, 8, 16), (2, 2, 2, 2, 1), 1176.289954),
    ((4, 8, 8, 16, 16), (2, 2, 2, 1, 1), 988.10246),
    ((4, 8, 16, 16, 16), (2, 2, 1, 1, 1), 907.5506),
    ((8, 4, 4, 4, 16), (2, 2, 2, 2, 1), 1421.65038),
    ((8, 4, 4, 16, 16), (2, 2, 2, 1, 1), 1012.20608),
]
FIRST, STOP, OWNERS = 3, 22, 150


def rows(path: Path, **wanted: str) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


@pytest.fixture(scope="module")
def blocks(shared_data: Path) -> tuple[BlockCost, ...]:
    """VGG-19's blocks between the cuts, ms per batch; memory as the paper counts it: output and weights, K times."""
    folder = shared_data / "mpsl"
    times = rows(folder / "layer_profile.csv", model="vgg19", dataset="CIFAR", device="VM")
    sizes = rows(folder / "layer_memory.csv", model="vgg19", dataset="CIFAR")
    return tuple(
        BlockCost(
            time["block"], float(time["fwd_ms"]), float(time["bwd_ms"]), float(time["opt_ms"]),
            OWNERS * 1024 * (float(size["activation_kib_source"]) + float(size["weights_kib"])),
        )
        for time, size in zip(times, sizes, strict=True)
    )[FIRST:STOP]  # fmt: skip


def problem(blocks: tuple[BlockCost, ...], gib: tuple[int, ...], slowdown: tuple[int, ...], objective: Any) -> Problem:
    nodes = tuple(
        NodeSpec(f"c{i}", slow, memory * 2**30) for i, (memory, slow) in enumerate(zip(gib, slowdown, strict=True))
    )
    return Problem(blocks, nodes, objective=objective, first_block=FIRST)


@pytest.mark.parametrize("backend", ["dp", "mip", "path"])
@pytest.mark.parametrize(("gib", "slowdown", "optimum_ms"), RUNS)
def test_the_published_optimum_is_found_and_proven(
    blocks: tuple[BlockCost, ...], gib: tuple[int, ...], slowdown: tuple[int, ...], optimum_ms: float, backend: Any
) -> None:
    solution = solve(problem(blocks, gib, slowdown, "sum"), backend)
    assert solution.value == pytest.approx(optimum_ms, abs=1e-2)
    assert solution.optimal
    assert (solution.pieces[0].first, solution.pieces[-1].stop, len(solution.pieces)) == (FIRST, STOP, 5)


@pytest.mark.parametrize(("gib", "slowdown", "optimum_ms"), RUNS)
def test_the_true_pace_is_never_above_the_papers_sum(
    blocks: tuple[BlockCost, ...], gib: tuple[int, ...], slowdown: tuple[int, ...], optimum_ms: float
) -> None:
    by_dp = solve(problem(blocks, gib, slowdown, "pace"), "dp")
    assert by_dp.value <= optimum_ms + 1e-2
    assert solve(problem(blocks, gib, slowdown, "pace"), "mip").value == pytest.approx(by_dp.value)


def test_the_typed_numbers_are_the_published_ones(shared_data: Path) -> None:
    golden = json.loads((shared_data / "mpsl" / "golden_split.json").read_text())
    assert (golden["a"], golden["b"], golden["K"]) == (FIRST, STOP, OWNERS)
    assert RUNS == [
        (tuple(run["cap_gb"]), tuple(run["slowdown"]), run["optimum_ms"]) for run in golden["instances"]
    ]  # fmt: skip
