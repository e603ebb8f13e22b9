"""A compute node's replica: its memory serves one owner after the other, and it can be taken out of it and put back.

Optimiser states lie in memory that belongs to the replica, as weights do. If every owner's were made anew, between
gradients that come and go, the heap would get more holes with every owner. States that owners keep are read into that
memory. When its owner has closed, a replica leaves it to whoever writes the state to disk, and goes on with that of the
state written before: so with M replicas there are M + 1 of them.

A replica can be taken out of memory in the middle of a round and put back, bit for bit.
Weights, optimiser state and gradients are taken as they are. Of micro-batches between forward and backward only the
input is, and what forward may change as it was before: forward is run again when the replica is back. Random draws come
from the same keys and the weights are the same, for there is one optimiser step per batch, and that comes later.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from zmpsl.engine.replica import KEPT, Key, Replica, aligned
from zmpsl.errors import CheckpointError
from zmpsl.pool.spill import Tensors
from zmpsl.transport.buffers import ALIGNMENT
from zmpsl.transport.mask import KnownMask

__all__ = ["Absent", "NodeReplica", "Slots", "Unfinished"]

# Memory of an optimiser state: tensors by the parameter's and their own name.
Slots = dict[str, torch.Tensor]


class Unfinished(NamedTuple):
    """A micro-batch whose backward is to come: which, shape and mask of its output, and whether its input is a ReLU's.

    The mask is the object that the link to the next part knows, for that may have noted in it what its receiver sees.
    """

    at: Key
    shape: tuple[int, ...]
    mask: KnownMask | None
    relu: bool


class Absent(NamedTuple):
    """What stays in memory of a replica that was taken out of it.

    Attributes:
        forms: Type and shape of all its arrays, by name.
        shares: It computes on the base's weights still.
        awaits: The optimiser state that the owner kept from the round before has not been needed yet.
        unfinished: In the order of their forwards.
    """

    forms: dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]
    shares: bool
    awaits: bool
    unfinished: tuple[Unfinished, ...]

    def of(self, at: Key) -> Unfinished | None:
        """Gives what is known of a micro-batch."""
        return next((each for each in self.unfinished if each.at == at), None)


class NodeReplica(Replica):
    """A replica of a compute node."""

    _slots: Slots | None = None

    def rest(self) -> None:
        """Frees all but the memory of weights and optimiser state; nobody reads into that any more."""
        if self._awaited is not None:
            with suppress(CheckpointError):  # whoever needs that state will read it again
                self._awaited()
        super().rest()

    def kept_room(self) -> Tensors:
        """Gives the arrays that the owner's kept state is to be read into, by name."""
        return {name: slot.numpy() for name, slot in self._own_slots().items()}

    def exchange(self, other: Slots | None) -> Slots | None:
        """Gives away the memory of its optimiser state, for other one; without that, new is made when it is needed."""
        mine, self._slots = self._slots, other
        return mine

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps; from an owner's first on, the state lies in this replica's memory."""
        if optimizer.state or not self._own_slots():
            optimizer.step()
        elif self.base.job.optimizer.name == "adam":
            self._begin_adam(optimizer)
            optimizer.step()
        else:
            self._first_momentum(optimizer)

    def _begin_adam(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives Adam the state that it would make for its first step."""
        slots = self._own_slots()
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                zeros = {extra: slots[f"{name}@{extra}"].zero_() for extra in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}

    def _first_momentum(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps parameter by parameter: SGD's momentum begins as a copy, and only one is to be elsewhere at a time.

        That copy takes the place of the gradient, which moves to where the momentum is to be.
        """
        slots, group = self._own_slots(), optimizer.param_groups[0]
        everything = group["params"]
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                slot = slots[f"{name}@momentum_buffer"]
                parameter.grad = slot.copy_(parameter.grad)
                group["params"] = [parameter]
                optimizer.step()
                state = optimizer.state[parameter]
                state["momentum_buffer"] = slot.copy_(state["momentum_buffer"])
        group["params"] = everything

    def _slot(self, name: str, extra: str) -> torch.Tensor | None:
        """Gives the memory for an optimiser's tensor of a parameter, None where it has none of its own."""
        return None if self._slots is None else self._slots.get(f"{name}@{extra}")

    def _own_slots(self) -> Slots:
        """Gives that memory, made at first; none where the state lies beside the weights, or there is no state."""
        settings = self.base.job.optimizer
        if settings.state == "average" or (settings.name == "sgd" and not settings.momentum):
            return {}
        if self._slots is None:
            extras = [extra for extra, alike in KEPT[settings.name].items() if alike]
            wanted = [(f"{name}@{extra}", parameter) for name, parameter in self._parameters for extra in extras]
            sizes = [
                -(-parameter.numel() * parameter.element_size() // ALIGNMENT) * ALIGNMENT for _, parameter in wanted
            ]
            memory, start, self._slots = aligned(sum(sizes)), 0, {}
            for (name, parameter), size in zip(wanted, sizes, strict=True):
                flat = torch.from_numpy(memory[start : start + size]).view(parameter.dtype)
                self._slots[name] = flat[: parameter.numel()].view(parameter.shape)
                start += size
        return self._slots

    def arrays(self) -> Tensors:
        """Gives all that makes it differ from one that begins a round, by name; no copies."""
        found: Tensors = {
            f"weights {name}": view.numpy()
            for name, view in self._views.items()
            if not (self._shares and name in self._trained)
        }
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                found[f"gradient {name}"] = parameter.grad.numpy()
            state = {} if self._optimizer is None else self._optimizer.state.get(parameter, {})
            for extra, value in state.items():
                if isinstance(value, torch.Tensor) and f"{name}@{extra}" not in self._views:
                    found[f"optimizer {name}@{extra}"] = value.detach().numpy()
        for number, saved in enumerate(self._saved.values()):
            found[f"input {number}"] = saved.leaf.detach().numpy()
            for index, buffer in enumerate(saved.before or ()):
                found[f"buffer {number} {index}"] = buffer.numpy()
        return found

    def absent(self) -> Absent:
        """Gives what is to be remembered of it; masks let go of its activations."""
        for saved in self._saved.values():
            if saved.output_mask is not None:
                saved.output_mask.settle()
        return Absent(
            {name: (array.dtype, array.shape) for name, array in self.arrays().items()},
            self._shares,
            self._awaited is not None,
            tuple(
                Unfinished(at, saved.shape, saved.output_mask, saved.leaf_mask is not None)
                for at, saved in self._saved.items()
            ),
        )

    def room_for(self, absent: Absent) -> Tensors:
        """Gives the arrays that an absent replica's are to be read into: for weights this one's own."""
        if not absent.shares:
            self.own()
        self._own_slots()
        arrays: Tensors = {}
        for key, (dtype, shape) in absent.forms.items():
            kind, name = key.split(" ", 1)
            slot = self._slot(*name.split("@")) if kind == "optimizer" else None
            if kind == "weights":
                arrays[key] = self._views[name].numpy()
            elif slot is not None:
                arrays[key] = slot.numpy()
            else:
                arrays[key] = aligned(dtype.itemsize * math.prod(shape)).view(dtype).reshape(shape)
        return arrays

    def come_back(self, absent: Absent, arrays: Tensors) -> None:
        """Becomes the absent replica again, now that its arrays have been read."""
        parameters = dict(self._parameters)
        for key, array in arrays.items():
            kind, name = key.split(" ", 1)
            if kind == "gradient":
                parameters[name].grad = torch.from_numpy(array)
            elif kind == "optimizer" and self._optimizer is not None:
                of, extra = name.split("@")
                slot = self._slot(of, extra)
                self._optimizer.state[parameters[of]][extra] = torch.from_numpy(array) if slot is None else slot
        after = self._buffers()
        for number, each in enumerate(absent.unfinished):
            before = [torch.from_numpy(arrays[f"buffer {number} {index}"]) for index in range(len(after))]
            self._put(before)
            self.forward(torch.from_numpy(arrays[f"input {number}"]), each.at, relu=each.relu)
            self._saved[each.at] = self._saved[each.at]._replace(output_mask=each.mask)
        self._put(after)
