"""How many micro-batches a batch is cut into where the job leaves it open: every size is tried, with its own split.

Small pieces let few owners fill the pipe, and every piece costs its fixed seconds at each stage. So each size gets its
best split, and the one with the shortest round, played as the planner predicts it, is taken: the optimum of both
together. Where enough owners fill the pipe with whole batches nothing can be won, and nothing is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from zmpsl.job.schema import Job
from zmpsl.plan import Block, micro_samples
from zmpsl.planner.measured import Measured
from zmpsl.planner.micro import candidates
from zmpsl.planner.predict import owners_to_fill, predict
from zmpsl.planner.solution import Infeasible
from zmpsl.profiles import cut_profile

__all__ = ["Split", "choose", "in_pieces", "mixes_samples", "with_pieces"]

MOST_PIECES = 32  # more of them win little, and take long to play
ENOUGH = 2.0  # owners beyond K_min that keep the slowest node at work also while batches bunch up
BATCHES = 3  # of each owner in the round that is played
# Gives the bounds of all parts and the names of the nodes in hop order.
Split = Callable[[Measured], tuple[Sequence[int], Sequence[str]]]


def choose(measured: Measured, split: Split, hosts: Mapping[str, Sequence[str]] | None = None) -> int:
    """Gives the number of micro-batches with which a round is expected to be the shortest, the least of equals.

    Args:
        measured: What was measured, with whole batches.
        split: Cuts the model, given what is measured for pieces of some size; or gives the cuts there are.
        hosts: Which roles share a machine, as for `predict`.

    Raises:
        Infeasible: No split fits for any number.
    """
    found: list[tuple[float, int]] = []
    nearest: Infeasible | None = None
    job = measured.job
    batch, batches = job.train.batch_size, (BATCHES,) * job.owners
    flying = job.owners if job.owners_in_flight == "auto" else min(job.owners, job.owners_in_flight)
    for pieces in sorted({-(-batch // samples) for samples in candidates(batch)}):
        if pieces > MOST_PIECES:
            break
        one = in_pieces(measured, pieces)
        try:
            bounds, order = split(one)
        except Infeasible as error:
            nearest = nearest or error
            continue
        if pieces == 1 and flying >= ENOUGH * owners_to_fill(one, bounds, order):
            return 1
        found.append((predict(one, bounds, order, batches, hosts, flying).round_s, pieces))
    if not found:
        raise nearest or Infeasible("no split fits for any number of micro-batches")
    return min(found)[1]


def in_pieces(measured: Measured, pieces: int) -> Measured:
    """Gives what would have been measured with so many micro-batches, from profiles of whole batches."""
    job = with_pieces(measured.job, pieces)
    nodes = tuple(replace(node, profile=cut_profile(node.profile, job, micro_samples(job))) for node in measured.nodes)
    return replace(measured, job=job, nodes=nodes, owner=cut_profile(measured.owner, job, micro_samples(job)))


def with_pieces(job: Job, pieces: int) -> Job:
    """Gives the job with a number of micro-batches."""
    return replace(job, train=replace(job.train, micro_batches=pieces))


def mixes_samples(blocks: Sequence[Block]) -> bool:
    """Tells whether a block's result for a sample depends on the others in its piece, as with batch normalisation."""
    return any(entry.key.endswith("running_mean") for block in blocks for entry in block.entries)
