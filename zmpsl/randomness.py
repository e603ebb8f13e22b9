"""All randomness of a run, keyed by what it is for and never by process state or schedule.

A key is the first 63 bits of BLAKE2b over plain ASCII text, for instance

    key(7, "shuffle", 2, 0, 1) = blake2b(b"7/shuffle/2/0/1", digest_size=8) >> 1

so that anyone can recompute it, in any language, on any host. The uses:

    purpose    numbers                                         seeds
    init       block                                           the weights of one block
    partition  none, or owner                                   who owns which samples; what an owner holds back
    synthetic                                                  made-up data for benches
    shuffle    owner, round, local epoch                       the order of an owner's samples
    augment    owner, round, local epoch, batch                crops and flips of a batch
    noise      owner, round, local epoch, batch, micro         noise on smashed data, with an owner's secret
    test_noise owner, round, batch                              the same in evaluation
    forward    owner, round, local epoch, batch, micro, block  dropout and any other noise inside a block
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

__all__ = ["generator", "key"]


def key(seed: int, purpose: str, *numbers: int) -> int:
    """Gives the 63-bit seed for one use of randomness.

    Args:
        seed: The job's seed.
        purpose: One of the purposes in the table above.
        numbers: What the table lists for that purpose.

    Returns:
        An integer in [0, 2**63).
    """
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(blake2b(text.encode("ascii"), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Gives a NumPy generator (PCG64) seeded with `key` of the same arguments."""
    return np.random.Generator(np.random.PCG64(key(seed, purpose, *numbers)))
