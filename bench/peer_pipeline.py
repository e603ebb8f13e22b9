"""The peer of bench/pipeline.py: torch.distributed.pipelining over gloo, one process per stage."""

from __future__ import annotations

import multiprocessing
import socket
import time
import warnings
from multiprocessing.connection import Connection

TIMEOUT_S = 300.0


def torch_samples_per_s(cuts: list[int], depth: int, batch: int, micro: int, batches: int, rounds: int) -> float:
    """Trains the net of bench/nets.py with torch's 1F1B schedule.

    Args:
        cuts: First block of stages 1, 2, ...
        depth: Of the net.
        batch: Samples per batch.
        micro: Micro-batches per batch.
        batches: Batches per measured round.
        rounds: Measured rounds, after one to warm up; the fastest counts.

    Returns:
        Samples per second.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    stages = len(cuts) + 1
    processes = [
        context.Process(
            target=_stage, args=(rank, stages, port, cuts, depth, batch, micro, batches, rounds, there), daemon=True
        )
        for rank in range(stages)
    ]
    for process in processes:
        process.start()
    try:
        if not here.poll(TIMEOUT_S):
            raise RuntimeError(f"torch.distributed.pipelining gave no figure within {TIMEOUT_S:g} s")
        seconds: float = here.recv()
    finally:
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()
    return batch * batches / seconds


def _stage(
    rank: int,
    stages: int,
    port: int,
    cuts: list[int],
    depth: int,
    batch: int,
    micro: int,
    batches: int,
    rounds: int,
    tell: Connection,
) -> None:
    warnings.simplefilter("ignore")
    import torch
    import torch.distributed as dist
    from nets import middle_heavy
    from torch import nn
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=stages)
    blocks = list(middle_heavy(depth=depth))
    bounds = [0, *cuts, len(blocks)]
    module = nn.Sequential(*blocks[bounds[rank] : bounds[rank + 1]]).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    stage = PipelineStage(module, rank, stages, torch.device("cpu"))
    schedule = Schedule1F1B(stage, micro, loss_fn=nn.functional.cross_entropy)
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    best = float("inf")
    for _ in range(rounds + 1):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(batches):
            if rank == 0:
                schedule.step(inputs)
            elif rank == stages - 1:
                losses: list[torch.Tensor] = []
                schedule.step(target=targets, losses=losses)
            else:
                schedule.step()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        dist.barrier()
        best = min(best, time.perf_counter() - began)
    if rank == 0:
        tell.send(best)
    dist.barrier()
    dist.destroy_process_group()
