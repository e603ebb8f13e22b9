"""Codecs on tensors of a net while it trains: ratio, speed next to memcpy in the same run, and error. One thread.

A small residual net is trained on CIFAR-10 (an excerpt in the data folder) or, where that is not, on scikit-learn's
digits. Its activation at a cut layer after a ReLU and the gradient there are what the codecs get.
"""

from __future__ import annotations

import gzip
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import lz4.block
import numpy as np
import torch
from numpy.typing import NDArray
from report import machine, table
from torch import Tensor, nn
from torch.nn import functional

from zmpsl.codec_kernels import KERNELS, Kernels

F32 = NDArray[np.float32]
FOLDER = Path(os.environ.get("ZMPSL_DATA", Path(__file__).parents[2] / "shared" / "data"))
REPEATS = 15


class Block(nn.Module):
    """Two convolutions with a way around them, ReLU at the end."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.around(x))


def parts_of() -> list[nn.Module]:
    """The net up to the cut layer, and from there on."""
    stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return [nn.Sequential(stem, Block(64, 64, 1)), nn.Sequential(Block(64, 128, 2), Block(128, 128, 2), head)]


def images() -> tuple[str, Tensor, Tensor]:
    """Name, images (n, 3, 32, 32) of mean 0 and classes."""
    excerpt = FOLDER / "cifar10-lossless-4k" / "data_batch_1_first4000.bin.gz"
    if excerpt.exists():
        records = np.frombuffer(gzip.decompress(excerpt.read_bytes()), np.uint8).reshape(-1, 3073)
        pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 128 - 1)
        return f"CIFAR-10, {len(records)} images", pixels, torch.from_numpy(records[:, 0].astype(np.int64))
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.images.astype(np.float32) / 8 - 1)[:, None].expand(-1, 3, -1, -1)
    return f"digits, {len(pixels)} images", functional.interpolate(pixels, 32), torch.from_numpy(digits.target)


@dataclass(frozen=True)
class Cut:
    """What crosses the cut layer in one batch."""

    title: str
    activation: F32
    gradient: F32


def train(steps: int, batch: int) -> Cut:
    """Trains with momentum and gives the tensors of the last step, of batch * 262,144 bytes each."""
    torch.manual_seed(7)
    name, pixels, classes = images()
    front, back = parts_of()
    optimizer = torch.optim.SGD([*front.parameters(), *back.parameters()], 0.05, momentum=0.9)
    loss = smashed = torch.zeros(())
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (batch,))
        optimizer.zero_grad()
        smashed = front(pixels[chosen])
        smashed.retain_grad()
        loss = functional.cross_entropy(back(smashed), classes[chosen])
        loss.backward()
        optimizer.step()
    gradient = smashed.grad
    if gradient is None:
        raise click.ClickException("steps must be 1 or more")
    title = f"{name}; step {steps}, loss {loss.item():.2f}, batch {batch}"
    return Cut(title, smashed.detach().numpy().copy(), gradient.numpy().copy())


@dataclass(frozen=True)
class Candidate:
    """One way to pack: both directions without arguments, and where the values come out."""

    name: str
    encode: Callable[[], int]
    decode: Callable[[int], object]
    result: F32


def ours(kernels: Kernels, values: F32, mask: NDArray[np.uint8] | None) -> Iterator[Candidate]:
    """Our formats; with a known mask the time of packing under it counts."""
    count = values.size if mask is None else int(np.unpackbits(mask).sum())
    for name, alpha in [
        *((name, 0.0) for name in ("bf16", "int8", "int4", "bitmap", "huff", "bf16_huff")),
        *(("qz", alpha) for alpha in (0.05, 0.2, 0.5, 1.0)),
    ]:
        kernel = kernels.formats[name]
        packed = np.zeros(kernel.bound(values.size), np.uint8)
        dense, result = np.zeros(count, np.float32), np.zeros(values.size, np.float32)
        step = (kernels.step(values, alpha),) if name == "qz" else ()

        def encode(kernel=kernel, packed=packed, dense=dense, step=step) -> int:  # type: ignore[no-untyped-def]
            if mask is None:
                return kernel.encode_into(values, packed, *step)
            kernels.pack_into(values, mask, dense)
            return kernel.encode_into(dense, packed, *step)

        def decode(size, kernel=kernel, packed=packed, dense=dense, result=result):  # type: ignore[no-untyped-def]
            if mask is None:
                return kernel.decode_into(packed[:size], result)
            kernel.decode_into(packed[:size], dense)
            return kernels.unpack_into(dense, mask, result)

        yield Candidate(f"{name.replace('_', '-')}{f' {alpha}' if alpha else ''}", encode, decode, result)


def anchors(values: F32) -> Iterator[Candidate]:
    """What one would use otherwise."""
    tensor, half, result = torch.from_numpy(values), torch.zeros(values.size, dtype=torch.bfloat16), values * 0
    out, kept = torch.from_numpy(result), [b""]

    def cast() -> int:
        half.copy_(tensor)
        return 2 * values.size

    def pack() -> int:
        kept[0] = lz4.block.compress(values.data.cast("B"), store_size=False)
        return len(kept[0])

    def unpack(_size: int) -> None:
        result.view(np.uint8)[:] = np.frombuffer(lz4.block.decompress(kept[0], values.nbytes), np.uint8)

    yield Candidate("torch bf16 cast", cast, lambda _size: out.copy_(half), result)
    yield Candidate("lz4", pack, unpack, result)


def cpu_time(work: Callable[[], object]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def row(kind: str, candidate: Candidate, values: F32, expected: F32) -> list[object]:
    """Measures one candidate, and memcpy just before it."""
    target = np.zeros_like(values)
    size = candidate.encode()
    candidate.decode(size)
    # Each in a burst of its own, so that all find the caches as they left them, as a memcpy in a loop does.
    works = (lambda: np.copyto(target, values), candidate.encode, lambda: candidate.decode(size))
    copy, encode, decode = (statistics.median(cpu_time(work) for _ in range(REPEATS)) for work in works)
    error = float(np.linalg.norm(candidate.result - expected) / np.linalg.norm(expected))
    speeds = [f"{values.nbytes / seconds / 1e9:.1f}" for seconds in (encode, decode)]
    against = [f"{copy / seconds:.2f}" for seconds in (encode, decode)]
    return [kind, candidate.name, f"{values.nbytes / size:.2f}", *speeds, *against, f"{error:.4f}" if error else "0"]


@click.command()
@click.option("--steps", default=60, show_default=True, help="Training steps before the tensors are taken.")
@click.option("--batch", default=16, show_default=True, help="Samples in a batch; each makes 256 KiB.")
def main(steps: int, batch: int) -> None:
    """Prints the table for this machine."""
    torch.set_num_threads(1)
    cut = train(steps, batch)
    mask = np.zeros((cut.activation.size + 7) // 8, np.uint8)
    KERNELS.mask_into(cut.activation, mask)
    kept = (cut.activation != 0).ravel()
    rows = []
    for kind, tensor, known in (
        ("activation", cut.activation, None),
        ("gradient", cut.gradient, None),
        ("gradient, known mask", cut.gradient, mask),
    ):
        values = np.ascontiguousarray(tensor).ravel()
        expected = values if known is None else values * kept
        candidates = [*ours(KERNELS, values, known), *(anchors(values) if known is None else [])]
        rows += [row(kind, candidate, values, expected) for candidate in candidates]
    print(machine(" ".join(["python", *sys.argv])))
    print(f"{cut.title}; {cut.activation.nbytes / 1e6:.1f} MB, {kept.mean():.0%} not 0; kernels: {KERNELS.isa}\n")
    head = ["tensor", "codec", "ratio", "enc GB/s", "dec GB/s", "enc / memcpy", "dec / memcpy", "rel. error"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
