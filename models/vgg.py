"""VGG-11/13/16/19, plain and with batch norm, and the VGG-19 that MP-SL's authors measured."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["vgg", "vgg19_mpsl"]

# Convolutions of each stage; a max-pool ends the stage. Source: arXiv 1409.1556, table 1, columns A, B, D, E.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


def convolution(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Gives a 3x3 convolution (+ batch norm) + ReLU; (B, inputs, H, W) -> (B, outputs, H, W)."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if batch_norm else []), nn.ReLU())


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Gives a fully connected layer with VGG's weights, normal(0, 0.01)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def vgg(
    depth: int, batch_norm: bool, pool_padding: int, /, classes: int = 1000, channels: int = 3, dropout: float = 0.5
) -> Iterator[nn.Module]:
    """Yields VGG's blocks: each convolution + ReLU, each pool, average pool + flatten, three fully connected.

    Args:
        depth: 11, 13, 16 or 19 layers with weights.
        batch_norm: Normalise after each convolution.
        pool_padding: Padding of the max-pools; 0 in the paper.
        classes: Number of logits.
        channels: Colours of the images.
        dropout: Share of the hidden units that training drops after each of the two hidden layers.

    Shapes: (B, channels, H, W) float32, H and W at least 32 -> (B, classes) float32.
    Source: torchvision's vgg, layer for layer; the comments give the shapes for 224 x 224.
    """
    inputs = channels
    for width, convolutions in zip(WIDTHS, STAGES[depth], strict=True):
        for _ in range(convolutions):
            yield convolution(inputs, width, batch_norm)  # (B, width, H, W)
            inputs = width
        yield nn.MaxPool2d(2, padding=pool_padding)  # (B, width, H/2, W/2)
    yield nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten())  # (B, 512 * 7 * 7)
    yield nn.Sequential(linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Dropout(dropout))  # (B, 4096)
    yield nn.Sequential(linear(4096, 4096), nn.ReLU(), nn.Dropout(dropout))  # (B, 4096)
    yield linear(4096, classes)  # (B, classes)


def vgg19_mpsl(classes: int = 10, channels: int = 3, dropout: float = 0.5) -> Iterator[nn.Module]:
    """Yields the 25 blocks of the authors' VGG-19: no batch norm, max-pools with padding 1.

    The padding keeps a border at each pool, 32 -> 17 -> 9 -> 5 -> 3 -> 2, so small images reach the end.

    Args:
        classes: Number of logits.
        channels: Colours of the images.
        dropout: Share of the hidden units that training drops after each of the two hidden layers.

    Shapes: (B, channels, 32, 32) float32 -> (B, classes) float32.
    Source: MP-SL (arXiv 2402.00208) and the block sizes its authors published. By these sizes, their dropouts
    stand at the head of the next block; here they end their own, which computes the same. Their initial weights
    are not known; these are torchvision's.
    """
    return vgg(19, False, 1, classes=classes, channels=channels, dropout=dropout)
