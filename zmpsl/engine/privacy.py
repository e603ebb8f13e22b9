"""What a data owner does to its smashed data before they leave it: clipping, noise, and a term against likeness.

    h   what the first part puts out, of one micro-batch
    c   h with every sample's L2 norm at most C (clip_norm): c_i = h_i * min(1, C / |h_i|)
    s   what is sent: c + noise * C * z, z standard normal

The loss of the first part gets nopeek * dCor(x, c)^2 more: the squared distance correlation of raw inputs and c over
the samples of the micro-batch (NoPeek, arXiv 2008.09161, sec. 3; Székely et al. 2007). It counts b / B of a batch's
loss as the micro-batch's loss does. Gradients go through clipping; noise is a constant.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

from zmpsl.job.privacy import Privacy
from zmpsl.randomness import key

__all__ = ["Shaping", "distance_correlation"]

# Below this a squared distance counts as this: the root has no gradient at 0.
LEAST = 1e-12
# Added to the product of the variances: data that are all alike have no correlation.
TINY = 1e-10


class Shaping:
    """The shaping of one owner.

    Args:
        settings: The job's.
        seed: The job's.
        owner: Index of the owner.
        secret: 32 bytes that nobody else knows; noise follows from it, unless the job says otherwise.
    """

    def __init__(self, settings: Privacy, seed: int, owner: int, secret: bytes) -> None:
        self._settings = settings
        self._seed, self._owner = seed, owner
        self._secret = b"" if settings.reproducible else secret

    def train(self, inputs: Tensor, output: Tensor, at: tuple[int, ...], share: float) -> tuple[Tensor, Tensor | None]:
        """Shapes the output of the first part in training.

        Args:
            inputs: The samples, `(b, ...)`.
            output: What the first part puts out, `(b, ...)` float32.
            at: Round, local epoch, batch, micro-batch.
            share: b / B, the micro-batch's share of its batch.

        Returns:
            What is sent, and the term of the loss, None where there is none.
        """
        clipped = self._clip(output)
        penalty = None
        if self._settings.nopeek and len(output) > 1:
            penalty = self._settings.nopeek * share * distance_correlation(inputs, clipped)
        return self._blur(clipped, "noise", at), penalty

    def evaluate(self, output: Tensor, round_: int, batch: int) -> Tensor:
        """Shapes the output of the first part in evaluation, which tells of samples too."""
        return self._blur(self._clip(output), "test_noise", (round_, batch))

    def _clip(self, output: Tensor) -> Tensor:
        limit = self._settings.clip_norm
        if limit is None:
            return output
        norms = output.flatten(1).norm(dim=1).clamp_min(1e-12)
        factors = (limit / norms).clamp_max(1.0)
        clipped: Tensor = output * factors.reshape(-1, *[1] * (output.ndim - 1))
        return clipped

    def _blur(self, clipped: Tensor, purpose: str, at: tuple[int, ...]) -> Tensor:
        limit, noise = self._settings.clip_norm, self._settings.noise
        if limit is None or not noise:
            return clipped
        generator = torch.Generator().manual_seed(self._key(purpose, at))
        return clipped + noise * limit * torch.randn(clipped.shape, generator=generator)

    def _key(self, purpose: str, at: tuple[int, ...]) -> int:
        public = key(self._seed, purpose, self._owner, *at)
        if not self._secret:
            return public
        return int.from_bytes(blake2b(str(public).encode(), key=self._secret, digest_size=8).digest(), "big") >> 1


def distance_correlation(x: Tensor, z: Tensor) -> Tensor:
    """Gives the squared distance correlation of two samples of n observations each, between 0 and 1.

    Args:
        x: `(n, ...)`, any dtype.
        z: `(n, ...)` float32.
    """
    a, b = _centred(x.detach().to(z.dtype).flatten(1)), _centred(z.flatten(1))
    covariance = (a * b).mean()
    correlation: Tensor = covariance / ((a * a).mean() * (b * b).mean() + TINY).sqrt()
    return correlation


def _centred(values: Tensor) -> Tensor:
    """Distances between all pairs, `(n, n)`, less the means of rows and columns."""
    squares = (values * values).sum(1)
    apart = 1 - torch.eye(len(values), dtype=values.dtype)
    between = (squares[:, None] + squares[None, :] - 2 * (values @ values.T)).clamp_min(LEAST).sqrt() * apart
    return between - between.mean(0, keepdim=True) - between.mean(1, keepdim=True) + between.mean()
