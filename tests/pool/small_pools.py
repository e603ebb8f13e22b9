"""Runs whose compute nodes have room for few owners, and an eye on their pools while they go on."""

from __future__ import annotations

import random

import torch
from exact import settings

from zmpsl.data import load
from zmpsl.engine.build import summarise
from zmpsl.engine.footprint import model_footprints
from zmpsl.job import Job
from zmpsl.launch.memory import MemoryRun
from zmpsl.plan import check_cuts
from zmpsl.pool.account import PartMemory, part_memory

__all__ = ["Watched", "parts", "pools", "rooms", "small"]


def small(model: str, hops: int, owners: int, micro: int, *more: str) -> Job:
    """With batches that the smallest of five owners can fill, and as many owners in flight as fit as they are."""
    return settings(model, hops, owners, micro, "train.batch_size=8", "cuts=even", "recompute=never", *more)


def parts(job: Job) -> list[PartMemory]:
    """What each node's part costs, reckoned as the manager does."""
    blocks = summarise(job.model)
    sample = torch.from_numpy(load(job.data, job.seed).train.batch([0])[0])  # type: ignore[arg-type]
    size = -(-job.train.batch_size // job.train.micro_batches)
    prints = model_footprints(job.model, (size, *sample.shape[1:]), sample.dtype)
    bounds = check_cuts(job, len(blocks))
    return [part_memory(job, blocks, bounds, prints, hop + 1) for hop in range(job.nodes)]


def rooms(job: Job, owners: list[int], seed: int) -> list[int]:
    """Room for that many owners on each node, and a random rest that is not enough for one more."""
    rest = random.Random(seed)
    return [
        memory.need(n) + rest.randrange(memory.need(n + 1) - memory.need(n))
        for memory, n in zip(parts(job), owners, strict=True)
    ]


class Watched(MemoryRun):
    """A run that looks at every node after every move."""

    most = 0

    def _move(self, what, place, arg) -> None:
        super()._move(what, place, arg)
        engine = getattr(place.station.member, "engine", None)
        pool = getattr(engine, "pool", None)
        if pool is not None:
            self.most = max(self.most, pool.in_use)
            assert pool.held <= pool.capacity
            assert pool._room is None or pool.reserved_bytes <= pool._room


def pools(run: MemoryRun):
    return [run.members[f"node-{hop}"].engine.pool for hop in range(run.manager.job.nodes)]
