"""Takes the time of consecutive blocks as a role runs them: a real part and replica, one graph, a step at the end.

    rest, forward of all blocks, rest, backward of all, rest, the blocks' optimiser steps

Hooks read the clock where one block ends and the next begins. What a task takes beside its blocks is told apart: our
own work on it and, where the role rests between its tasks, what it costs to come back to a processor that has gone
cold. That shows in whatever blocks come first, so it is measured by resting before the blocks in one run, and in the
midst of them in the next: the first half goes slower in the one, the second half in the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import fsum
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from zmpsl.engine.compute import to_array
from zmpsl.engine.owner import loss_of
from zmpsl.engine.replica import Part, Replica, aligned, make_optimizer
from zmpsl.job.schema import Job
from zmpsl.plan import Block, Peer, Plan

__all__ = ["Run", "Stretch", "Taken", "clock", "tell_apart"]

ELSEWHERE_BYTES = 4 << 20  # more than a core's own cache
NOBODY = Peer("", "")


class Run(NamedTuple):
    """Seconds of one batch: of each block forward, backward and update, and beside the blocks."""

    midway: bool
    forward_s: list[float]
    backward_s: list[float]
    update_s: list[float]
    forward_task_s: float
    backward_task_s: float
    step_s: float


class Taken(NamedTuple):
    """Seconds of every block in each run that counts for it, of every kind of task beside its blocks, and of a step."""

    forward_s: list[list[float]]
    backward_s: list[list[float]]
    update_s: list[list[float]]
    tasks_s: list[float]
    step_s: float


class _Stamp(NamedTuple):
    """When a gradient came, and when its use began."""

    came: float
    left: float


def clock() -> Callable[[], float]:
    """Gives the clock: with one thread the processor's time, which others on the machine do not add to."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


class Stretch:
    """A part made of some consecutive blocks, with one replica.

    Args:
        job: Its model, seed and optimiser count.
        summary: The model's block list.
        blocks: Numbers of the blocks.
        inputs: One micro-batch for the first of them.
        rest_s: Rest before each task.
    """

    def __init__(self, job: Job, summary: tuple[Block, ...], blocks: range, inputs: Tensor, rest_s: float) -> None:
        bounds = (blocks.start, blocks.stop)
        plan = Plan(
            version=0, run="", job=job, blocks=summary, bounds=bounds, aggregator=NOBODY, nodes=(), owners=()
        )  # fmt: skip
        part = Part(plan, 0)
        self._replica = Replica(part, 0, aligned(part.layout.nbytes))
        self._replica.reset(0)
        self._first, self._last = blocks.start == 0, blocks.stop == len(summary)
        self._inputs, self._rest_s, self._clock, self._number = inputs, rest_s, clock(), 0
        self._middle, self._midway = len(blocks) // 2, False  # a single block has none: it is 0
        self._elsewhere = torch.zeros(ELSEWHERE_BYTES // 4)
        self._steps = [_still(job, list(block.parameters())) for block in self._replica.blocks]
        self._tiny = [nn.Parameter(torch.zeros(1))]
        self._nothing = _still(job, self._tiny)
        self._begun, self._done, self._back = [0.0] * len(blocks), [0.0] * len(blocks), list[_Stamp | None]()
        for place, block in enumerate(self._replica.blocks):
            block.register_forward_pre_hook(lambda _block, inputs, at=place: self._enter(at, inputs[0]))
            block.register_forward_hook(lambda _block, _inputs, output, at=place: self._leave(at, output))

    def run(self, midway: bool = False) -> Run:
        """Takes one batch through the blocks, and back; rests in the midst of the blocks instead of before them."""
        self._midway = midway
        at, now, count = (0, 0, self._number, 0), self._clock, len(self._done)
        self._number += 1
        inputs = self._inputs.detach().clone()
        self._back = [None] * (count + 1)
        self._rest()
        begun = now()
        output = self._replica.forward(inputs, at, first=self._first)
        arrived = now()
        forward = [end - start for start, end in zip(self._begun, self._done, strict=True)]
        gradient, loss = None, None
        if self._last:
            targets = torch.zeros(output.shape[:-1], dtype=torch.int64)
        else:
            gradient = torch.full_like(output, 1e-3, requires_grad=False)
            self._rest()
        turned = now()
        if self._last:
            loss = loss_of(output, targets)
            float(loss.detach())
        found = self._replica.backward(gradient, at, loss)
        to_array(output if found is None else found)
        backward, beside = self._divide(turned, now())
        step_s, update = self._update()
        task_s = (self._begun[0] - begun) + (arrived - self._done[-1])
        return Run(midway, forward, backward, update, task_s, beside, step_s)

    def _divide(self, turned: float, ended: float) -> tuple[list[float], float]:
        """Divides the backward: a block ends where the gradient of its input is there, the loss is the last block's."""
        count, behind = len(self._done), self._back[-1]
        start = last = turned if self._last or behind is None else behind.left
        seconds = [0.0] * count
        for place in reversed(range(count)):
            reached = self._back[place] or (_Stamp(ended, ended) if not place else None)
            if reached is not None:
                seconds[place], last = reached.came - last, reached.left
        return seconds, (start - turned) + (ended - last)

    def _update(self) -> tuple[float, list[float]]:
        """Takes the blocks' steps one by one; the first step, of next to nothing, tells what any costs."""
        self._rest()
        cold, warm, *each = [self._step(step) for step in (self._nothing, self._nothing, *self._steps)]
        return cold, [
            max(0.0, seconds - warm) if step else 0.0 for step, seconds in zip(self._steps, each, strict=True)
        ]

    def _step(self, optimizer: torch.optim.Optimizer | None) -> float:
        self._tiny[0].grad = torch.zeros(1)
        start = self._clock()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return self._clock() - start

    def _rest(self) -> None:
        self._elsewhere.add_(1.0)  # other owners' batches fill the caches in between
        if self._rest_s and not self._midway:
            time.sleep(self._rest_s)

    def _rest_at(self, place: int) -> None:
        if self._rest_s and self._midway and place and place == self._middle:
            time.sleep(self._rest_s)

    def _enter(self, place: int, inputs: Tensor) -> None:
        if not place and inputs.requires_grad:
            inputs.register_hook(lambda _gradient: self._arrive(0))  # type: ignore[no-untyped-call]
        self._rest_at(place)
        self._begun[place] = self._clock()

    def _leave(self, place: int, output: Tensor) -> None:
        self._done[place] = self._clock()
        if output.requires_grad:
            output.register_hook(lambda _gradient: self._arrive(place + 1))  # type: ignore[no-untyped-call]

    def _arrive(self, place: int) -> None:
        came = self._clock()
        self._rest_at(place)
        self._back[place] = _Stamp(came, self._clock())


def tell_apart(runs: list[Run], last: bool) -> Taken:
    """Tells the blocks' own seconds from what a task takes beside them.

    Args:
        runs: Of one stretch; where none rested midway, blocks count as they are.
        last: It ends with the model's last block, and backward follows the forward at once.
    """
    before, midway = ([run for run in runs if run.midway is way] for way in (False, True))
    count, tasks, warm = len(runs[0].forward_s), list[float](), dict[str, list[list[float]]]()
    first, second = range(count // 2 or 1), range(count // 2 or 1, count)
    for kind, (near, far) in {"forward": (first, second), "backward": _backwards(count)}.items():
        seconds = [{True: midway, False: before}[bool(midway) and place in near] for place in range(count)]
        warm[kind] = [[getattr(run, f"{kind}_s")[place] for run in of] for place, of in enumerate(seconds)]
        cold = [
            _sum(kind, half, rested) - _sum(kind, half, other)
            for half, rested, other in ((near, before, midway), (far, midway, before))
            if half and midway
        ]
        if kind == "forward" or not last:
            beside = median(getattr(run, f"{kind}_task_s") for run in before)
            tasks.append(beside + max(0.0, fmean(cold) if cold else 0.0))
    update = [[run.update_s[place] for run in before] for place in range(count)]
    return Taken(warm["forward"], warm["backward"], update, tasks, median(run.step_s for run in before))


def _backwards(count: int) -> tuple[range, range]:
    """The half of the blocks that backward comes to first, and the other."""
    return range(count // 2, count), range(count // 2)


def _sum(kind: str, blocks: range, runs: list[Run]) -> float:
    return median(fsum(getattr(run, f"{kind}_s")[place] for place in blocks) for run in runs)


def _still(job: Job, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """Gives the job's optimiser with a learning rate of 0: it works as ever, and changes no weight."""
    optimizer = make_optimizer(job.optimizer, [each for each in parameters if each.requires_grad])
    for group in optimizer.param_groups if optimizer is not None else []:
        group["lr"] = 0.0
    return optimizer
