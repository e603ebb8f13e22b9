"""A model's blocks: summary without memory, and the blocks of one part with their weights.

Each block is constructed under a seed of its own, so every role gets the same weights for a block no matter which
other blocks it constructs. A block of the zoo that is not wanted is constructed on the meta device: it costs no memory.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor, nn

from zmpsl.errors import JobError, JoinError
from zmpsl.job.schema import Model
from zmpsl.models import ZOO, ModelError, build
from zmpsl.plan import Activation, Block, Entry, Plan, fingerprint
from zmpsl.randomness import key

__all__ = ["build_blocks", "check_model", "keyed_generator", "summarise", "trace"]

log = logging.getLogger("zmpsl")

# torch has one default generator per process; replicas of several nodes in one process take turns.
_GENERATOR = threading.Lock()


@contextmanager
def keyed_generator() -> Iterator[torch.Generator]:
    """Lends torch's default generator, to be seeded at will; afterwards it is as it was."""
    with _GENERATOR:
        generator = torch.default_generator
        before = generator.get_state()
        try:
            yield generator
        finally:
            generator.set_state(before)


def build_blocks(model: Model, seed: int, wanted: Container[int] | None) -> Iterator[tuple[int, nn.Module]]:
    """Constructs the model's blocks one after the other.

    Args:
        model: Name and arguments.
        seed: The job's seed.
        wanted: Which blocks to construct with weights; None for none, when only shapes matter.

    Yields:
        Index and block. Blocks of the zoo outside `wanted` are on the meta device.

    Raises:
        JobError: The model is not known, or does not give a list of modules.
    """
    with keyed_generator() as generator:
        try:
            # A user's function that returns a list constructs everything in this call.
            generator.manual_seed(key(seed, "init", 0))
            blocks = build(model.name, **model.args)
            for index in count():
                generator.manual_seed(key(seed, "init", index))
                on_meta = model.name in ZOO and (wanted is None or index not in wanted)
                with torch.device("meta" if on_meta else "cpu"):
                    block = next(blocks, None)
                if block is None:
                    return
                yield index, block
        except ModelError as error:
            raise JobError(f"model: {error}") from error


def summarise(model: Model) -> tuple[Block, ...]:
    """Gives the block list of a model: class names and states, in order.

    Raises:
        JobError: The model is not known or has too few blocks.
    """
    summary = []
    for _, block in build_blocks(model, 0, None):
        trained = {name for name, _ in block.named_parameters(remove_duplicate=False)}
        state = block.state_dict(keep_vars=True)
        entries = tuple(
            Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), name in trained)
            for name, tensor in state.items()
        )
        summary.append(Block(type(block).__name__, entries))
    if len(summary) < 3:
        raise JobError(
            f"model {model.name} has {len(summary)} blocks; a chain needs at least 3 (first part, one compute node,"
            " last part)"
        )
    return tuple(summary)


def trace(model: Model, inputs: Tensor) -> tuple[Activation, ...]:
    """Finds out what each block puts out for one sample, without memory for the weights of the zoo's models.

    Args:
        model: Name and arguments.
        inputs: Two samples as the model takes them.

    Returns:
        One per block; empty where a block cannot be run here, or its output does not begin with the samples.
    """
    found = []
    try:
        values = inputs.to("meta") if model.name in ZOO else inputs
        with torch.no_grad():
            for _, block in build_blocks(model, 0, None):
                values = block.eval()(values)
                if values.shape[0] != len(inputs):
                    return ()
                found.append(Activation(str(values.dtype).removeprefix("torch."), tuple(values.shape[1:])))
    except Exception as error:  # somebody's own model; its training will tell better what is wrong with it
        log.info("no forms of activations known for model %s: %s", model.name, error)
        return ()
    return tuple(found)


def check_model(plan: Plan, place: str) -> None:
    """Refuses a plan that was made for another model than our import gives.

    Raises:
        JoinError: The fingerprints differ.
    """
    model, theirs, ours = plan.job.model, plan.blocks, summarise(plan.job.model)
    if fingerprint(ours) == fingerprint(theirs):
        return
    shorter = min(len(ours), len(theirs))
    where = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    raise JoinError(
        f"{place} on {socket.gethostname()}: model {model.name} has fingerprint {fingerprint(ours)} with {len(ours)} "
        f"blocks here, the plan says {fingerprint(theirs)} with {len(theirs)}; they differ from block {where} on. "
        "Install the same version of the model's code on all hosts"
    )
