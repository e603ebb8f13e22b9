"""How much memory a micro-batch takes in each block, found on the meta device: shapes without numbers, no memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from zmpsl.engine.build import build_blocks
from zmpsl.job.schema import Model
from zmpsl.plan import Footprint

__all__ = ["model_footprints", "probe"]


def probe(blocks: Iterable[nn.Module], shape: Sequence[int], dtype: torch.dtype) -> tuple[Footprint, ...]:
    """Runs blocks forward on the meta device, in training mode, and counts what they save for backward.

    Args:
        blocks: One after the other; they are not changed.
        shape: Of the first block's input, micro-batch included.
        dtype: Of the same.

    Returns:
        One footprint per block; none at all where a block cannot run without numbers, as some users' cannot.
    """
    prints = []
    here = torch.empty(tuple(shape), dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)
    try:
        for block in blocks:
            shadow = _shadow(block)
            unwritten = _writes(shadow)
            known = {_storage(tensor) for tensor in [*shadow.parameters(), *shadow.buffers()]}
            saved: dict[int, Tensor] = {}

            def keep(tensor: Tensor, known: set[int] = known, saved: dict[int, Tensor] = saved) -> Tensor:
                if _storage(tensor) not in known:
                    saved[_storage(tensor)] = tensor
                return tensor

            with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                warnings.simplefilter("ignore")
                there = shadow(here)
            total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
            prints.append(Footprint(_nbytes(here), _nbytes(there), total, _writes(shadow) != unwritten))
            here = there.detach().requires_grad_(there.dtype.is_floating_point)
    except Exception:  # whatever a user's block raises; then memory is reckoned without activations
        return ()
    return tuple(prints)


def model_footprints(model: Model, shape: Sequence[int], dtype: torch.dtype) -> tuple[Footprint, ...]:
    """Gives the footprints of all blocks of a model, for one micro-batch of inputs; empty where they cannot be told."""
    return probe((block for _, block in build_blocks(model, 0, None)), shape, dtype)


def _shadow(block: nn.Module) -> nn.Module:
    """Copies a block to the meta device without copying its weights."""
    memo: dict[int, object] = {}
    for tensor in [*block.parameters(), *block.buffers()]:
        like = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
    return copy.deepcopy(block, memo).to("meta").train()


def _writes(block: nn.Module) -> int:
    return sum(parameter._version for parameter in block.parameters())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
