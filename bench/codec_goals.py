"""The goals of the codecs, held against the figures of bench/codec.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

__all__ = ["goals"]

GB = 1e9
# Errors relative to the tensor up to which codecs count as of one class: exact, bf16, int8, and three of quantisers.
CLASSES = (0.0, 0.002, 0.012, 0.06, 0.15, 0.25)
# Step of qz, ratio on activations, largest relative error.
QZ = ((0.2, 9.5, 0.05), (0.5, 14.0, 0.12), (1.0, 20.0, 0.24))


class Tensor(Protocol):
    """What was packed; see codec.py."""

    @property
    def kind(self) -> str: ...
    @property
    def net(self) -> str: ...
    @property
    def when(self) -> str: ...
    @property
    def title(self) -> str: ...


class Figure(Protocol):
    """What a codec did; see codec.py."""

    @property
    def kind(self) -> Tensor: ...
    @property
    def codec(self) -> str: ...
    @property
    def ours(self) -> bool: ...
    @property
    def ratio(self) -> float: ...
    @property
    def error(self) -> float: ...
    @property
    def encode(self) -> float: ...
    @property
    def decode(self) -> float: ...
    @property
    def copy(self) -> float: ...


Row = list[object]


def goals(figures: Sequence[Figure]) -> list[Row]:
    """Gives a row per goal and tensor: goal, tensor, what was found, whether it is met."""
    tensors = list(dict.fromkeys(figure.kind.title for figure in figures))
    rows: list[Row] = []
    for title in tensors:
        here = [figure for figure in figures if figure.kind.title == title]
        named = {figure.codec: figure for figure in here if figure.ours}
        activations = {each.codec: each for each in figures if each.kind.kind == "activation" and each.ours}
        rows += [*_kernels(title, named), *_entropy(title, named), *_steps(title, named, activations)]
        rows += [*_int8(title, named), *_largest(title, named), *_rivals(title, here)]
    return rows


def _row(goal: str, title: str, found: str, met: bool) -> Row:
    return [goal, title, found, "yes" if met else "**no**"]


def _kernels(title: str, named: dict[str, Figure]) -> Iterator[Row]:
    """The kernels without entropy coding, on what they are for: activations."""
    for name in ("bf16", "int8", "int4", "bitmap"):
        figure = named[name]
        if figure.kind.kind == "activation":
            shares = (figure.encode / figure.copy, figure.decode / figure.copy)
            found = f"{shares[0]:.2f} / {shares[1]:.2f}"
            yield _row(f"{name} >= 0.9 x memcpy, each way", title, found, min(shares) >= 0.9)


def _speeds(figure: Figure) -> str:
    return f"{figure.ratio:.2f}x at {figure.encode / GB:.1f} / {figure.decode / GB:.1f} GB/s"


def _entropy(title: str, named: dict[str, Figure]) -> Iterator[Row]:
    for name, least in (("huff", 1.7), ("bf16-huff", 4.0)):
        figure = named[name]
        if figure.kind.net == "resnet18" and figure.kind.kind in ("activation", "masked gradient"):
            met = figure.ratio >= least and min(figure.encode, figure.decode) >= 2.5 * GB
            yield _row(f"{name} >= {least}x at >= 2.5 GB/s each way", title, _speeds(figure), met)


def _steps(title: str, named: dict[str, Figure], activations: dict[str, Figure]) -> Iterator[Row]:
    for alpha, least, most in QZ:
        figure = named[f"qz {alpha}"]
        fast = min(figure.encode, figure.decode) >= 2.8 * GB
        found = f"{_speeds(figure)}, error {figure.error:.3f}"
        if figure.kind.kind == "activation":
            met = fast and figure.ratio >= least and figure.error <= most
            goal = f"qz {alpha} >= {least}x within error {most} at >= 2.8 GB/s each way"
            yield _row(goal, title, found, met)
        elif figure.kind.kind == "masked gradient":
            met = fast and figure.ratio >= activations[f"qz {alpha}"].ratio
            yield _row(f"qz {alpha} as good as on activations, >= 2.8 GB/s each way", title, found, met)


def _int8(title: str, named: dict[str, Figure]) -> Iterator[Row]:
    figure = named["int8"]
    most = 0.004 if figure.kind.kind == "activation" else 0.012
    if figure.kind.kind == "activation" or (figure.kind.kind == "gradient" and figure.kind.when == "late"):
        yield _row(f"int8 within error {most}", title, f"{figure.error:.4f}", figure.error <= most)


def _largest(title: str, named: dict[str, Figure]) -> Iterator[Row]:
    for name, figure in named.items():
        if name.startswith("topk") and figure.kind.kind in ("activation", "gradient"):
            yield _row(f"{name} >= 10 GB/s", title, _speeds(figure), figure.encode >= 10 * GB)


def _rivals(title: str, here: Sequence[Figure]) -> Iterator[Row]:
    """blosc2 is beaten where one codec of ours in its class of error beats it in ratio and in speed, both ways."""
    theirs = [figure for figure in here if figure.codec.startswith("blosc2")]
    for below, most in zip((-1.0, *CLASSES), CLASSES, strict=False):
        rivals = [figure for figure in theirs if below < figure.error <= most]
        mine = [figure for figure in here if figure.ours and figure.error <= most]
        open_to = [rival for rival in rivals if not any(_beats(each, rival) for each in mine)]
        goal = f"beats blosc2, error up to {most}"
        if rivals and open_to:
            rival = open_to[0]
            yield _row(goal, title, f"not {rival.codec}: {_speeds(rival)}", False)
        elif rivals:
            best = max(rivals, key=lambda rival: rival.ratio)
            ahead = max((each for each in mine if _beats(each, best)), key=lambda each: each.ratio)
            yield _row(goal, title, f"{ahead.codec} {_speeds(ahead)}; {best.codec} {_speeds(best)}", True)


def _beats(mine: Figure, rival: Figure) -> bool:
    return mine.ratio > rival.ratio and mine.encode > rival.encode and mine.decode > rival.decode
