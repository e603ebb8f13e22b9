"""Parts and their replicas. All weights of a part lie in one flat buffer, see zmpsl.state.

A Part is the round's base: the weights every replica starts from. A Replica is one owner's copy with its optimiser
and the activations it has saved for backward:

    forward(b, m)  saves input and output    ->  backward(b, m) uses and frees them  ->  update() after the last m

Until its first update of a round a replica computes on the base's own trained weights; they are copied then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from zmpsl.engine.build import build_blocks, keyed_generator
from zmpsl.engine.relu import mask_of_output
from zmpsl.errors import CheckpointError, RemoteProtocolError, TrainingError
from zmpsl.job.schema import Job, Optimizer
from zmpsl.plan import Plan
from zmpsl.pool.spill import Tensors
from zmpsl.randomness import key
from zmpsl.state import Flat, Layout, layout_of, optimizer_entries
from zmpsl.transport.buffers import ALIGNMENT
from zmpsl.transport.mask import KnownMask

__all__ = ["Part", "Replica", "Saved", "aligned", "learning_rate", "make_optimizer"]

Key = tuple[int, int, int, int]  # round, local epoch, batch, micro-batch
# What an optimiser keeps per parameter, and whether that has the parameter's shape.
KEPT = {"sgd": {"momentum_buffer": True}, "adam": {"step": False, "exp_avg": True, "exp_avg_sq": True}}


def aligned(nbytes: int) -> Flat:
    """Gives zeroed memory at a multiple of 64 bytes."""
    slab = np.zeros(nbytes + ALIGNMENT, np.uint8)
    start = -slab.ctypes.data % ALIGNMENT
    return slab[start : start + nbytes]


def learning_rate(optimizer: Optimizer, round_: int, rounds: int) -> float:
    """Gives the learning rate of a round (counted from 0); see the job reference for the schedules."""
    lr = optimizer.lr
    if lr.schedule == "step":
        return lr.initial * lr.gamma ** (round_ // lr.step_rounds)
    if lr.schedule == "exponential":
        return float(lr.initial * lr.gamma**round_)
    if lr.schedule == "cosine":
        return float(lr.initial * 0.5 * (1 + np.cos(np.pi * round_ / rounds)))
    return lr.initial


def _rebind(block: nn.Module, index: int, views: dict[str, Tensor]) -> nn.Module:
    """Copies a block so that its state lies in `views`; what is not part of the state is copied as it is."""
    memo: dict[int, object] = {}
    for name, tensor in block.state_dict(keep_vars=True).items():
        view = views[f"{index}.{name}"]
        memo[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view
    return copy.deepcopy(block, memo)


class Part:
    """The base of one part: blocks [start, stop) with the weights that a round starts from.

    Args:
        plan: The plan.
        part: Which part.
        flat: Where its weights shall lie; given when two parts share a buffer, as an owner's do.
        layout: Layout of that buffer.

    Attributes:
        lends: Replicas may compute on the base's own weights until their first update. None until the first forward has
            shown that blocks do not write their weights there, as an embedding with `max_norm` does; False if they do.
        repeats: Replicas remember what running a forward again takes.
    """

    repeats = False

    def __init__(self, plan: Plan, part: int, flat: Flat | None = None, layout: Layout | None = None) -> None:
        self.job: Job = plan.job
        self.indices = plan.blocks_of(part)
        self.layout = layout if layout is not None else layout_of(plan.blocks, self.indices, plan.job.optimizer)
        self.flat = flat if flat is not None else aligned(self.layout.nbytes)
        self.views = views = _tensors(self.layout, self.flat)
        self.lends: bool | None = None
        self.blocks: list[nn.Module] = []
        for index, block in build_blocks(plan.job.model, plan.job.seed, self.indices):
            if index in self.indices:
                for name, tensor in block.state_dict().items():
                    views[f"{index}.{name}"].copy_(tensor)
                self.blocks.append(_rebind(block, index, views))

    def holds(self, name: str) -> bool:
        """Tells whether a tensor of the layout is of this part: two parts may share one."""
        return int(name.split(".", 1)[0]) in self.indices

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Runs the blocks in evaluation mode; no state changes."""
        with torch.no_grad():
            for block in self.blocks:
                inputs = block.eval()(inputs)
        return inputs.contiguous()


def _tensors(layout: Layout, flat: Flat) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in layout.views(flat).items()}


class Saved(NamedTuple):
    """What a micro-batch leaves between forward and backward; the masks are those of ReLU outputs."""

    leaf: Tensor
    output: Tensor
    shape: tuple[int, ...]  # of the output
    leaf_mask: KnownMask | None
    output_mask: KnownMask | None
    penalty: Tensor | None = None  # a term of the loss that is known here
    before: list[Tensor] | None = None  # what forward may change, as it was; where forward may be run again


# Changes what a part puts out, given its input: gives what is sent, and a term of the loss or None.
Shape = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


class Replica:
    """One owner's copy of a part.

    Args:
        base: The part it is a copy of; its weights are taken by `reset`.
        owner: Index of the owner.
        flat: Where its weights shall lie, laid out as the base's.
    """

    def __init__(self, base: Part, owner: int, flat: Flat) -> None:
        self.base = base
        self.owner = owner
        self.flat = flat
        self._views = {name: view for name, view in _tensors(base.layout, flat).items() if base.holds(name)}
        self.blocks = [
            _rebind(block, index, self._views).train() for index, block in zip(base.indices, base.blocks, strict=True)
        ]
        # By the names under which _rebind bound them: of several names of one tensor that is the last.
        named = {
            id(tensor): (f"{index}.{name}", tensor)
            for index, block in zip(base.indices, self.blocks, strict=True)
            for name, tensor in block.state_dict(keep_vars=True).items()
        }
        trained = [p for block in self.blocks for p in block.parameters() if p.requires_grad]
        self._parameters = [(named[id(parameter)][0], parameter) for parameter in trained]
        self._optimizer = make_optimizer(base.job.optimizer, trained)
        # A forward may change what is not trained, so that is always our own; so is averaged optimiser state.
        self._trained = {name for name, _ in self._parameters}
        self._saved: dict[Key, Saved] = {}
        self._shares = False
        self._awaited: Callable[[], Tensors] | None = None

    def reset(self, round_: int) -> None:
        """Starts a round on the base's weights: learning rate set, optimiser state new or the base's."""
        self.rest()
        self._shares = True
        for name, parameter in self._parameters:
            parameter.data = self.base.views[name]
        self._copy(self._views.keys() - self._trained)
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate(self.base.job.optimizer, round_, self.base.job.train.rounds)
        if not self.base.lends:
            self.own()

    def own(self) -> None:
        """Takes a copy of the base's trained weights, unless that was done in this round."""
        if not self._shares:
            return
        self._shares = False
        self._copy(self._trained)
        extras = [extra for extra, _ in optimizer_entries(self.base.job.optimizer)]
        for name, parameter in self._parameters:
            # No graph holds the base's memory any more: every micro-batch has been backward.
            parameter.data = self._views[name]
            if extras and self._optimizer is not None:
                self._optimizer.state[parameter] = {extra: self._views[f"{name}@{extra}"] for extra in extras}

    def _copy(self, names: Iterable[str]) -> None:
        for name in names:
            self._views[name].copy_(self.base.views[name])

    def _writes(self) -> int:
        """Counts how often the trained weights were written."""
        return sum(parameter._version for _, parameter in self._parameters)

    def rest(self) -> None:
        """Frees all but the weights: activations, gradients, optimiser state."""
        self._saved.clear()
        self._awaited = None
        if self._optimizer is not None:
            self._optimizer.state.clear()
            self._optimizer.zero_grad(set_to_none=True)

    def output_of(self, at: Key) -> tuple[int, ...] | None:
        """Gives the shape of a micro-batch's output whose backward is to come, None where there is none."""
        return self._saved[at].shape if at in self._saved else None

    @property
    def saved(self) -> int:
        """Number of micro-batches whose backward is to come."""
        return len(self._saved)

    def masks(self, at: Key) -> tuple[KnownMask | None, KnownMask | None]:
        """Gives the masks of a saved micro-batch's input and output, where these are ReLU outputs."""
        saved = self._saved.get(at)
        return (None, None) if saved is None else (saved.leaf_mask, saved.output_mask)

    def forward(
        self, inputs: Tensor, at: Key, *, first: bool = False, relu: bool = False, shape: Shape | None = None
    ) -> Tensor:
        """Runs the blocks in training mode and saves what backward needs.

        Args:
            inputs: Activations of one micro-batch, `(b, ...)`.
            at: Which micro-batch.
            first: The inputs are data: no gradient is wanted for them.
            relu: The inputs are a ReLU's output.
            shape: What happens to the output before it is sent.

        Returns:
            The output, attached to the graph.
        """
        if at in self._saved:
            raise RemoteProtocolError(f"owner {self.owner}: forward of {at} came twice")
        leaf = inputs if first else inputs.requires_grad_()
        before = self._buffers() if self.base.repeats else None
        output = leaf
        writes = self._writes()
        with keyed_generator() as generator:
            for index, block in zip(self.base.indices, self.blocks, strict=True):
                generator.manual_seed(key(self.base.job.seed, "forward", self.owner, *at, index))
                output = block(output)
        if self._writes() == writes:
            self.base.lends = self.base.lends is not False
        elif self._shares:
            raise TrainingError(
                f"blocks {self.base.indices.start} to {self.base.indices.stop - 1} write their weights in forward, but"
                " did not at first; a block must do so always or never"
            )
        else:
            self.base.lends = False
        leaf_mask = KnownMask(leaf.detach().numpy()) if relu else None
        output, penalty = shape(leaf, output) if shape is not None else (output, None)
        shape_ = tuple(output.shape)
        self._saved[at] = Saved(leaf, output, shape_, leaf_mask, mask_of_output(output), penalty, before)
        return output

    def _buffers(self) -> list[Tensor]:
        """Copies what is no parameter and a forward may change, such as running statistics."""
        return [buffer.detach().clone() for block in self.blocks for buffer in block.buffers()]

    def _put(self, values: list[Tensor]) -> None:
        """Makes it what it was."""
        with torch.no_grad():
            buffers = [buffer for block in self.blocks for buffer in block.buffers()]
            for buffer, value in zip(buffers, values, strict=True):
                buffer.data.copy_(value)  # through .data: no graph minds, none uses them

    def backward(self, gradient: Tensor | None, at: Key, loss: Tensor | None = None) -> Tensor | None:
        """Adds this micro-batch's gradients to the weights' and frees its activations.

        Args:
            gradient: Gradient of the loss by the output; None for the last part, which has `loss`.
            at: Which micro-batch.
            loss: The scaled loss, for the last part.

        Returns:
            Gradient by the input, contiguous; None for the first part.
        """
        saved = self._saved.pop(at, None)
        if saved is None:
            raise RemoteProtocolError(f"owner {self.owner}: backward of {at} without its forward")
        leaf, output = saved.leaf, saved.output
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
        elif gradient is None or gradient.shape != output.shape or gradient.dtype != output.dtype:
            got = None if gradient is None else f"{gradient.dtype}{list(gradient.shape)}"
            raise RemoteProtocolError(
                f"owner {self.owner}: gradient {got} for an output {output.dtype}{list(output.shape)}"
            )
        elif saved.penalty is not None and saved.penalty.requires_grad:
            torch.autograd.backward([output, saved.penalty], [gradient, torch.ones_like(saved.penalty)])
        elif output.requires_grad:
            output.backward(gradient)  # type: ignore[no-untyped-call]
        if not leaf.requires_grad:
            return None
        if leaf.grad is None:
            raise TrainingError(
                f"blocks {self.base.indices.start} to {self.base.indices.stop - 1} give no gradient for their input"
            )
        return leaf.grad.contiguous()

    def update(self) -> None:
        """One optimiser step with the gathered gradients."""
        self.own()
        self._take()
        if self._optimizer is not None:
            self._step(self._optimizer)
            self._optimizer.zero_grad(set_to_none=True)

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def go_on_from(self, kept: Callable[[], Tensors] | None) -> None:
        """Has the optimiser go on from a kept state, which is waited for where it is needed; None for none."""
        self._awaited = kept

    def kept(self) -> Tensors:
        """Gives the optimiser's state to be kept, by parameter and name; no copy, so it must rest from now on."""
        self._take()
        if self._optimizer is None:
            return {}
        return {
            f"{name}@{extra}": value.detach().numpy()
            for name, parameter in self._parameters
            for extra, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def _take(self) -> None:
        """Puts the kept state, if there is one, into the optimiser."""
        if self._awaited is None:
            return
        tensors, self._awaited = self._awaited(), None
        shapes = {name: (parameter, tuple(parameter.shape)) for name, parameter in self._parameters}
        for key_, array in tensors.items():
            name, _, extra = key_.partition("@")
            parameter, shape = shapes.get(name, (None, ()))
            known = KEPT[self.base.job.optimizer.name].get(extra)
            if parameter is None or known is None or array.shape != (shape if known else ()):
                raise CheckpointError(
                    f"the kept optimiser state of owner {self.owner} has {key_} {array.dtype}{list(array.shape)}, which"
                    f" {self.base.job.optimizer.name} has no use for in blocks {self.base.indices.start} to"
                    f" {self.base.indices.stop - 1}: a run whose owners keep their states can only go on with the same"
                    " optimiser"
                )
            if self._optimizer is not None:
                self._optimizer.state[parameter][extra] = torch.from_numpy(array)


def make_optimizer(settings: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer | None:
    """Gives the job's optimiser for some parameters; None where there are none."""
    if not parameters:
        return None
    if settings.name == "adam":
        return torch.optim.Adam(
            parameters,
            lr=settings.lr.initial,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        parameters, lr=settings.lr.initial, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
