"""What would cross a cut of a model: its activation and the gradient there, for one batch. For `zmpsl bench codec`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from zmpsl.engine.build import build_blocks
from zmpsl.engine.owner import loss_of
from zmpsl.engine.relu import mask_of_output
from zmpsl.errors import JobError
from zmpsl.job.schema import Model
from zmpsl.models import ModelError, input_spec
from zmpsl.randomness import generator

__all__ = ["cut_tensors"]

F32 = NDArray[np.float32]


def cut_tensors(model: Model, cut: int, batch: int, seed: int) -> tuple[F32, F32, bool]:
    """Runs one batch of made-up inputs and labels through a model of the zoo with fresh weights.

    Args:
        model: Name and arguments.
        cut: Index of the first block behind the cut.
        batch: Samples.
        seed: Of weights, inputs and labels.

    Returns:
        Activation and gradient, both `(batch, ...)` float32, and whether the activation is a ReLU's output.

    Raises:
        JobError: There is no such model or cut.
    """
    try:
        shape, dtype = input_spec(model.name, **model.args)
    except ModelError as error:
        raise JobError(f"model: {error}") from error
    blocks = [block.train() for _, block in build_blocks(model, seed, range(1 << 30))]
    if not 0 < cut < len(blocks):
        raise JobError(f"model {model.name} has {len(blocks)} blocks, so a cut lies from 1 to {len(blocks) - 1}: {cut}")
    random, whole = generator(seed, "synthetic"), (batch, *shape)
    made_up = random.standard_normal(whole, np.float32) if dtype == "float32" else random.integers(0, 2, whole)
    output = torch.from_numpy(made_up)
    for block in blocks[:cut]:
        output = block(output)
    # A copy of the node's own for the other side, as it would arrive there.
    received = output.detach().clone().requires_grad_()
    outputs = received
    for block in blocks[cut:]:
        outputs = block(outputs)
    labels = torch.from_numpy(random.integers(0, outputs.shape[-1], tuple(outputs.shape[:-1])))
    loss_of(outputs, labels).backward()  # type: ignore[no-untyped-call]
    if received.grad is None or output.dtype != torch.float32:
        raise JobError(f"model {model.name}: no float32 gradient crosses the cut before block {cut}")
    activation: F32 = received.detach().contiguous().numpy()
    gradient: F32 = received.grad.contiguous().numpy()
    return activation, gradient, mask_of_output(output) is not None
