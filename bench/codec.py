"""Codecs on tensors of nets while they train: ratio, speed next to memcpy in the same run, and error. One thread.

cut_tensors.py trains the nets. Speeds are bytes of float32 per second of the thread's own time, medians of bursts, into
memory that is there already; a memcpy of the same bytes, timed in the same way, stands before every codec's burst. With
a known mask the time of packing under it counts, and qz's time includes finding its step. Rivals that know no mask get
the gradient with zeros where the mask has none.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import click
import numpy as np
import torch
from codec_goals import goals, summary
from cut_tensors import NETS, Cut, cuts
from numpy.typing import NDArray
from report import machine, table

from zmpsl.codecs import topk_of
from zmpsl.kernels import KERNELS
from zmpsl.trials.rivals import Rival, rivals

F32 = NDArray[np.float32]
MANY_RIVALS = 16e6  # bytes from which on only a few settings are tried, as they take long
ALPHAS = (0.05, 0.2, 0.5, 0.99)
HEAD = ("tensor", "codec", "ratio", "rel. error", "enc GB/s", "dec GB/s", "enc / memcpy", "dec / memcpy")


@dataclass(frozen=True)
class Kind:
    """One tensor to pack.

    Attributes:
        net: Of which it is.
        kind: `activation`, `before ReLU`, `gradient` or `masked gradient`.
        when: `middle` or `late` in the training.
        values: The tensor.
        mask: One bit per value that the receiver knows, for a masked gradient.
        expected: What should arrive: zeros outside the mask.
    """

    net: str
    kind: str
    when: str
    values: F32
    mask: NDArray[np.uint8] | None
    expected: F32

    @property
    def title(self) -> str:
        return f"{self.net} {self.kind}, {self.when}, {self.values.nbytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class Figure:
    """What one codec did to one tensor; speeds in bytes of float32 per second."""

    kind: Kind
    codec: str
    ours: bool
    ratio: float
    error: float
    encode: float
    decode: float
    copy: float

    def row(self) -> list[object]:
        speeds = [f"{speed / 1e9:.1f}" for speed in (self.encode, self.decode)]
        against = [f"{speed / self.copy:.2f}" for speed in (self.encode, self.decode)]
        error = f"{self.error:.4f}" if self.error else "0"
        return [self.kind.title, self.codec, f"{self.ratio:.2f}", error, *speeds, *against]


def kinds(cut: Cut) -> Iterator[Kind]:
    """Gives what crosses a cut; in the middle of a training only gradients differ much from what they are late."""
    activation, before, gradient = (x.reshape(-1) for x in (cut.activation, cut.before, cut.gradient))
    mask = np.zeros((activation.size + 7) // 8, np.uint8)
    KERNELS.mask_into(activation, mask)
    if cut.when == "late":
        yield Kind(cut.net, "activation", cut.when, activation, None, activation)
        same_size = np.ascontiguousarray(before[: activation.size])
        yield Kind(cut.net, "before ReLU", cut.when, same_size, None, same_size)
        yield Kind(cut.net, "gradient", cut.when, gradient, None, gradient)
    yield Kind(cut.net, "masked gradient", cut.when, gradient, mask, np.where(activation != 0, gradient, np.float32(0)))


def ours(kind: Kind) -> Iterator[Rival]:
    """Our formats, as a link uses them."""
    values, mask = kind.values, kind.mask
    count = values.size if mask is None else int(np.unpackbits(mask).sum())
    dense, result = np.zeros(count, np.float32), np.zeros(values.size, np.float32)
    for name, alpha in (
        *((name, 0.0) for name in ("bf16", "int8", "int4", "bitmap", "huff", "bf16_huff")),
        *(("qz", alpha) for alpha in ALPHAS),
    ):
        kernel = KERNELS.formats[name]
        packed, size = np.zeros(kernel.bound(values.size), np.uint8), [0]

        def encode(kernel=kernel, packed=packed, size=size, alpha=alpha) -> int:  # type: ignore[no-untyped-def]
            if mask is not None:
                KERNELS.pack_into(values, mask, dense)
            source = values if mask is None else dense
            step = (KERNELS.step(source, alpha),) if alpha else ()
            size[0] = kernel.encode_into(source, packed, *step)
            return size[0]

        def decode(kernel=kernel, packed=packed, size=size) -> F32:  # type: ignore[no-untyped-def]
            kernel.decode_into(packed[: size[0]], result if mask is None else dense)
            if mask is not None:
                KERNELS.unpack_into(dense, mask, result)
            return result

        yield Rival(f"{name.replace('_', '-')}{f' {alpha}' if alpha else ''}", encode, decode)
    if mask is None:
        yield from (_topk(values, share, result) for share in (0.1, 0.01))


def _topk(values: F32, share: float, result: F32) -> Rival:
    codec, packed = topk_of(share), [b""]

    def encode() -> int:
        packed[0] = codec.pack(memoryview(values).cast("B")) or b""
        return len(packed[0])

    def decode() -> F32:
        codec.unpack_into(memoryview(packed[0]), result.view(np.uint8))
        return result

    return Rival(f"topk {share}", encode, decode)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Gives the median of a burst; of three only, where one takes long."""
    times: list[float] = []
    while len(times) < (repeats if sum(times) < 0.1 else 3):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def measure(kind: Kind, candidate: Rival, mine: bool, repeats: int) -> Figure:
    """Measures one candidate, and memcpy just before it."""
    target = np.zeros_like(kind.values)
    size = candidate.encode()
    arrived = candidate.decode()
    error = float(np.linalg.norm(arrived - kind.expected) / np.linalg.norm(kind.expected))
    # Each in a burst of its own, so that all find the caches as they left them, as a memcpy in a loop does.
    works = (lambda: np.copyto(target, kind.values), candidate.encode, candidate.decode)
    copy, encode, decode = (kind.values.nbytes / seconds(work, repeats) for work in works)
    return Figure(kind, candidate.name, mine, kind.values.nbytes / size, error, encode, decode, copy)


def telling(figure: Figure, figures: list[Figure]) -> bool:
    """Whether a short table has this figure: what the first net's cut carries late, and a few of the rivals there."""
    kind = figure.kind
    if kind.net != figures[0].kind.net or kind.when != "late" or kind.kind not in ("activation", "masked gradient"):
        return False
    exact = [each for each in figures if each.kind is kind and each.codec.startswith("blosc2") and not each.error]
    best = max(exact, key=lambda each: each.ratio, default=figure)
    return figure.ours or figure is best or figure.codec in ("lz4", "zstd 1", "torch bfloat16")


@click.command()
@click.option("--nets", default=",".join(NETS), show_default=True)
@click.option("--sizes", default=2, show_default=True, help="1: 4 MB alone, 2: 33 MB as well.")
@click.option("--steps", default=30, show_default=True, help="Training steps, of 32 images each.")
@click.option("--repeats", default=15, show_default=True, help="Times in a burst.")
@click.option("--every/--few", help="Print every figure; else those of the first net, late, with a few rivals.")
def main(nets: str, sizes: int, steps: int, repeats: int, every: bool) -> None:
    """Prints the table for this machine, and which goals are met."""
    began, figures = time.monotonic(), list[Figure]()
    for net in nets.split(","):
        torch.set_num_threads(2)
        taken = list(cuts(net, sizes, steps))
        torch.set_num_threads(1)
        for cut in taken:
            click.echo(f"{net}, {cut.when}: loss {cut.loss:.4f}, batch {cut.batch}", err=True)
            for kind in kinds(cut):
                figures += [measure(kind, each, True, repeats) for each in ours(kind)]
                if cut.when == "late":
                    most = kind.values.nbytes < MANY_RIVALS
                    figures += [measure(kind, each, False, repeats) for each in rivals(kind.expected, most=most)]
    print(machine(" ".join(["python", *sys.argv])))
    print(f"kernels: {KERNELS.isa}; {time.monotonic() - began:.0f} s in all\n")
    print(table(["goal", "met on", "found"], summary(goals(figures))))
    print(table(HEAD, [figure.row() for figure in figures if every or telling(figure, figures)]))


if __name__ == "__main__":
    main()
