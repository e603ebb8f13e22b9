"""ResNet-18/34/50/101 and the "ResNet-101" of basic blocks that MP-SL's authors measured.

A residual block is atomic: its shortcut jumps over its layers, so a cut inside would send two tensors per hop.

            +--------- shortcut ---------+
            |                            v
    x ------+-- conv bn relu conv bn --> + -- relu -->        basic (two 3x3)
                conv 1x1, 3x3, 1x1 ...                        bottleneck
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BASIC", "BOTTLENECK", "resnet", "resnet101_mpsl"]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Gives a padded convolution with He's weights; (B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Residual(nn.Module):
    """relu(path(x) + shortcut(x))."""

    def __init__(self, path: nn.Module, inputs: int, outputs: int, stride: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.path = path
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, shortcut_kernel, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H/stride, W/stride)."""
        return F.relu(self.path(x) + self.shortcut(x))


def basic(inputs: int, width: int, stride: int, shortcut_kernel: int = 1) -> Residual:
    """Gives a block of two 3x3 convolutions; (B, inputs, H, W) -> (B, width, H/stride, W/stride)."""
    path = nn.Sequential(
        convolution(inputs, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(),
        convolution(width, width, 3), nn.BatchNorm2d(width),
    )  # fmt: skip
    return Residual(path, inputs, width, stride, shortcut_kernel)


def bottleneck(inputs: int, width: int, stride: int) -> Residual:
    """Gives a 1x1, 3x3, 1x1 block; (B, inputs, H, W) -> (B, 4 * width, H/stride, W/stride)."""
    path = nn.Sequential(
        convolution(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(),
        convolution(width, width, 3, stride), nn.BatchNorm2d(width), nn.ReLU(),
        convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width),
    )  # fmt: skip
    return Residual(path, inputs, 4 * width, stride, shortcut_kernel=1)


class Kind(NamedTuple):
    """How a residual block is made, and how many times wider than its width it leaves the tensor."""

    make: Callable[[int, int, int], Residual]
    expansion: int


BASIC = Kind(basic, 1)
BOTTLENECK = Kind(bottleneck, 4)


def stages(kind: Kind, depths: Sequence[int], width: int) -> Iterator[nn.Module]:
    """Yields the residual blocks of all stages; each stage after the first doubles the width and halves H and W.

    Shapes: (B, width, H, W) -> (B, 2 ** (stages - 1) * width * expansion, H / 8, W / 8) for four stages.
    """
    inputs = width
    for stage, blocks in enumerate(depths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            yield kind.make(inputs, width << stage, stride)
            inputs = (width << stage) * kind.expansion


def resnet(
    kind: Kind,
    depths: Sequence[int],
    /,
    classes: int = 1000,
    channels: int = 3,
    width: int = 64,
    small_input: bool = False,
) -> Iterator[nn.Module]:
    """Yields ResNet's blocks: stem, max-pool, each residual block, average pool + flatten, fully connected.

    Args:
        kind: `BASIC` or `BOTTLENECK`.
        depths: Residual blocks of each of the four stages.
        classes: Number of logits.
        channels: Colours of the images.
        width: Channels of the first stage; 64 in the paper, fewer for a small net of the same shape.
        small_input: For CIFAR's 32 x 32: a 3x3 stem of stride 1 and no max-pool.

    Shapes: (B, channels, H, W) float32 -> (B, classes) float32.
    Source: torchvision's resnet (stride on a bottleneck's 3x3), layer for layer; comments give shapes for 224 x 224.
    """
    if small_input:
        yield nn.Sequential(convolution(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())  # (B, 64, 224, 224)
    else:
        yield nn.Sequential(convolution(channels, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU())  # (B, 64, 112, 112)
        yield nn.MaxPool2d(3, stride=2, padding=1)  # (B, 64, 56, 56)
    yield from stages(kind, depths, width)  # (B, 512 * expansion, 7, 7)
    yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (B, 512 * expansion)
    yield nn.Linear(8 * width * kind.expansion, classes)  # (B, classes)


def resnet101_mpsl(classes: int = 10, channels: int = 3) -> Iterator[nn.Module]:
    """Yields the 37 blocks of the authors' "ResNet-101": 3 + 4 + 23 + 3 *basic* blocks, 42.8 M weights.

    It differs from torchvision's resnet101 in that no block is a bottleneck, the shortcut of a narrowing block is a
    3x3 convolution, the max-pool comes before the batch norm, and the first convolution has a bias.

    Args:
        classes: Number of logits.
        channels: Colours of the images.

    Shapes: (B, channels, 32, 32) float32 -> (B, classes) float32. A training batch needs two samples or more: the
    last stage is 1 x 1, where the batch norm of a single sample is not defined.
    Source: MP-SL (arXiv 2402.00208) and the block sizes its authors published, from which biases and shortcuts
    follow. Their initial weights are not known; these are torchvision's.
    """
    yield convolution(channels, 64, 7, stride=2, bias=True)  # (B, 64, 16, 16)
    yield nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())  # (B, 64, 8, 8)
    wide_shortcut = Kind(partial(basic, shortcut_kernel=3), 1)
    yield from stages(wide_shortcut, (3, 4, 23, 3), 64)  # (B, 512, 1, 1)
    yield nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (B, 512)
    yield nn.Linear(512, classes)  # (B, classes)
