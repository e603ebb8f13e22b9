"""What a part of the model costs a compute node: once for the part, and once more for every owner in flight.

    fixed    base weights, running sum, gradients and scratch of the one batch that is being worked on, optimiser state
             of the one folded owner that is being written to disk, where owners keep theirs
    slot     an owner's weights, optimiser state, saved activations and messages under way, and as much again that the
             receive buffers keep for the next messages; with micro-batches its gradients too, for they outlive a task
             there

A node that has n owners in flight needs fixed + n * slot. While a round ends or is evaluated it needs other things
instead of activations and optimiser state; `need` and `need_evaluating` say how much. Sizes come from the plan alone:
manager and node reckon the same, before any memory is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from zmpsl.job.schema import Job
from zmpsl.plan import Block, Footprint
from zmpsl.state import FLOATS, layout_of

__all__ = ["PartMemory", "fitting", "part_memory"]

# Receive buffers come in eight sizes per power of two.
ROUNDING = 1.125
# States are packed and unpacked in pieces of a MiB: one as it is and one packed, both ways at once.
SPILL_CHUNKS = 4 << 20


@dataclass(frozen=True, slots=True)
class PartMemory:
    """Bytes of one part on its compute node.

    Attributes:
        base: The round's weights.
        accumulator: The running sum.
        trained: All trained parameters, once.
        shared_gradients: Gradients live inside one task, so the node holds one set of them.
        optimizer: Optimiser state of one replica, beside what is in `base`.
        step: Temporary memory of an optimiser step or of adding up gradients.
        work: Temporary memory of one micro-batch's forward or backward.
        inputs: The part's input, of one micro-batch.
        outputs: Its output.
        saved: What backward needs of one micro-batch.
        micros: Micro-batches of one owner under way.
        evaluation: Activations of an evaluation batch while it is worked on.
        evaluation_slot: Messages of one owner that evaluates.
        untrained: State that forward may change, such as running statistics; each micro-batch under way keeps what it
            was, so that forward can be run again.
        recompute: Activations are computed again before backward, instead of kept.
        repeatable: That can be done: forward does not write the weights.
        spill: Optimiser state of a folded owner that is being written, where owners keep theirs.
    """

    base: int
    accumulator: int
    trained: int
    shared_gradients: bool
    optimizer: int
    step: int
    work: int
    inputs: int
    outputs: int
    saved: int
    micros: int
    evaluation: int
    evaluation_slot: int
    untrained: int = 0
    recompute: bool = False
    spill: int = 0
    repeatable: bool = True

    @property
    def activations(self) -> int:
        """Saved activations of one owner."""
        if self.recompute:
            return self.micros * (self.inputs + self.untrained)
        return self.micros * (self.inputs + self.saved + self.outputs + self.untrained)

    @property
    def buffers(self) -> int:
        """Messages of one owner that wait to be worked on or to leave, beside what is saved anyway."""
        return int(self.micros * (self.inputs + self.outputs) * ROUNDING)

    def kept(self, owners: int) -> int:
        """Gives the bytes of receive buffers that are free, and kept for the next messages of that many owners."""
        return owners * self.buffers

    @property
    def fixed(self) -> int:
        """What the node needs however many owners are in flight."""
        gradients = self.trained if self.shared_gradients else 0
        return self.base + self.accumulator + gradients + self.scratch + self.spill

    @property
    def scratch(self) -> int:
        """Temporary memory of the one task that is being worked on."""
        return self.step + self.work + (self.saved + self.outputs + self.untrained if self.recompute else 0)

    @property
    def slot(self) -> int:
        """What one more owner in flight needs."""
        own = 0 if self.shared_gradients else self.trained
        return self.base + self.optimizer + own + self.activations + self.buffers + self.kept(1)

    @property
    def _spare(self) -> int:
        return self.base + self.optimizer

    def need(self, owners: int) -> int:
        """Gives the bytes for that many replicas: while they train, or while their average is stored."""
        training = self.fixed + owners * self.slot
        # The file is written from a copy. Replicas keep the memory of weights and optimiser state for the next round.
        storing = self.base + self.accumulator + owners * self._spare + self.base + self.kept(owners) + self.spill
        return max(training, storing)

    def need_evaluating(self, owners: int, replicas: int) -> int:
        """Gives the bytes for that many evaluating owners, beside the memory kept for replicas."""
        kept = self.base + self.accumulator + replicas * self._spare + self.kept(replicas) + self.spill
        return kept + self.evaluation + owners * self.evaluation_slot

    def with_activations(self, prints: Sequence[Footprint]) -> PartMemory:
        """Gives the same with activations as they turned out, block by block; none gets less."""
        return replace(
            self,
            inputs=max(self.inputs, prints[0].inputs),
            outputs=max(self.outputs, prints[-1].outputs),
            saved=max(self.saved, sum(each.saved for each in prints)),
            work=max(self.work, _work(prints)),
        )

    def rows(self, owners: int) -> list[tuple[str, int]]:
        """Tells where the bytes go: what, bytes."""
        own = 1 if self.shared_gradients else owners
        return [
            ("base", self.base),
            ("accumulator", self.accumulator),
            ("replicas", owners * self.base),
            ("optimiser state", owners * self.optimizer),
            ("gradients", own * self.trained),
            ("activations", owners * self.activations),
            ("buffers", owners * self.buffers + self.kept(owners)),
            ("scratch", self.scratch),
            *([("spill", self.spill)] if self.spill else []),
        ]


def part_memory(
    job: Job, blocks: tuple[Block, ...], bounds: Sequence[int], footprints: tuple[Footprint, ...], part: int
) -> PartMemory:
    """Reckons what a compute node's part costs.

    Args:
        job: The job.
        blocks: All blocks.
        bounds: Of all parts.
        footprints: Of all blocks for one micro-batch; empty where nobody knows, then activations count nothing.
        part: Which part, 1 to P - 2.
    """
    indices = range(bounds[part], bounds[part + 1])
    layout = layout_of(blocks, indices, job.optimizer)
    trained = [segment.nbytes for segment in layout.segments if segment.trained]
    floats = [segment for segment in layout.segments if segment.dtype in FLOATS]
    elements = sum(segment.nbytes // np.dtype(segment.dtype).itemsize for segment in floats)
    integers = layout.nbytes if len(floats) < len(layout.segments) else 0
    prints = footprints[indices.start : indices.stop] or (Footprint(0, 0, 0),)
    train, adam = job.train, job.optimizer.name == "adam"
    copies = 0 if job.optimizer.state == "average" else 2 if adam else 1 if job.optimizer.momentum else 0
    scratch = 3 if adam else 1
    ends = max(prints[0].inputs, prints[-1].outputs)
    samples = -(-train.batch_size // train.pieces)
    tests = -(-job.evaluate.batch_size // samples) if job.evaluate.every else 0
    window = train.pieces if train.schedule == "gpipe" else min(train.pieces, job.parts)
    return PartMemory(
        base=layout.nbytes,
        accumulator=16 * elements + integers,
        trained=sum(trained),
        shared_gradients=train.pieces == 1,
        optimizer=copies * sum(trained),
        step=scratch * max(trained, default=0),
        work=_work(prints),
        inputs=prints[0].inputs,
        outputs=prints[-1].outputs,
        saved=sum(each.saved for each in prints),
        micros=window,
        evaluation=tests * _work(prints),
        untrained=sum(s.nbytes for s in layout.segments if not s.trained and not s.is_optimizer),
        evaluation_slot=int(tests * (job.nodes + 1) * ends * ROUNDING),
        spill=copies * sum(trained) + SPILL_CHUNKS if job.optimizer.keeps else 0,
        repeatable=not any(each.writes for each in prints),
    )


def _work(prints: Sequence[Footprint]) -> int:
    """Input, output and one more of that size, of the block where they are largest."""
    return 3 * max(max(each.inputs, each.outputs) for each in prints)


def fitting(memory: PartMemory, room: int | None, most: int) -> int:
    """Gives how many owners may be in flight on a node: from 0 to `most`; all where the room is not known."""
    if room is None:
        return most
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if memory.need(middle) <= room else (low, middle - 1)
    return low
