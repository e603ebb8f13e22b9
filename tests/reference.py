"""The oracle: multihop parallel split learning with nothing split, in one plain PyTorch process.

Parts M_1 ... M_P, computed one after the other by an owner and the compute nodes, compose to the whole model. So what
MP-SL (arXiv 2402.00208) trains is, for K data owners with r local epochs each, no more than this:

    w = initial weights
    for each round:
        for each owner k:    w_k = w;  r times, for every batch of owner k:  w_k = optimizer step on the mean loss
        w = sum of n_k * w_k / sum of n_k        (FedAvg, n_k = samples that owner k processed in the round)

A run must give these weights to the last bit. Hence this file shares no code with what runs: only the model zoo, the
data sets with their partition, and the job's values are zmpsl's own. Both sides need the same number of torch threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from zmpsl import models
from zmpsl.data import Samples, Split, load, partition
from zmpsl.job import Data, Job

__all__ = ["Reference", "State", "key", "train", "weighted_mean"]

State = dict[str, NDArray[Any]]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """After each round: the whole model's state, keys `block.name`; test accuracy; mean training loss per sample."""

    states: list[State] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Owner:
    """The samples of data owner `number`: `train[train_indices]` and `test[test_indices]`."""

    number: int
    train: Samples
    train_indices: Indices
    test: Samples
    test_indices: Indices


def train(
    job: Job, data_dir: Path | None = None, absent: Sequence[int] = (), active: Sequence[Sequence[int]] = ()
) -> Reference:
    """Trains as the job says; cuts, compute nodes and the network play no part. Torch's random state is left as it was.

    Args:
        job: The job.
        data_dir: Folder of the data set, instead of the job's `data.dir`.
        absent: Owners that are left out of every round.
        active: By round, the owners that take part; all who are not absent where not given.
    """
    data = {name: getattr(job.data, name) for name in job.data.__struct_fields__}
    if data_dir is not None:
        data["dir"] = str(data_dir)
    owners = [owner for owner in deal(job, load(Data(**data), job.seed)) if owner.number not in absent]
    result = Reference()
    with torch.random.fork_rng(devices=[]):
        model = initial_model(job)
        memory = initial_memory(job, model)
        own: dict[int, State] = {}  # by owner, where each keeps its own
        for round_ in range(job.train.rounds):
            here = [owner for owner in owners if not active or owner.number in active[round_]]
            trained = [train_owner(job, model, own.get(owner.number, memory), owner, round_) for owner in here]
            states, memories, samples, losses = zip(*trained, strict=True)
            state = weighted_mean(states, samples)
            if job.optimizer.state == "keep":
                own |= {owner.number: after for owner, after in zip(here, memories, strict=True)}
            else:
                memory = weighted_mean(memories, samples)
            model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})  # copies
            result.states.append(state)
            result.accuracies.append(accuracy(model, owners, job.evaluate.batch_size))
            result.losses.append(sum(losses) / sum(samples))
    return result


def key(seed: int, purpose: str, *numbers: int) -> int:
    """63 bits that seed one use of randomness."""
    text = "/".join(str(each) for each in (seed, purpose, *numbers))
    return int.from_bytes(blake2b(text.encode("ascii"), digest_size=8).digest(), "big") >> 1


def drawn(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The NumPy generator of one use of randomness."""
    return np.random.Generator(np.random.PCG64(key(seed, purpose, *numbers)))


def seed_torch(seed: int, purpose: str, *numbers: int) -> None:
    """Starts torch's one generator anew for one use of randomness."""
    torch.default_generator.manual_seed(key(seed, purpose, *numbers))


def deal(job: Job, split: Split) -> list[Owner]:
    """Training samples by the job's partition. Test samples: every K-th of the data set's, or a share held back."""
    owners = []
    for k, mine in enumerate(partition(split.train.targets, job.owners, job.data.partition, job.seed)):
        if job.evaluate.data == "shared":
            owners.append(Owner(k, split.train, mine, split.test, np.arange(k, len(split.test), job.owners)))
            continue
        held = min(max(1, round(job.evaluate.share * len(mine))), len(mine) - 1)
        order = drawn(job.seed, "partition", k).permutation(len(mine))
        owners.append(Owner(k, split.train, np.sort(mine[order[held:]]), split.train, np.sort(mine[order[:held]])))
    return owners


def initial_model(job: Job) -> nn.Sequential:
    """All blocks, each constructed under its own seed; a function that makes them all at once uses that of block 0."""
    seed_torch(job.seed, "init", 0)
    blocks = models.build(job.model.name, **job.model.args)
    model = nn.Sequential()
    while True:
        seed_torch(job.seed, "init", len(model))
        block = next(blocks, None)
        if block is None:
            return model
        model.append(block)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that the optimiser steps; their order numbers the optimiser's memory."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def initial_memory(job: Job, model: nn.Module) -> State:
    """The optimiser's state before round 0, keys `parameter.name`: zeros; empty where the optimiser begins as new."""
    if job.optimizer.state != "average" or (job.optimizer.name == "sgd" and not job.optimizer.momentum):
        return {}
    memory: State = {}
    for i, parameter in enumerate(trained_parameters(model)):
        zeros = np.zeros(parameter.shape, np.float32)
        if job.optimizer.name == "adam":
            memory |= {f"{i}.step": np.zeros((), np.float32), f"{i}.exp_avg": zeros, f"{i}.exp_avg_sq": zeros}
        else:
            memory |= {f"{i}.momentum_buffer": zeros}
    return memory


def learning_rate(job: Job, round_: int) -> float:
    """The learning rate of a round, counted from 0."""
    lr = job.optimizer.lr
    if lr.schedule == "step":
        return float(lr.initial * lr.gamma ** (round_ // lr.step_rounds))
    if lr.schedule == "exponential":
        return float(lr.initial * lr.gamma**round_)
    if lr.schedule == "cosine":
        return float(lr.initial * 0.5 * (1 + np.cos(np.pi * round_ / job.train.rounds)))
    return lr.initial


def new_optimizer(job: Job, parameters: list[nn.Parameter], memory: State, round_: int) -> torch.optim.Optimizer:
    """One optimiser over the whole model, which goes on from `memory`."""
    of, lr = job.optimizer, learning_rate(job, round_)
    decay = of.weight_decay
    optimizer: torch.optim.Optimizer
    if of.name == "adam":
        optimizer = torch.optim.Adam(parameters, lr, betas=(of.beta1, of.beta2), eps=of.eps, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr, momentum=of.momentum, weight_decay=decay)
    for name, array in memory.items():
        number, _, what = name.partition(".")
        optimizer.state[parameters[int(number)]][what] = torch.tensor(array)
    return optimizer


def train_owner(
    job: Job, base: nn.Sequential, memory: State, owner: Owner, round_: int
) -> tuple[State, State, int, float]:
    """One owner's round, from the global model: gives its weights, its optimiser's memory, n_k and the summed loss."""
    model = copy.deepcopy(base).train()
    parameters = trained_parameters(model)
    optimizer = new_optimizer(job, parameters, memory, round_)
    samples, loss_sum = 0, 0.0
    for epoch in range(job.train.local_epochs):
        for batch, indices in enumerate(batches(job, owner, round_, epoch)):
            at = (owner.number, round_, epoch, batch)
            rng = None if job.data.augment == "none" else drawn(job.seed, "augment", *at)
            inputs, targets = map(torch.from_numpy, owner.train.batch(indices, rng))
            pieces = min(job.train.micro_batches, len(indices))
            for micro, (x, y) in enumerate(zip(inputs.tensor_split(pieces), targets.tensor_split(pieces), strict=True)):
                raw, extra = x, None
                for i, block in enumerate(model):
                    seed_torch(job.seed, "forward", *at, micro, i)
                    x = block(x)
                    if i == (job.first_cut or 1) - 1:
                        x, extra = guarded(job, raw, x, (*at, micro))
                loss = nn.functional.cross_entropy(x.reshape(-1, x.shape[-1]), y.reshape(-1))
                if len(y) < len(indices):
                    loss = loss * (len(y) / len(indices))
                (loss if extra is None else loss + extra * (len(y) / len(indices))).backward()
                loss_sum += float(loss.detach()) * len(indices)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            samples += len(indices)
    kept = {f"{i}.{what}": tensor for i, p in enumerate(parameters) for what, tensor in optimizer.state[p].items()}
    if job.optimizer.state != "keep":
        kept = {name: kept[name] for name in memory}
    return arrays(model.state_dict()), arrays(kept), samples, loss_sum


def guarded(
    job: Job, raw: torch.Tensor, h: torch.Tensor, at: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Smashed data as the job's privacy wants them: clipped per sample, likeness penalised, then noise on top."""
    of = job.privacy
    if of.clip_norm is not None:
        norms = torch.stack([sample.flatten().norm() for sample in h]).clamp(min=1e-12)
        h = h * (of.clip_norm / norms).clamp(max=1).reshape(-1, *[1] * (h.ndim - 1))
    extra = of.nopeek * likeness(raw, h) if of.nopeek and len(h) > 1 else None
    if of.clip_norm is not None and of.noise:
        generator = torch.Generator().manual_seed(key(job.seed, "noise", *at))
        h = h + of.noise * of.clip_norm * torch.randn(h.shape, generator=generator)
    return h, extra


def likeness(raw: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Squared distance correlation: dCov / sqrt(dVar dVar), each a mean over pairs of centred distances.

    Its gradient is a sum that autograd adds up in the order of these lines, so for equal bits the order counts: the
    distances by |u - v|^2 = u.u + v.v - 2 u.v, then dCov, then the variances.
    """
    tables = []
    for values in (raw.float().flatten(1), h.flatten(1)):
        own = (values * values).sum(1)
        apart = (own.unsqueeze(1) + own.unsqueeze(0) - 2 * values.matmul(values.t())).clamp(min=1e-12)
        table = apart.sqrt() * (1 - torch.eye(len(own)))
        tables.append(table - table.mean(0, keepdim=True) - table.mean(1, keepdim=True) + table.mean())
    a, b = tables
    return (a * b).mean() / ((a * a).mean() * (b * b).mean() + 1e-10).sqrt()


def batches(job: Job, owner: Owner, round_: int, epoch: int) -> list[Indices]:
    """The batches of one local epoch, as indices of the data set: a random order, cut into consecutive pieces."""
    size, count = job.train.batch_size, len(owner.train_indices)
    order = owner.train_indices[drawn(job.seed, "shuffle", owner.number, round_, epoch).permutation(count)]
    pieces = [order[start : start + size] for start in range(0, count, size)]
    if job.train.drop_last:
        pieces = [piece for piece in pieces if len(piece) == size]
    return pieces[: job.train.max_batches]


def arrays(state: dict[str, torch.Tensor]) -> State:
    """Copies of tensors, as arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in state.items()}


def weighted_mean(states: Sequence[State], weights: Sequence[int]) -> State:
    """FedAvg: per element of a float tensor, dtype(float64(exact sum of n_k * w_k) / sum of n_k); integers: owner 0's.

    A float32 (24 bits) times an integer below 2**29 is exact in float64, and fsum rounds once, whatever the order.
    """
    mean = {}
    for name, first in states[0].items():
        if first.dtype.kind == "f":
            values = np.stack([state[name].ravel() for state in states]).astype(np.float64)  # (owners, elements)
            terms = values * np.array(weights, np.float64)[:, np.newaxis]
            sums = np.fromiter(map(math.fsum, zip(*terms.tolist(), strict=True)), np.float64, count=first.size)
            mean[name] = (sums / sum(weights)).astype(first.dtype).reshape(first.shape)
        else:
            mean[name] = first.copy()
    return mean


def accuracy(model: nn.Module, owners: list[Owner], size: int) -> float:
    """Share of all owners' test targets that the global model gets right; nan where there are none."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for owner in owners:
            for start in range(0, len(owner.test_indices), size):
                inputs, targets = map(torch.from_numpy, owner.test.batch(owner.test_indices[start : start + size]))
                correct += int((model(inputs).argmax(-1) == targets).sum())
                total += targets.numel()
    return correct / total if total else math.nan
