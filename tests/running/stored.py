"""A small plan, a state to store for it, and reading it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zmpsl.checkpoint import (
    load_parts,
)
from zmpsl.job import Job, Model
from zmpsl.plan import Block, Peer, Plan, check_cuts
from zmpsl.state import Layout, digest, layout_of

__all__ = ["JOB", "load", "plan_of", "state_of"]

JOB = Job(model=Model(name="mlp", args={"features": 6, "hidden": [5, 4]}), compute_nodes=1)


def plan_of(blocks: tuple[Block, ...], job: Job = JOB) -> Plan:
    return Plan(
        version=1,
        run="run",
        job=job,
        blocks=blocks,
        bounds=check_cuts(job, len(blocks)),
        aggregator=Peer("aggregator", "tcp://a"),
        nodes=(Peer("node-0", "tcp://b"),),
        owners=(Peer("owner-0", "tcp://c"),),
    )


def state_of(plan: Plan, seed: int = 0) -> tuple[Layout, np.ndarray]:
    """The layout of the whole model and a state of arbitrary numbers."""
    layout = layout_of(plan.blocks, range(len(plan.blocks)), plan.job.optimizer)
    rng = np.random.default_rng(seed)
    flat = np.zeros(layout.nbytes, np.uint8)
    for view in layout.views(flat).values():
        view[...] = rng.standard_normal(view.shape) if view.dtype.kind == "f" else rng.integers(0, 2, view.shape)
    return layout, flat


def load(run: Path, plan: Plan, layout: Layout, flat: np.ndarray, round_: int = 0) -> np.ndarray:
    back = np.zeros_like(flat)
    load_parts(run, plan.bounds, round_, range(plan.parts), layout, back, digest(flat))
    return back
