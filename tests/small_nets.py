"""Models and data for tests, named in jobs as `small_nets:function`: what a user's own code looks like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from zmpsl.data import Samples, Split


def batch_norm_net(width: int = 6) -> list[nn.Module]:
    """Six blocks for (B, 1, 8, 8), batch norm in most of them."""

    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())

    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return [
        block(1, width),
        block(width, width),
        block(width, width),
        block(width, width),
        pool,
        nn.Linear(4 * width, 10),
    ]


def tiny_mlp(features: int = 64, width: int = 8) -> Iterator[nn.Module]:
    """Four small blocks, as a generator."""
    yield nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU())
    yield nn.Sequential(nn.Linear(width, width), nn.ReLU())
    yield nn.Sequential(nn.Linear(width, width), nn.ReLU())
    yield nn.Linear(width, 10)


class Bounded(nn.Module):
    """A linear layer that writes its own weights in forward, as an embedding with `max_norm` does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(-0.3, 0.3)
        return nn.functional.relu(inputs @ self.weight)


def odd_net(features: int = 64, width: int = 16) -> Iterator[nn.Module]:
    """Blocks that are not as most are: a weight that is not trained, and one that forward writes."""
    yield nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU())
    frozen = nn.Linear(width, width)
    frozen.weight.requires_grad_(False)
    yield nn.Sequential(frozen, nn.ReLU())
    yield Bounded(width)
    yield nn.Sequential(nn.Linear(width, width), nn.ReLU())
    yield nn.Linear(width, 10)


def letters(folder: str | None, length: int = 1600, context: int = 12) -> Split:
    """A text of 30 different characters with some order in it, cut into windows."""
    rng = np.random.default_rng(3)
    text = (np.cumsum(rng.integers(0, 4, length)) % 30).astype(np.int64)
    windows = np.stack([text[start : start + context + 1] for start in range(0, length - context - 1, context)])
    inputs, targets = windows[:, :-1], windows[:, 1:]
    return Split(Samples(inputs[:110], targets[:110]), Samples(inputs[110:], targets[110:]), 30)
