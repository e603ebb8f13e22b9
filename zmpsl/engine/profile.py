"""Measures what a model's blocks cost on this device: seconds, and bytes that weights and activations take.

One block after the other is constructed, measured and dropped, so a device can profile a model it could not hold.
Blocks run as a replica runs them: seeded, in training mode, backward into leaf gradients, then an optimiser step. What
every call costs, whatever it computes, is measured with a block that does nothing and taken off. Before each
forward and backward the processor's caches are filled with something else, as other owners' batches do in between.

With one thread the seconds are those of the processor, which others on the machine do not add to.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from zmpsl.engine.build import build_blocks, keyed_generator
from zmpsl.engine.owner import loss_of
from zmpsl.engine.replica import aligned, make_optimizer
from zmpsl.errors import JobError
from zmpsl.job.schema import Model, Optimizer
from zmpsl.plan import Block, fingerprint
from zmpsl.profiles import BlockProfile, Profile, Timing, optimizer_name
from zmpsl.state import Average, Layout, Segment, digest

__all__ = ["Effort", "conditions", "inputs_like", "measure", "use_threads"]

AVERAGED_BYTES = 1 << 18
ELSEWHERE_BYTES = 4 << 20  # more than a core's own cache
Times = tuple[float, float, float]  # forward, backward, update


@dataclass(frozen=True)
class Effort:
    """How long to measure: at most `repeats` times per block, and, after one warm-up each, for `budget_s` in all."""

    repeats: int = 15
    budget_s: float = 60.0


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
    lending_s, fixed = _fixed(optimizer, effort.repeats)
    add_s, mean_s = _averaging(min(effort.repeats, 5))
    found, repeats = _walk(model, summary, wanted, inputs, optimizer, effort, fixed)
    return Profile(
        model=model.name, fingerprint=fingerprint(summary), model_blocks=len(summary), batch_size=len(inputs),
        optimizer=optimizer_name(optimizer), threads=torch.get_num_threads(), cores=_cores(),
        torch=str(torch.__version__), host=socket.gethostname(), repeats=repeats, input_shape=tuple(inputs.shape[1:]),
        input_dtype=str(inputs.dtype).removeprefix("torch."), task_s=(lending_s + fixed[0] + fixed[1]) / 2,
        step_s=fixed[2], add_s_per_byte=add_s, mean_s_per_byte=mean_s, blocks=found,
    )  # fmt: skip


def _walk(
    model: Model, summary: tuple[Block, ...], wanted: Collection[int], inputs: Tensor, optimizer: Optimizer,
    effort: Effort, fixed: Times,
) -> tuple[dict[int, BlockProfile], int]:  # fmt: skip
    """Goes through the model up to the last block wanted; gives what was found, and the fewest repeats."""
    shape, dtype = tuple(inputs.shape), inputs.dtype
    found: dict[int, BlockProfile] = {}
    repeats, share = effort.repeats, effort.budget_s / max(1, len(wanted))
    before_saved_its_output = False
    for index, block in build_blocks(model, 0, wanted):
        try:
            if index not in wanted:
                with torch.no_grad():
                    output = block(_like(shape, dtype, block))
            else:
                x = _like(shape, dtype, block) if index else inputs
                case = _Case(block, x, optimizer, first=index == 0, last=index + 1 == len(summary))
                runs = _repeat(case, effort.repeats, share, fixed)
                one, before_saved_its_output, output = _weigh(case, before_saved_its_output)
                found[index] = _profile(summary[index].kind, runs, one)
                repeats = min(repeats, len(runs))
        except Exception as error:  # a user's block may raise anything
            raise JobError(
                f"model {model.name}: block {index} ({summary[index].kind}) cannot be profiled with an input of"
                f" {list(shape)} {str(dtype).removeprefix('torch.')}: {type(error).__name__}: {error}"
            ) from error
        shape, dtype = tuple(output.shape), output.dtype
        if index == max(wanted):
            break
    return found, repeats


def conditions() -> tuple[str, ...]:
    """Tells what measured seconds depend on beside model, batch and optimiser."""
    return (*os.uname(), str(_cores()), str(torch.__version__), str(torch.get_num_threads()))


def _averaging(repeats: int) -> tuple[float, float]:
    """Measures seconds per byte of state: to take a replica into the average, and to make mean and digest."""
    segment = Segment("x", "float32", (AVERAGED_BYTES // 4,), 0, True)
    average, flat = Average(Layout((segment,), AVERAGED_BYTES)), aligned(AVERAGED_BYTES)
    flat.view("float32")[:] = torch.randn(AVERAGED_BYTES // 4, generator=torch.Generator().manual_seed(0)).numpy()
    clock, adds, means = _clock(), [], []
    for _ in range(repeats):
        average.reset()
        average.add(0, flat, 7)  # finds the sums empty, later ones do not
        start = clock()
        average.add(1, flat, 9)
        middle = clock()
        average.write_to(flat)
        digest(flat)
        adds.append(middle - start)
        means.append(clock() - middle)
    return median(adds) / AVERAGED_BYTES, median(means) / AVERAGED_BYTES


def _clock() -> Callable[[], float]:
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device(block: nn.Module) -> torch.device:
    tensor = next((t for t in (*block.parameters(), *block.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _like(shape: tuple[int, ...], dtype: torch.dtype, block: nn.Module) -> Tensor:
    """Gives an input of that shape, with numbers as activations have them; without a value on the meta device."""
    device = _device(block)
    if device.type == "meta" or not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _fixed(optimizer: Optimizer, repeats: int) -> tuple[float, Times]:
    """Measures what every task costs, whatever it computes: lending the generator, and calls that do nothing."""
    clock, lending, steps = _clock(), [], []
    with torch.random.fork_rng(devices=[]):
        # A process's first backward loads much of torch.
        _runner(_Case(nn.Linear(1, 1), torch.zeros(1, 1), optimizer))()
        empty = _repeat(_Case(nn.Identity(), torch.zeros(1), optimizer), repeats, 0.05)
    tiny = nn.Parameter(torch.zeros(1))
    stepper = make_optimizer(optimizer, [tiny])
    for _ in range(repeats + 1):
        start = clock()
        with keyed_generator():
            pass
        lending.append(clock() - start)
        tiny.grad = torch.zeros(1)
        start = clock()
        if stepper is not None:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        steps.append(clock() - start)
    forward, backward, _ = (median(one[kind] for one in empty) for kind in range(3))
    return median(lending), (forward, backward, median(steps[1:]))


@dataclass(frozen=True)
class _Case:
    """A block with an input; the first block's input is data, which wants no gradient, the last block has the loss."""

    block: nn.Module
    inputs: Tensor
    optimizer: Optimizer
    first: bool = False
    last: bool = False

    def leaf(self) -> Tensor:
        """Gives the input as a replica makes it of what arrives."""
        leaf = self.inputs.detach()
        return leaf if self.first or not leaf.is_floating_point() else leaf.requires_grad_()


def _repeat(case: _Case, repeats: int, share_s: float, fixed: Times = (0.0, 0.0, 0.0)) -> list[Times]:
    """Runs a block once to warm up, then again and again; a run that takes longer than the share counts itself."""
    run = _runner(case)
    start = time.perf_counter()
    runs = [run()]
    if time.perf_counter() - start < share_s:
        start, runs = time.perf_counter(), []
        while not runs or (len(runs) < repeats and time.perf_counter() - start < share_s):
            runs.append(run())
    off_f, off_b, off_u = fixed
    return [(max(0.0, f - off_f), max(0.0, b - off_b), max(0.0, u - off_u)) for f, b, u in runs]


def _runner(case: _Case) -> Callable[[], Times]:
    """Gives a function that takes one batch through the block and tells the seconds."""
    block = case.block.train()
    optimizer = make_optimizer(case.optimizer, [p for p in block.parameters() if p.requires_grad])
    clock, elsewhere = _clock(), torch.zeros(ELSEWHERE_BYTES // 4)

    def run() -> Times:
        leaf = case.leaf()
        elsewhere.add_(1.0)
        start = clock()
        torch.default_generator.manual_seed(0)  # ours to seed: build_blocks has it, and puts it back
        output: Tensor = block(leaf)
        middle = clock()
        if case.last:
            loss_of(output, torch.zeros(output.shape[:-1], dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
        elif output.requires_grad:
            gradient = torch.ones_like(output)
            elsewhere.add_(1.0)
            start, middle = start + (clock() - middle), clock()
            output.backward(gradient)  # type: ignore[no-untyped-call]
        end = clock()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return middle - start, end - middle, clock() - end

    return run


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


def _profile(kind: str, runs: list[Times], size: _Bytes) -> BlockProfile:
    forward, backward, update = (_timing([run[kind] for run in runs]) for kind in range(3))
    return BlockProfile(
        name=kind, forward=forward, backward=backward, update=update, parameter_bytes=size.parameters,
        state_bytes=size.state, optimizer_bytes=size.optimizer, saved_bytes=size.saved, output_bytes=size.output,
    )  # fmt: skip


def _timing(seconds: list[float]) -> Timing:
    order = sorted(seconds)
    quarter = len(order) // 4
    return Timing(median(order), order[quarter], order[-1 - quarter])
