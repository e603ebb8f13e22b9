"""Tensors for bench/codec.py: trains two nets on real images and gives what crosses a cut layer.

ResNet-18 (width 64, CIFAR stem) is cut behind its first stage, a VGG net (10 convolutions) behind its first max-pool.
The images are scikit-learn's digits, blended onto random patches of its two photographs as MNIST-M does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["NETS", "Cut", "cuts"]

F32 = NDArray[np.float32]
IMAGES = 128
BATCH = 32
SEED = 7


@dataclass(frozen=True)
class Cut:
    """What crosses the cut layer for one batch.

    Attributes:
        net: Of which it is.
        when: `middle` or `late` in the training.
        loss: Of that batch.
        batch: Number of samples.
        activation: Behind the ReLU, (batch, channels, height, width) like all of them.
        before: What goes into the last ReLU before the cut.
        gradient: Of the loss, at the cut.
    """

    net: str
    when: str
    loss: float
    batch: int
    activation: F32
    before: F32
    gradient: F32


class Block(nn.Module):
    """Two convolutions with a way around them; without the ReLU that follows."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*convolution(inputs, outputs, stride), *convolution(outputs, outputs)[:2])
        self.around = nn.Sequential() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.around(x)


def convolution(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution, normalised, and its ReLU."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


Parts = tuple[nn.Module, nn.Module, nn.Module]  # up to the cut's ReLU, from it to the cut, the rest


def resnet18() -> Parts:
    front = nn.Sequential(*convolution(3, 64), Block(64, 64, 1), nn.ReLU(), Block(64, 64, 1))
    stages = [(64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)]
    blocks = [layer for stage in stages for layer in (Block(*stage), nn.ReLU())]
    return front, nn.ReLU(), nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def vgg() -> Parts:
    front = nn.Sequential(*convolution(3, 64), *convolution(64, 64)[:2])
    rest: list[nn.Module] = []
    before = 64
    for width, depth in ((128, 2), (256, 3), (512, 3)):
        for _ in range(depth):
            rest += convolution(before, width)
            before = width
        rest.append(nn.MaxPool2d(2))
    return front, nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), nn.Sequential(*rest, nn.Flatten(), nn.Linear(2048, 10))


# The nets, and the batches that make 4.2 MB, and for one of them 33.6 MB, at the cut.
NETS = {"resnet18": (resnet18, (16, 128)), "vgg": (vgg, (64,))}


def images(count: int) -> tuple[Tensor, Tensor]:
    """Gives images (count, 3, 32, 32) and classes."""
    digits, photographs = load_digits(), load_sample_images().images
    random = np.random.default_rng(SEED)
    shapes = torch.from_numpy(digits.images[:count].astype(np.float32) / 16)[:, None]
    shapes = functional.interpolate(shapes, (32, 32), mode="bilinear")
    patches = np.empty((count, 3, 32, 32), np.float32)
    for patch in patches:
        photograph = photographs[random.integers(len(photographs))]
        y, x = (random.integers(size - 32) for size in photograph.shape[:2])
        patch[:] = photograph[y : y + 32, x : x + 32].transpose(2, 0, 1) / 255
    return ((0.7 * torch.from_numpy(patches) - shapes).abs() - 0.3) / 0.25, torch.from_numpy(digits.target[:count])


def take(net: str, parts: Parts, when: str, pixels: Tensor, classes: Tensor) -> Cut:
    """Gives what crosses the cut for one batch."""
    for part in parts:
        part.zero_grad()
    before = parts[0](pixels)
    activation = parts[1](before)
    activation.retain_grad()
    loss = functional.cross_entropy(parts[2](activation), classes)
    loss.backward()
    values = (activation.detach(), before.detach(), activation.grad)
    arrays = [np.ascontiguousarray(value.numpy()) for value in values if value is not None]
    return Cut(net, when, loss.item(), len(pixels), arrays[0], arrays[1], arrays[2])


def cuts(net: str, sizes: int, steps: int) -> Iterator[Cut]:
    """Trains a net, and gives its tensors in the middle of it and at its end.

    Args:
        net: One of `NETS`.
        sizes: How many of its batch sizes are wanted.
        steps: Training steps, of 32 images each.
    """
    torch.manual_seed(SEED)
    make, batches = NETS[net]
    parts = make()
    pixels, classes = images(IMAGES)
    weights = [weight for part in parts for weight in part.parameters()]
    optimizer = torch.optim.Adam(weights)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    order = torch.arange(0)
    for step in range(1, steps + 1):
        order = order if len(order) >= BATCH else torch.randperm(IMAGES)
        chosen, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        x = pixels[chosen]
        for part in parts:
            x = part(x)
        functional.cross_entropy(x, classes[chosen]).backward()
        optimizer.step()
        schedule.step()
        if step in (steps * 2 // 5, steps):
            when = "late" if step == steps else "middle"
            yield from (take(net, parts, when, pixels[:batch], classes[:batch]) for batch in batches[:sizes])
