"""Secure averaging of the owners' parts: pairwise masks that cancel in the sum. Only owners need `cryptography`.

Bonawitz et al., Practical Secure Aggregation (CCS 2017), section 4, without its secret sharing: owner k hands in

    y_k = n_k * round(w_k * 2**28) + sum over j > k of m_kj - sum over j < k of m_jk      (modulo 2**64)

where m_kj is a stream that k and j alone can make. The sum over all owners is that of the first terms, exactly, and
without one owner's y the rest are as good as random. The average is thus

    float32( float64( sum of n_k * round(w_k * 2**28) ) / sum of n_k * 2**-28 )

Of integer tensors, the lowest-numbered owner adds its own to the sum and the others add 0: its own stand, as without
masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from zmpsl.errors import JobError, RemoteProtocolError, TrainingError
from zmpsl.plan import Plan, owner_name
from zmpsl.state import FLOATS, Flat, Layout, Segment, ends_layout

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

__all__ = ["MOST_SAMPLES", "MaskedAverage", "Masker", "masked_bytes"]

FRACTION = 2.0**28  # steps per 1: weights are rounded to 3.7e-9
LARGEST = 1024.0  # no weight may be larger
MOST_SAMPLES = 1 << 24  # of all owners in a round; 28 + 10 + 24 bits and a sign fit into 64
STEP = 1 << 15  # so that the arrays of one step stay in the cache


def elements(segment: Segment) -> int:
    """Gives the number of elements of a tensor."""
    return segment.nbytes // np.dtype(segment.dtype).itemsize


def masked_bytes(layout: Layout) -> int:
    """Gives the bytes an owner hands in: 8 for each element."""
    return 8 * sum(elements(segment) for segment in layout.segments)


class Masker:
    """One owner's keys and masks under one plan; a new plan needs a new one, so no mask is ever used twice.

    Args:
        plan: The plan.
        owner: Index of the owner.

    Attributes:
        public: What the other owners must know, 32 bytes.

    Raises:
        JobError: The package `cryptography` is not installed.
    """

    def __init__(self, plan: Plan, owner: int) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        except ImportError as error:
            raise JobError(
                f"{owner_name(owner)}: privacy.secure_average needs the package cryptography ({error}): "
                "pip install 'zmpsl[secure]'"
            ) from error
        self._owner, self._owners = owner, plan.active
        self._named = [plan.run, plan.version]
        self._layout = ends_layout(plan.blocks, plan.bounds, plan.job.optimizer)
        self._pair: X25519PrivateKey = X25519PrivateKey.generate()
        self.public = self._pair.public_key().public_bytes_raw()
        self._secrets: dict[int, tuple[bytes, list[bytes]]] = {}
        self._round = -1

    def agree(self, keys: Mapping[str, bytes]) -> None:
        """Takes the public keys of all owners that take part, by place; only the first time counts.

        Raises:
            RemoteProtocolError: They are not those of exactly the plan's owners, at least 3, or not ours among them.
        """
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

        mine = owner_name(self._owner)
        if self._secrets:
            return
        if len(self._owners) < 3 or set(keys) != set(map(owner_name, self._owners)) or keys[mine] != self.public:
            raise RemoteProtocolError(
                f"{mine} got mask keys of {', '.join(sorted(keys)) or 'nobody'}: they must be those of the plan's"
                f" {len(self._owners)} owners, 3 or more, with {mine}'s own as it is"
            )
        secrets: dict[int, tuple[bytes, list[bytes]]] = {}
        for other in self._owners:
            if other != self._owner:
                theirs = keys[owner_name(other)]
                pair = [self.public, theirs] if self._owner < other else [theirs, self.public]
                try:
                    secrets[other] = self._pair.exchange(X25519PublicKey.from_public_bytes(theirs)), pair
                except ValueError as error:
                    raise RemoteProtocolError(f"the mask key of {owner_name(other)} is none: {error}") from error
        self._secrets = secrets

    def mask(self, flat: Flat, weight: int, round_: int) -> Flat:
        """Gives an owner's state as it may be handed in, once for each round.

        Args:
            flat: The state of the first and last part.
            weight: Samples processed.
            round_: The round.

        Raises:
            TrainingError: A weight is not finite or too large, there are too many samples or no keys yet, or something
                was handed in for this round.
        """
        if not self._secrets or round_ <= self._round:
            what = "has handed in already" if self._secrets else "has no keys of the other owners yet"
            raise TrainingError(f"{owner_name(self._owner)} {what}, in round {round_}; it hands in nothing")
        self._round = round_
        if weight > MOST_SAMPLES // len(self._owners):
            raise TrainingError(
                f"{owner_name(self._owner)} has processed {weight} samples in a round; with privacy.secure_average and"
                f" {len(self._owners)} owners it may be {MOST_SAMPLES // len(self._owners)}: use fewer local epochs"
            )
        masked = self._fixed(flat, weight)
        for other in self._secrets:
            self._add_stream(masked, other, round_)
        return masked.view(np.uint8)

    def _fixed(self, flat: Flat, weight: int) -> NDArray[np.uint64]:
        """Gives weight * state in fixed point."""
        fixed = np.zeros(masked_bytes(self._layout) // 8, "<u8")
        start = 0
        for segment in self._layout.segments:
            values = flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype)
            here = fixed[start : start + values.size].view("<i8")
            start += values.size
            if segment.dtype not in FLOATS:
                if self._owner == self._owners[0]:
                    here[:] = values
                continue
            largest = float(np.abs(values).max(initial=0))
            if not largest <= LARGEST:
                raise TrainingError(
                    f"{owner_name(self._owner)}: {segment.name} has a value of {largest:g}; privacy.secure_average"
                    f" takes up to {LARGEST:g}. If training has diverged, try a lower optimizer.lr.initial"
                )
            for low in range(0, values.size, STEP):
                here[low : low + STEP] = np.rint(values[low : low + STEP].astype(np.float64) * FRACTION)
            here *= weight
        return fixed

    def _add_stream(self, masked: NDArray[np.uint64], other: int, round_: int) -> None:
        """Adds the mask shared with one other owner; the higher-numbered of the two takes it off."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        secret, publics = self._secrets[other]
        info = msgspec.msgpack.encode(["zmpsl mask", *self._named, round_, *publics])
        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)
        stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()  # a key is used once
        zeros = memoryview(bytes(8 * STEP))
        combine = np.add if self._owner < other else np.subtract
        for start in range(0, masked.size, STEP):
            piece = masked[start : start + STEP]
            combine(piece, np.frombuffer(stream.update(zeros[: piece.nbytes]), "<u8"), out=piece)


class MaskedAverage:
    """The mean of masked states; each alone says nothing, and the order of `add` changes nothing.

    Args:
        layout: Of the states.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sum = np.zeros(masked_bytes(layout) // 8, "<u8")
        self.weight = 0

    def reset(self) -> None:
        """Starts anew."""
        self._sum.fill(0)
        self.weight = 0

    def add(self, owner: int, flat: Flat, weight: int) -> None:
        """Adds what one owner handed in.

        Args:
            owner: Whose; it plays no part.
            flat: The masked state, `masked_bytes` of it.
            weight: Samples processed.
        """
        self._sum += flat.view("<u8")
        self.weight += weight

    def write_to(self, flat: Flat) -> None:
        """Writes the mean into a state, once all owners have handed in.

        Raises:
            TrainingError: The masks have not cancelled.
        """
        start = 0
        for segment in self._layout.segments:
            sums = self._sum[start : start + elements(segment)].view("<i8")
            start += sums.size
            values = flat[segment.offset : segment.offset + segment.nbytes].view(segment.dtype)
            if segment.dtype not in FLOATS:
                values[:] = sums.astype(segment.dtype)
                continue
            for low in range(0, sums.size, STEP):
                mean = sums[low : low + STEP].astype(np.float64) / self.weight / FRACTION
                if not np.abs(mean).max(initial=0) <= LARGEST:
                    raise TrainingError(
                        f"the average of {segment.name} is out of range: the masks of the owners' parts do not cancel,"
                        " so some owner did not hand in what it should"
                    )
                values[low : low + STEP] = mean
