"""The small nets: digits_cnn (the built-in job), mlp and lenet5. They train on a CPU in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["digits_cnn", "lenet5", "mlp"]


def _he(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Gives the layer He's weights: with torch's own, much smaller, a deep net stands still for its first epochs."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def digits_cnn(classes: int = 10, dropout: float = 0.0) -> Iterator[nn.Module]:
    """Yields the 6 blocks of a small CNN for scikit-learn's 8x8 digits.

    Args:
        classes: Number of logits.
        dropout: Share of the hidden units that training drops before the last layer.

    Shapes: (B, 1, 8, 8) float32 -> (B, classes) float32.
    """
    yield nn.Sequential(_he(nn.Conv2d(1, 16, 3, padding=1)), nn.ReLU())  # (B, 16, 8, 8)
    yield nn.Sequential(_he(nn.Conv2d(16, 32, 3, padding=1)), nn.ReLU())  # (B, 32, 8, 8)
    yield nn.MaxPool2d(2)  # (B, 32, 4, 4)
    yield nn.Sequential(_he(nn.Conv2d(32, 64, 3, padding=1)), nn.ReLU())  # (B, 64, 4, 4)
    yield nn.Sequential(nn.Flatten(), _he(nn.Linear(64 * 4 * 4, 128)), nn.ReLU(), nn.Dropout(dropout))  # (B, 128)
    yield nn.Linear(128, classes)  # (B, classes)


def mlp(features: int = 64, hidden: Sequence[int] = (128, 128), classes: int = 10) -> Iterator[nn.Module]:
    """Yields the `len(hidden) + 1` blocks of a multi-layer perceptron with ReLU.

    Args:
        features: Numbers per sample; a sample of any shape with so many is flattened.
        hidden: Width of each hidden layer; may be empty.
        classes: Number of logits.

    Shapes: (B, features) or (B, ...) float32 -> (B, classes) float32.
    """
    widths = [features, *hidden, classes]
    last = len(hidden)
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers: list[nn.Module] = [nn.Flatten()] if i == 0 else []
        layers.append(nn.Linear(inputs, outputs))
        layers += [nn.ReLU()] if i < last else []
        yield nn.Sequential(*layers)  # (B, outputs)


def lenet5(channels: int = 1, size: int = 28, classes: int = 10) -> Iterator[nn.Module]:
    """Yields the 7 blocks of LeNet-5 with ReLU and max-pooling.

    Args:
        channels: Colours of the images.
        size: Height and width of the images, at least 12; 28 for MNIST, 32 for CIFAR.
        classes: Number of logits.

    Raises:
        ValueError: The images are too small for two 5x5 convolutions.

    Shapes: (B, channels, size, size) float32 -> (B, classes) float32.
    Source: LeCun et al. 1998, with today's activation and pooling; 61,706 weights by default.
    """
    if size < 12:
        raise ValueError(f"size {size} leaves nothing after two pools and a 5x5 convolution: give 12 or more")
    end = (size // 2 - 4) // 2  # height and width after the second pool
    yield nn.Sequential(nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU())  # (B, 6, 28, 28)
    yield nn.MaxPool2d(2)  # (B, 6, 14, 14)
    yield nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU())  # (B, 16, 10, 10)
    yield nn.MaxPool2d(2)  # (B, 16, 5, 5)
    yield nn.Sequential(nn.Flatten(), nn.Linear(16 * end * end, 120), nn.ReLU())  # (B, 120)
    yield nn.Sequential(nn.Linear(120, 84), nn.ReLU())  # (B, 84)
    yield nn.Linear(84, classes)  # (B, classes)
