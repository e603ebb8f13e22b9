"""Which data owner owns which training samples: iid, dirichlet, shards, sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import DataError
from zmpsl.job.schema import Partition
from zmpsl.randomness import generator

__all__ = ["partition"]

Indices = NDArray[np.int64]

_TRIES = 1000


def partition(targets: NDArray[np.integer[Any]], owners: int, spec: Partition, seed: int) -> list[Indices]:
    """Deals all samples out to the owners, each sample to exactly one of them.

    Everybody who holds the same targets gets the same answer: the only source of randomness is the generator keyed
    `(seed, "partition")`.

    Args:
        targets: Labels of all training samples, `(N,)`; or the tokens of a text, `(N, T)`, for `iid` and `sizes`.
        owners: Number of owners, K.
        spec: The job's section `data.partition`.
        seed: The job's seed.

    Returns:
        K sorted index arrays of at least one sample each.

    Raises:
        DataError: There are too few samples for what was asked, or the kind does not suit the targets.

    Source: shards: McMahan et al., AISTATS 2017, section 3; dirichlet: Hsu, Qi and Brown, arXiv:1909.06335, in the
        form of Yurochkin et al., ICML 2019 (per class, proportions over the owners).
    """
    if owners > len(targets):
        raise DataError(f"{owners} owners cannot share {len(targets)} samples: take fewer owners or more data")
    if targets.ndim != 1 and spec.kind in ("dirichlet", "shards"):
        raise DataError(
            f"data.partition kind {spec.kind!r} needs one label per sample, but the targets are {targets.shape}: "
            "take 'iid' or 'sizes'"
        )
    rng = generator(seed, "partition")
    if spec.kind == "own":
        raise DataError("data.partition kind 'own' deals nothing out: each owner has all samples of its own folder")
    if spec.kind == "iid":
        parts = np.array_split(rng.permutation(len(targets)), owners)
    elif spec.kind == "sizes":
        parts = _by_sizes(len(targets), owners, spec.sizes, rng)
    elif spec.kind == "shards":
        parts = _by_shards(targets, owners, spec.shards_per_owner, rng)
    else:
        parts = _by_dirichlet(targets, owners, spec.alpha, spec.min_samples, rng)
    return [np.sort(part).astype(np.int64, copy=False) for part in parts]


def _by_sizes(count: int, owners: int, sizes: list[float] | None, rng: np.random.Generator) -> list[Indices]:
    """Cuts a random order into consecutive pieces, rounded so that they add up (largest remainders get one more)."""
    if sizes is None or len(sizes) != owners:
        given = "none" if sizes is None else len(sizes)
        raise DataError(f"data.partition sizes must be {owners} numbers, one per owner, but there are {given}")
    if not all(0 < size < math.inf for size in sizes):
        raise DataError(f"data.partition sizes must be finite numbers above 0, not {sizes}")
    largest = max(sizes)
    weights = [size / largest for size in sizes]  # so that no sum overflows
    total = math.fsum(weights)
    exact = [weight / total * count for weight in weights]
    counts = [math.floor(size) for size in exact]
    by_remainder = sorted(range(owners), key=lambda owner: counts[owner] - exact[owner])  # stable: ties to the first
    for owner in by_remainder[: count - sum(counts)]:
        counts[owner] += 1
    if min(counts) == 0:
        owner = counts.index(0)
        raise DataError(
            f"data.partition sizes give owner {owner} none of {count} samples: its size {sizes[owner]} is "
            f"too small beside the largest, {largest}"
        )
    return np.split(rng.permutation(count), np.cumsum(counts)[:-1])


def _by_shards(
    targets: NDArray[np.integer[Any]], owners: int, per_owner: int, rng: np.random.Generator
) -> list[Indices]:
    """Sorts by label, cuts into equal pieces and gives each owner some of them at random: few labels per owner."""
    shards = owners * per_owner
    if shards > len(targets):
        raise DataError(
            f"data.partition shards: {owners} owners x {per_owner} shards_per_owner = {shards} shards cannot be cut "
            f"from {len(targets)} samples: take fewer"
        )
    pieces = np.array_split(np.argsort(targets, kind="stable"), shards)
    order = rng.permutation(shards).reshape(owners, per_owner)
    return [np.concatenate([pieces[shard] for shard in row]) for row in order]


def _by_dirichlet(
    targets: NDArray[np.integer[Any]], owners: int, alpha: float, min_samples: int, rng: np.random.Generator
) -> list[Indices]:
    """Draws, for each class, the owners' shares of it from Dir(alpha); again until no owner has too few samples."""
    if owners * min_samples > len(targets):
        raise DataError(
            f"data.partition dirichlet: {owners} owners x min_samples {min_samples} = {owners * min_samples} samples, "
            f"but there are {len(targets)}"
        )
    labels, class_sizes = np.unique(targets, return_counts=True)
    most = 0
    for _ in range(_TRIES):
        shares = rng.dirichlet(np.full(owners, alpha), size=len(labels))  # (classes, K)
        if not np.isfinite(shares).all():  # alpha is so small or so large that gamma variates over- or underflow
            continue
        ends = np.floor(np.cumsum(shares, axis=1) * class_sizes[:, np.newaxis]).astype(np.int64)
        ends = np.minimum(ends, class_sizes[:, np.newaxis])
        ends[:, -1] = class_sizes
        smallest = int(np.diff(ends, axis=1, prepend=0).sum(axis=0).min())
        if smallest >= min_samples:
            return _cut_classes(targets, labels, ends, rng)
        most = max(most, smallest)
    raise DataError(
        f"data.partition dirichlet: in each of {_TRIES} draws with alpha {alpha}, some of {owners} owners had at most "
        f"{most} of {len(targets)} samples, but min_samples is {min_samples}: take a larger alpha, fewer owners or a "
        "smaller min_samples"
    )


def _cut_classes(
    targets: NDArray[np.integer[Any]], labels: NDArray[Any], ends: Indices, rng: np.random.Generator
) -> list[Indices]:
    """Shuffles each class and cuts it where the owners' shares end; `ends` has the shape (classes, K)."""
    pieces: list[list[Indices]] = [[] for _ in range(ends.shape[1])]
    for label, cuts in zip(labels, ends, strict=True):
        samples = rng.permutation(np.flatnonzero(targets == label))
        for owner, piece in enumerate(np.split(samples, cuts[:-1])):
            pieces[owner].append(piece)
    return [np.concatenate(mine) for mine in pieces]
