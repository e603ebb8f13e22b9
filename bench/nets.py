"""Nets for the benches, named in jobs as `nets:function` (this folder must be on PYTHONPATH)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def conv(before: int, after: int) -> nn.Module:
    """A 3x3 convolution with ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU())


def middle_heavy(width: int = 32, depth: int = 6, classes: int = 10) -> Iterator[nn.Module]:
    """Light first and last block, `depth` equal heavy ones between: images (B, 3, 32, 32)."""
    yield conv(3, width)
    for _ in range(depth):
        yield conv(width, width)
    yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def trivial(width: int = 8) -> Iterator[nn.Module]:
    """Four blocks that compute next to nothing: what is left is the cost of a round."""
    yield nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    yield nn.Linear(width, width)
    yield nn.Linear(width, width)
    yield nn.Linear(width, 10)


def relu_cuts(width: int = 16, classes: int = 10) -> Iterator[nn.Module]:
    """Blocks 0 and 2 end in a ReLU: images (B, 1, 28, 28), (B, width, 14, 14) at both cuts."""
    yield nn.Sequential(nn.Conv2d(1, width, 3, stride=2, padding=1), nn.ReLU())
    yield conv(width, 2 * width)
    yield conv(2 * width, width)
    yield nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(width * 49, classes))


def norm_stages(
    widths: tuple[int, int, int] = (16, 32, 64), channels: int = 1, classes: int = 10
) -> Iterator[nn.Module]:
    """Three stages of convolution, batch norm and ReLU; the first two end in a max-pool: images (B, C, 28, 28)."""
    before = channels
    for width in widths:
        stage = [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        if width == widths[-1]:
            yield nn.Sequential(*stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        else:
            yield nn.Sequential(*stage, nn.MaxPool2d(2))
        before = width
