"""Measures what a model's blocks cost on this device: seconds, and bytes that weights and activations take.

Blocks are constructed, measured and dropped, a stretch of them at a time, so a device can profile a model it could not
hold. A stretch runs as a replica runs its part (see `stretch`). What every task costs, whatever it computes, is told
apart. Before each task the processor's caches are filled with something else, as other owners' batches do in between.

With one thread the seconds are those of the processor, which others on the machine do not add to.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor, nn

from zmpsl.engine.build import build_blocks
from zmpsl.engine.replica import aligned
from zmpsl.engine.stretch import Run, Stretch, Taken, clock, tell_apart
from zmpsl.errors import JobError
from zmpsl.job.schema import Job, Model, Optimizer
from zmpsl.plan import Block, fingerprint
from zmpsl.profiles import BlockProfile, Profile, Timing, optimizer_name
from zmpsl.state import Average, Layout, Segment, digest

__all__ = ["Effort", "conditions", "inputs_like", "measure", "use_threads"]

AVERAGED_BYTES = 1 << 18
# Blocks are measured together up to this many bytes of weights, or up to so many of what a batch leaves in them.
STRETCH_WEIGHTS, STRETCH_SAVED = 64 << 20, 256 << 20


@dataclass(frozen=True)
class Effort:
    """How to measure: at most `repeats` times per block, and, after one warm-up each, for `budget_s` in all.

    A role that waits between its tasks, or imitates a slower device by sleeping, finds the processor cold each time:
    with `rest_s` above 0 that is part of what a task costs.
    """

    repeats: int = 15
    budget_s: float = 60.0
    rest_s: float = 0.0


def inputs_like(shape: tuple[int, ...], dtype: str, samples: int) -> Tensor:
    """Gives a batch for `measure` where there are no data: random numbers, or token 0."""
    if not getattr(torch, dtype).is_floating_point:
        return torch.zeros(samples, *shape, dtype=getattr(torch, dtype))
    return torch.randn(samples, *shape, generator=torch.Generator().manual_seed(0))


def use_threads(threads: int) -> None:
    """Sets torch's threads for this process; a profile holds for one number of them."""
    torch.set_num_threads(threads)


def measure(
    model: Model,
    summary: tuple[Block, ...],
    wanted: Collection[int],
    inputs: Tensor,
    optimizer: Optimizer,
    effort: Effort = Effort(),
) -> Profile:
    """Measures blocks of a model on this device, in this thread.

    Args:
        model: Name and arguments.
        summary: The model's block list.
        wanted: Numbers of the blocks to measure; of the others only the shape of the output is worked out.
        inputs: One (micro-)batch for block 0, `(b, ...)`. Where block 0 is not wanted, numbers of that shape do.
        optimizer: The job's.
        effort: How long.

    Returns:
        The profile.

    Raises:
        JobError: The model is not known, or a block cannot be run or differentiated.
    """
    add_s, mean_s = _averaging(min(effort.repeats, 5))
    sizes, entries = _walk(model, summary, wanted, inputs, optimizer)
    job, found, tasks, steps, repeats = Job(model=model, optimizer=optimizer), {}, [], [], effort.repeats
    for blocks in _stretches(sizes):
        x = inputs if blocks.start == 0 else _like(*entries[blocks.start], torch.device("cpu"))
        budget_s = effort.budget_s * len(blocks) / len(sizes)
        taken = _take(job, summary, blocks, x, effort, budget_s)
        found.update(_profiles(summary, blocks, sizes, taken))
        tasks += taken.tasks_s
        steps.append(taken.step_s)
        repeats = min(repeats, len(taken.forward_s[0]))
    return Profile(
        model=model.name, fingerprint=fingerprint(summary), model_blocks=len(summary), batch_size=len(inputs),
        optimizer=optimizer_name(optimizer), threads=torch.get_num_threads(), cores=_cores(),
        torch=str(torch.__version__), host=socket.gethostname(), repeats=repeats, input_shape=tuple(inputs.shape[1:]),
        input_dtype=str(inputs.dtype).removeprefix("torch."), task_s=fmean(tasks), step_s=fmean(steps),
        add_s_per_byte=add_s, mean_s_per_byte=mean_s, blocks=found,
    )  # fmt: skip


Form = tuple[tuple[int, ...], torch.dtype]


def _walk(
    model: Model, summary: tuple[Block, ...], wanted: Collection[int], inputs: Tensor, optimizer: Optimizer
) -> tuple[dict[int, _Bytes], dict[int, Form]]:
    """Goes through the model up to the last block wanted; gives bytes and the form of the input of those wanted."""
    shape, dtype = tuple(inputs.shape), inputs.dtype
    sizes, entries = dict[int, _Bytes](), dict[int, Form]()
    before_saved_its_output = False
    for index, block in build_blocks(model, 0, wanted):
        try:
            if index not in wanted:
                with torch.no_grad():
                    output = block(_like(shape, dtype, _device(block)))
            else:
                x = _like(shape, dtype, _device(block)) if index else inputs
                entries[index] = shape, dtype
                case = _Case(block.train(), x, optimizer, first=index == 0)
                sizes[index], before_saved_its_output, output = _weigh(case, before_saved_its_output)
        except Exception as error:  # a user's block may raise anything
            raise _unfit(model, summary, range(index, index + 1), (shape, dtype), error) from error
        shape, dtype = tuple(output.shape), output.dtype
        if index == max(wanted):
            break
    return sizes, entries


def _unfit(model: Model, summary: tuple[Block, ...], blocks: range, form: Form, error: Exception) -> JobError:
    kinds = ", ".join(summary[index].kind for index in blocks[:3]) + (", ..." if len(blocks) > 3 else "")
    which = f"block {blocks.start}" if len(blocks) == 1 else f"blocks {blocks.start} to {blocks.stop - 1}"
    return JobError(
        f"model {model.name}: {which} ({kinds}) cannot be profiled with an input of {list(form[0])}"
        f" {str(form[1]).removeprefix('torch.')}: {type(error).__name__}: {error}"
    )


def _stretches(sizes: dict[int, _Bytes]) -> Iterator[range]:
    """Groups consecutive blocks, no more than a device should hold at a time."""
    start, stop, weights, saved = -1, -1, 0, 0
    for index, size in sorted(sizes.items()):
        weights, saved = weights + size.state, saved + size.saved
        if index != stop or weights > STRETCH_WEIGHTS or saved > STRETCH_SAVED:
            if stop > start:
                yield range(start, stop)
            start, weights, saved = index, size.state, size.saved
        stop = index + 1
    yield range(start, stop)


def _take(
    job: Job, summary: tuple[Block, ...], blocks: range, x: Tensor, effort: Effort, budget_s: float
) -> Taken:  # fmt: skip
    """Runs a stretch once to warm up, then again and again; a run that takes longer than its share counts itself."""
    start = time.perf_counter()
    try:
        stretch = Stretch(job, summary, blocks, x, effort.rest_s)
        runs = [stretch.run()]
    except Exception as error:  # a user's block may raise anything
        raise _unfit(job.model, summary, blocks, (tuple(x.shape), x.dtype), error) from error
    if time.perf_counter() - start < budget_s:
        start, runs = time.perf_counter(), list[Run]()
        ways = (False, True) if effort.rest_s else (False,)
        while len(runs) < len(ways) or (
            len(runs) < len(ways) * effort.repeats and time.perf_counter() - start < budget_s
        ):
            runs += [stretch.run(midway) for midway in ways]
    return tell_apart(runs, last=blocks.stop == len(summary))


def _profiles(
    summary: tuple[Block, ...], blocks: range, sizes: dict[int, _Bytes], taken: Taken
) -> dict[int, BlockProfile]:  # fmt: skip
    each = zip(blocks, taken.forward_s, taken.backward_s, taken.update_s, strict=True)
    return {
        index: BlockProfile(
            name=summary[index].kind, forward=_timing(forward), backward=_timing(backward), update=_timing(update),
            parameter_bytes=sizes[index].parameters, state_bytes=sizes[index].state,
            optimizer_bytes=sizes[index].optimizer, saved_bytes=sizes[index].saved, output_bytes=sizes[index].output,
        )
        for index, forward, backward, update in each
    }  # fmt: skip


def conditions() -> tuple[str, ...]:
    """Tells what measured seconds depend on beside model, batch and optimiser."""
    return (*os.uname(), str(_cores()), str(torch.__version__), str(torch.get_num_threads()))


def _averaging(repeats: int) -> tuple[float, float]:
    """Measures seconds per byte of state: to take a replica into the average, and to make mean and digest."""
    segment = Segment("x", "float32", (AVERAGED_BYTES // 4,), 0, True)
    average, flat = Average(Layout((segment,), AVERAGED_BYTES)), aligned(AVERAGED_BYTES)
    flat.view("float32")[:] = torch.randn(AVERAGED_BYTES // 4, generator=torch.Generator().manual_seed(0)).numpy()
    now, adds, means = clock(), list[float](), list[float]()
    for _ in range(repeats):
        average.reset()
        average.add(0, flat, 7)  # finds the sums empty, later ones do not
        start = now()
        average.add(1, flat, 9)
        middle = now()
        average.write_to(flat)
        digest(flat)
        adds.append(middle - start)
        means.append(now() - middle)
    return median(adds) / AVERAGED_BYTES, median(means) / AVERAGED_BYTES


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(block: nn.Module) -> torch.device:
    tensor = next((t for t in (*block.parameters(), *block.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _like(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gives an input of that shape, with numbers as activations have them; without a value on the meta device."""
    if device.type == "meta" or not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@dataclass(frozen=True)
class _Case:
    """A block with an input; the first block's input is data, which wants no gradient."""

    block: nn.Module
    inputs: Tensor
    optimizer: Optimizer
    first: bool = False

    def leaf(self) -> Tensor:
        """Gives the input as a replica makes it of what arrives."""
        leaf = self.inputs.detach()
        return leaf if self.first or not leaf.is_floating_point() else leaf.requires_grad_()


@dataclass(frozen=True)
class _Bytes:
    parameters: int
    state: int
    optimizer: int
    saved: int
    output: int


def _weigh(case: _Case, input_is_counted: bool) -> tuple[_Bytes, bool, Tensor]:
    """Counts what one batch through the block keeps in memory.

    An activation between two blocks counts once, with the block before it if that keeps it, else with the one behind.

    Returns:
        The bytes, whether the block keeps its own output, and the output.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    block, leaf = case.block, case.leaf()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output: Tensor = block(leaf)
    state = [*block.parameters(), *block.buffers()]
    ours = {tensor.untyped_storage().data_ptr() for tensor in state}
    at_input, at_output = leaf.untyped_storage().data_ptr(), output.untyped_storage().data_ptr()
    inner = sum(size for where, size in saved.items() if where not in ours and where != at_input)
    keeps_output = at_output in saved if at_output != at_input else input_is_counted
    if at_input in saved and not input_is_counted:
        inner += leaf.untyped_storage().nbytes()
        keeps_output |= at_output == at_input
    trained = [p for p in block.parameters() if p.requires_grad]
    counts = _Bytes(
        sum(p.nbytes for p in trained), sum(tensor.nbytes for tensor in state), _kept(trained, case.optimizer), inner,
        output.nbytes,
    )  # fmt: skip
    return counts, keeps_output, output.detach()


def _kept(parameters: list[nn.Parameter], settings: Optimizer) -> int:
    """Bytes the optimiser keeps: two moments for Adam (its step counts are a few bytes), one for momentum."""
    copies = 2 if settings.name == "adam" else 1 if settings.momentum else 0
    return copies * sum(p.nbytes for p in parameters)


def _timing(seconds: list[float]) -> Timing:
    order = sorted(max(0.0, each) for each in seconds)
    quarter = len(order) // 4
    return Timing(median(order), order[quarter], order[-1 - quarter])
