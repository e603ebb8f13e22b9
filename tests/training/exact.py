"""Jobs whose result must be the reference's, bit for bit; and the reference's, computed once for each."""

from __future__ import annotations

from functools import cache

import msgspec
from helpers import job
from reference import Reference, train

from zmpsl.job import Job

__all__ = ["BASE", "DIGITS", "MODELS", "reference", "settings"]

BASE = ["train.rounds=2", "train.local_epochs=2", "train.batch_size=16"]
DIGITS = ["data.name=digits", "data.args.limit=110", "data.args.test_limit=40"]
# At least two blocks more than four hops need; batch norm, dropout and attention among them.
MODELS = {
    "mlp": [
        "model.name=mlp",
        "model.args.features=64",
        "model.args.hidden=[24, 24, 24, 24, 24, 24]",
        "data.name=flat_digits:split",
    ],
    "dropout": ["model.name=digits_cnn", "model.args.dropout=0.3", *DIGITS],
    "batch-norm": ["model.name=small_nets:batch_norm_net", *DIGITS],
    "transformer": [
        "model.name=gpt_tiny",
        "model.args.width=16",
        "model.args.heads=2",
        "model.args.context=12",
        "model.args.vocab=30",
        "data.name=small_nets:letters",
        "optimizer.name=adam",
        "optimizer.lr.initial=0.003",
    ],
}


def settings(model: str, hops: int, owners: int, micro: int, *more: str) -> Job:
    sizes = (
        []
        if owners == 1
        else ["data.partition.kind=sizes", f"data.partition.sizes={[1 + 0.7 * k for k in range(owners)]}"]
    )
    return job(
        *BASE,
        *MODELS[model],
        *sizes,
        f"compute_nodes={hops}",
        f"owners={owners}",
        f"train.micro_batches={micro}",
        *more,
    )


@cache
def _reference(text: bytes) -> Reference:
    return train(msgspec.json.decode(text, type=Job))


def reference(job: Job) -> Reference:
    """Cut points and links do not matter to the reference, so hops share one."""
    return _reference(
        msgspec.json.encode(
            msgspec.structs.replace(job, compute_nodes=None, cuts="even", codec=Job().codec, network=Job().network)
        )
    )
