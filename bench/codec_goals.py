"""The goals of the codecs, held against the figures of bench/codec.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

__all__ = ["goals", "summary"]

GB = 1e9
# Errors relative to the tensor up to which codecs count as of one class: exact, bf16, int8, and three of quantisers.
CLASSES = (0.0, 0.002, 0.012, 0.06, 0.15, 0.25)
# Step of qz, ratio on activations, largest relative error.
QZ = ((0.2, 9.5, 0.05), (0.5, 14.0, 0.12), (0.99, 20.0, 0.24))


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


class Finding(NamedTuple):
    """What became of one goal on one tensor."""

    goal: str
    tensor: str
    found: str
    met: bool


def goals(figures: Sequence[Figure]) -> list[Finding]:
    """Holds every goal against every tensor it is meant for."""
    tensors = list(dict.fromkeys(figure.kind.title for figure in figures))
    findings: list[Finding] = []
    for title in tensors:
        here = [figure for figure in figures if figure.kind.title == title]
        named = {figure.codec: figure for figure in here if figure.ours}
        activations = {each.codec: each for each in figures if each.kind.kind == "activation" and each.ours}
        findings += [*_kernels(title, named), *_entropy(title, named), *_steps(title, named, activations)]
        findings += [*_int8(title, named), *_largest(title, named), *_rivals(title, here)]
    return findings


def summary(findings: Sequence[Finding]) -> list[list[object]]:
    """Gives a row per goal: on how many tensors it is met, what was found there, and where it is not met."""
    rows: list[list[object]] = []
    for goal in dict.fromkeys(finding.goal for finding in findings):
        each = [finding for finding in findings if finding.goal == goal]
        missed = [f"**{finding.found}** ({finding.tensor})" for finding in each if not finding.met]
        met = [f"{finding.found} ({finding.tensor})" for finding in each if finding.met]
        # Where there are many, the first tell enough.
        rows.append([goal, f"{len(met)} of {len(each)}", "; ".join([*missed, *met[: max(0, 3 - len(missed))]])])
    return rows


def _kernels(title: str, named: dict[str, Figure]) -> Iterator[Finding]:
    """The kernels without entropy coding, on what they are for: activations."""
    for name in ("bf16", "int8", "int4", "bitmap"):
        figure = named[name]
        if figure.kind.kind == "activation":
            shares = (figure.encode / figure.copy, figure.decode / figure.copy)
            found = f"{shares[0]:.2f} / {shares[1]:.2f}"
            yield Finding(f"{name} >= 0.9 x memcpy, each way", title, found, min(shares) >= 0.9)


def _speeds(figure: Figure) -> str:
    return f"{figure.ratio:.2f}x at {figure.encode / GB:.1f} / {figure.decode / GB:.1f} GB/s"


def _entropy(title: str, named: dict[str, Figure]) -> Iterator[Finding]:
    for name, least in (("huff", 1.7), ("bf16-huff", 4.0)):
        figure = named[name]
        if figure.kind.net == "resnet18" and figure.kind.kind in ("activation", "masked gradient"):
            met = figure.ratio >= least and min(figure.encode, figure.decode) >= 2.5 * GB
            yield Finding(f"{name} >= {least}x at >= 2.5 GB/s each way", title, _speeds(figure), met)


def _steps(title: str, named: dict[str, Figure], activations: dict[str, Figure]) -> Iterator[Finding]:
    for alpha, least, most in QZ:
        figure = named[f"qz {alpha}"]
        fast = min(figure.encode, figure.decode) >= 2.8 * GB
        found = f"{_speeds(figure)}, error {figure.error:.3f}"
        if figure.kind.kind == "activation":
            met = fast and figure.ratio >= least and figure.error <= most
            goal = f"qz {alpha} >= {least}x within error {most} at >= 2.8 GB/s each way"
            yield Finding(goal, title, found, met)
        elif figure.kind.kind == "masked gradient":
            met = fast and figure.ratio >= activations[f"qz {alpha}"].ratio
            yield Finding(f"qz {alpha} as good as on activations, >= 2.8 GB/s each way", title, found, met)


def _int8(title: str, named: dict[str, Figure]) -> Iterator[Finding]:
    figure = named["int8"]
    most = 0.004 if figure.kind.kind == "activation" else 0.012
    if figure.kind.kind == "activation" or (figure.kind.kind == "gradient" and figure.kind.when == "late"):
        yield Finding(f"int8 within error {most}", title, f"{figure.error:.4f}", figure.error <= most)


def _largest(title: str, named: dict[str, Figure]) -> Iterator[Finding]:
    for name, figure in named.items():
        if name.startswith("topk") and figure.kind.kind in ("activation", "gradient"):
            yield Finding(f"{name} >= 10 GB/s", title, _speeds(figure), figure.encode >= 10 * GB)


def _rivals(title: str, here: Sequence[Figure]) -> Iterator[Finding]:
    """blosc2 is beaten where one codec of ours of no worse class of error beats it in ratio and in speed, both ways."""
    theirs = [figure for figure in here if figure.codec.startswith("blosc2")]
    for below, most in zip((-1.0, *CLASSES), CLASSES, strict=False):
        rivals = [figure for figure in theirs if below < figure.error <= most]
        mine = [figure for figure in here if figure.ours and figure.error <= most]
        if not rivals:
            continue
        within = f"error up to {most:.1%}" if most else "exact"
        best = max(rivals, key=lambda rival: rival.ratio)
        ours = max(mine, key=lambda each: (_beats(each, best), each.ratio))
        found = f"{ours.codec} {_speeds(ours)} to {best.codec} {_speeds(best)}"
        yield Finding(f"beats blosc2's smallest, {within}", title, found, _beats(ours, best))
        ahead = [rival for rival in rivals if not any(_beats(each, rival) for each in mine)]
        found = "; ".join(f"{rival.codec} {_speeds(rival)}" for rival in ahead) or f"{len(rivals)} settings"
        yield Finding(f"beats every setting of blosc2, {within}", title, found, not ahead)


def _beats(mine: Figure, rival: Figure) -> bool:
    return mine.ratio > rival.ratio and mine.encode > rival.encode and mine.decode > rival.decode
